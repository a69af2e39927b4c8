"""`hpcmass job check`."""

from __future__ import annotations

import click

from hpcmass.cli.options import project_option, set_option


@click.group("job")
def command() -> None:
    """Check a job file and show it as resolved."""


@command.command("check")
@click.argument("job_file", metavar="JOB")
@click.option("--show", is_flag=True, help="Print the job as resolved, with every default.")
@set_option
@project_option
def check(job_file: str, show: bool, sets: tuple[str, ...], project_root: str | None) -> None:
    """Validate a job file, its recipe, and the datasets it names."""
    from hpcmass.config import job_to_toml
    from hpcmass.workflow.projects import maybe_project
    from hpcmass.workflow.sharding import check_job

    job, notes = check_job(job_file, sets, maybe_project(project_root))
    if show:
        click.echo(job_to_toml(job))
    for note in notes:
        click.echo(note)
    click.echo(f"{job_file}: ok")
