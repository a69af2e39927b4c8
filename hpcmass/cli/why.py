"""`hpcmass why`."""

from __future__ import annotations

import click

from hpcmass.cli.options import project_option


@click.command("why")
@click.argument("run")
@project_option
def command(run: str, project_root: str | None) -> None:
    """Say why a run is in its state: the first failing rank's error, Slurm's reason, its hops, and what to do.

    RUN is a run's name, STUDY/NUMBER for a trial, a folder, or the id of a Slurm job.
    """
    from hpcmass.cli.status import slurm_for
    from hpcmass.workflow.projects import maybe_project
    from hpcmass.workflow.select import select_runs
    from hpcmass.workflow.state import read_run
    from hpcmass.workflow.why import explain_run

    for number, found in enumerate(select_runs([run], maybe_project(project_root))):
        if number:
            click.echo()
        for line in explain_run(found, slurm_for(bool(read_run(found).jobs))).lines():
            click.echo(line)
