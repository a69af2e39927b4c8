"""`hpcmass plan JOB`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from hpcmass.cli.options import project_option, run_option, set_option, site_option

if TYPE_CHECKING:
    from hpcmass.slurm.placement import Candidate, Choice


@click.command("plan")
@click.argument("job_file", metavar="JOB")
@click.option(
    "--deadline", metavar="TIME", help="The cheapest target that finishes within this time, such as 2h."
)
@click.option("--budget", type=click.FloatRange(0, min_open=True), help="What it may cost, in the site's unit.")
@click.option("--node-hours", is_flag=True, help="Count cost in node-hours instead of the site's prices.")
@click.option(
    "--calibrate/--no-calibrate",
    default=False,
    help="Measure the job with a short run on every target where that was not done yet.",
)
@click.option(
    "--wait",
    "wait_text",
    metavar="TIME",
    default="10m",
    show_default=True,
    help="How long to wait for measurements.",
)
@run_option
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
@set_option
@project_option
@site_option
def command(
    job_file: str,
    deadline: str | None,
    budget: float | None,
    node_hours: bool,
    calibrate: bool,
    wait_text: str,
    run_name: str | None,
    as_json: bool,
    sets: tuple[str, ...],
    project_root: str | None,
    site_file: str | None,
) -> int:
    """Show where a job would run: start, run time and price on every target, and which one to take.

    Exit code 1 when no target serves the goal.
    """
    from hpcmass.cli.submitted import patient_slurm
    from hpcmass.config import as_job, load_site
    from hpcmass.slurm.placement import Goal
    from hpcmass.workflow.plan import choose_target
    from hpcmass.workflow.projects import open_project

    project = open_project(project_root, beside=job_file)
    job = as_job(job_file, sets)
    choice = choose_target(
        job,
        project,
        load_site(site_file, project.site_file),
        patient_slurm(),
        Goal(None if deadline is None else _seconds(deadline, "--deadline"), budget, node_hours),
        measure=calibrate,
        wait_s=_seconds(wait_text, "--wait"),
        run=project.run_path(run_name or job.name),
        say=lambda text: click.echo(text, err=True),
    )
    _tell(choice, as_json=as_json)
    return 0 if choice.target is not None else 1


def _seconds(text: str, option: str) -> int:
    from hpcmass.config.duration import parse_duration
    from hpcmass.errors import ConfigError

    try:
        return parse_duration(text)
    except ValueError as error:
        raise ConfigError(str(error), where=option) from None


def _tell(choice: Choice, *, as_json: bool) -> None:
    from hpcmass.cli.console import dump, table

    if as_json:
        dump({"format": 1, **asdict(choice)})
        return
    header = ("target", "nodes", "starts in", "runs for", "jobs", "done in", "node-hours", "price")
    table([_row(each, each.target == choice.target) for each in choice.candidates], header)
    notes: dict[str, list[str]] = {}
    for each in choice.candidates:
        for note in [f"refused: {each.refusal}"] if each.refusal else each.notes:
            notes.setdefault(note, []).append(each.target)
    for note, targets in notes.items():
        click.echo(f"  {', '.join(targets)}: {note}")
    click.echo(f"take {choice.reason}" if choice.target else f"no choice: {choice.reason}")


def _row(each: Candidate, taken: bool) -> tuple[str, ...]:
    from hpcmass.config.duration import span

    name = f"{each.target} *" if taken else each.target
    if each.refusal:
        return (name, *["-"] * 7)
    unknown = "unknown"
    return (
        name,
        str(each.layout.nodes) if each.layout else unknown,
        span(each.start_s),
        span(each.run_s),
        str(each.hops or unknown),
        span(each.finish_s),
        unknown if each.node_hours is None else f"{each.node_hours:.3g}",
        unknown if each.price is None else f"{each.price:.3g}",
    )
