"""`hpcmass rerun RUN`."""

from __future__ import annotations

import click

from hpcmass.cli.options import project_option


@click.command("rerun")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
@project_option
def command(run: str, as_json: bool, project_root: str | None) -> int:
    """Submit a run again, exactly as it was submitted last: the same script, byte for byte.

    RUN is a run's name, or its folder.
    """
    from hpcmass.cli.submitted import patient_slurm, tell_submission
    from hpcmass.workflow.projects import find_run, maybe_project
    from hpcmass.workflow.submit import rerun

    return tell_submission(
        rerun(find_run(run, maybe_project(project_root)), slurm=patient_slurm()), as_json=as_json
    )
