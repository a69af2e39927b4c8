"""`hpcmass workflow resume FOLDER`: go on with whatever a folder's driver was doing."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("workflow")
def command() -> None:
    """Go on with a sweep or a workflow by its folder."""


@command.command("resume")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--driver", type=click.Choice(["here", "job"]), default="here", show_default=True,
              help="Run the driver in this terminal, or as a Slurm job.")  # fmt: skip
def resume(folder: Path, driver: str) -> int:
    """Go on with the study or the workflow in FOLDER; nothing that is done is run again."""
    from hpcmass.workflow.resume import resume_folder

    job_id = resume_folder(folder, as_job=driver == "job")
    click.echo(f"submitted as job {job_id}; its output lies in {folder}/driver")
    return 0


@command.command("drive", hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
def drive(folder: Path) -> int:
    """Be the process of a driver's job."""
    from hpcmass.workflow.driver_hop import drive as run

    return run(folder)
