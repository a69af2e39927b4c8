"""`hpcmass status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hpcmass.cli.options import project_option

if TYPE_CHECKING:
    from hpcmass.runs import RunFolder
    from hpcmass.slurm.client import Slurm
    from hpcmass.workflow.state import RunView

_SHOWN = 20


@click.command("status")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--json", "as_json", is_flag=True, help="As JSON (docs/state.md).")
@click.option("--all", "everything", is_flag=True, help=f"All runs, not the newest {_SHOWN}.")
@project_option
def command(runs: tuple[str, ...], as_json: bool, everything: bool, project_root: str | None) -> int:
    """Show the state of runs, newest first: their folders, and one look at Slurm for all of them.

    RUN is a run's name, STUDY/NUMBER for a trial, a study, a folder, a pattern such as 'lr-*', or the id of a
    Slurm job. Without one: the runs of the project. Ends with 1 if a run cannot be read.
    """
    from hpcmass.cli.console import dump
    from hpcmass.errors import HpcmassError
    from hpcmass.workflow.state import FORMAT, ask, look, view

    chosen, left = _chosen(runs, project_root, everything)
    looked = [(run, look(run)) for run in chosen]
    readings = [reading for _, reading in looked if not isinstance(reading, HpcmassError)]
    slurm = slurm_for(any(reading.jobs for reading in readings))
    answer = ask(readings, slurm)
    views = [view(reading, answer) for reading in readings]
    broken = [(run, error) for run, error in looked if isinstance(error, HpcmassError)]
    if as_json:
        dump(
            {
                "format": FORMAT,
                "slurm": {"answered": not answer.silent, "why": answer.silent, "accounting": answer.accounting},
                "runs": [one.as_json() for one in views],
                "unreadable": [{"path": str(run.path), "error": error.message} for run, error in broken],
            }
        )
        return 1 if broken else 0
    for line in lines_of(views):
        click.echo(line)
    for run, error in broken:
        click.echo(f"cannot be read: {run.path}: {error.message}", err=True)
    if not chosen:
        click.echo("there is no run yet")
    if left:
        click.echo(f"and {left} more (--all shows them)")
    forgotten = any(one.reading.jobs and (one.job is None or not one.job.source) for one in views)
    if answer.silent:
        click.echo(f"Slurm does not answer: {answer.silent}", err=True)
    elif answer.accounting is False and forgotten:
        click.echo("this Slurm keeps no accounting: of jobs that it has forgotten nothing is known", err=True)
    return 1 if broken else 0


def _chosen(words: tuple[str, ...], root: str | None, everything: bool) -> tuple[list[RunFolder], int]:
    from hpcmass.workflow.projects import maybe_project, open_project
    from hpcmass.workflow.select import all_runs, select_runs

    if words:
        return select_runs(words, maybe_project(root)), 0
    runs = all_runs(open_project(root))
    kept = runs if everything else runs[:_SHOWN]
    return kept, len(runs) - len(kept)


def slurm_for(needed: bool, *, patience_s: float = 3.0) -> Slurm | None:
    """The client of this environment's Slurm; None where no run was ever given to one."""
    if not needed:
        return None
    from hpcmass.slurm.client import Slurm

    # A controller that is down is noticed by squeue itself only after many seconds.
    return Slurm(timeout_s=10.0, patience_s=patience_s)


def lines_of(views: list[RunView]) -> list[str]:
    """The table that `status` prints: one line a run, and a line below it where there is more to say."""
    from hpcmass.cli.lines import amount, columns

    if not views:
        return []
    rows = []
    for one in views:
        status = one.status
        step = f"{status.step}/{status.total_steps}" if status.total_steps else str(status.step or "")
        job = one.job.job_id if one.job else ""
        loss = amount(one.reading.loss)
        rows.append((one.name, one.phase.value, job, step, loss, amount(one.reading.samples_per_s), about(one)))
    return columns(rows, ("run", "state", "job", "step", "loss", "samples/s", "about"), right=(3, 4, 5))


def about(one: RunView) -> str:
    """What there is to say of a run in one line."""
    from hpcmass.config.duration import span
    from hpcmass.slurm.judge import Phase
    from hpcmass.workflow.state import clock

    facts = []
    if one.phase is Phase.RUNNING:
        ranks = f"{one.status.ranks} rank{'s' * (one.status.ranks != 1)}" if one.status.ranks else ""
        where = f"on {nodes_text(one.nodes)}" if one.nodes else ""
        facts.append(f"{ranks} {where}".strip())
        if one.left_s is not None:
            facts.append(f"done in {span(one.left_s)}")
        if one.ends is not None and not one.next_hop.startswith("hop "):
            facts.append(f"time limit {clock(one.ends)}")
        if len(one.reading.hops) > 1:
            facts.append(f"hop {len(one.reading.hops)}")
        if one.next_hop.startswith("hop "):
            facts.append(f"next: {one.next_hop} (time limit)")
    if one.verdict.reason:
        facts.append(one.verdict.reason)
    if one.expected_start is not None:
        facts.append(f"start expected {clock(one.expected_start)}")
    facts += one.verdict.notes
    if one.last_known:
        facts.append(f"last known: {one.last_known}")
    if one.verdict.advice and one.phase is not Phase.RUNNING:
        facts.append(one.verdict.advice)
    return "; ".join(fact for fact in facts if fact).replace("\n", " ")


def nodes_text(nodes: tuple[str, ...], most: int = 4) -> str:
    """Some names of nodes."""
    more = len(nodes) - most
    return ", ".join(nodes[:most]) + (f" and {more} more" if more > 0 else "")
