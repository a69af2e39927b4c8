"""`hpcmass cancel`."""

from __future__ import annotations

import click

from hpcmass.cli.options import project_option


@click.command("cancel")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--why", default="", metavar="TEXT", help="Kept with the run, for whoever asks later.")
@project_option
def command(runs: tuple[str, ...], why: str, project_root: str | None) -> int:
    """Cancel runs: waiting, held, running, or between two hops; each says what was done.

    A run without Slurm is asked to stop, and writes a checkpoint first. Ends with 1 where Slurm did not take
    it: the run then ends at its next hop.
    """
    from hpcmass.cli.lines import shown
    from hpcmass.cli.status import slurm_for
    from hpcmass.runs import RunFolder
    from hpcmass.workflow.cancel import cancel_runs
    from hpcmass.workflow.projects import maybe_project
    from hpcmass.workflow.select import select_runs
    from hpcmass.workflow.state import read_run

    chosen: list[RunFolder] = select_runs(runs, maybe_project(project_root))
    needed = any(one.jobs or one.intent for one in map(read_run, chosen))
    slurm = slurm_for(needed, patience_s=10.0)
    results = cancel_runs(chosen, slurm, shown(" ".join(why.split())))
    for one in results:
        click.echo(f"{one.name}: {one.text}", err=not one.done)
    return 0 if all(one.done for one in results) else 1
