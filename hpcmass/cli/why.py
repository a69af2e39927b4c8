"""`hpcmass why`."""

from __future__ import annotations

import click

from hpcmass.cli.options import project_option


@click.command("why")
@click.argument("run")
@project_option
def command(run: str, project_root: str | None) -> None:
    """Say why a run ended: the first failing rank's error, the last step, and what to do.

    RUN is a run's name, STUDY/NUMBER for a trial, or a folder.
    """
    from hpcmass.runs import explain
    from hpcmass.workflow.projects import find_run, maybe_project

    for line in explain(find_run(run, maybe_project(project_root))).lines():
        click.echo(line)
