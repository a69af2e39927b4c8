"""Go on with what a folder's driver was doing, whatever it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from hpcmass.config import Project, load_job, load_site
from hpcmass.errors import HpcmassError, NotFound
from hpcmass.launch import hpcmass_command
from hpcmass.workflow.drive import DriverFile, driver_folder, run_here, submit_driver, submit_sweep


def resume_folder(folder: Path, *, as_job: bool) -> str:
    """Go on in this process's place, or as a Slurm job, whose id it gives.

    Args:
        folder: A study's folder, or one whose driver is written down (`driver/driver.json`).
        as_job: Submit it.

    Raises:
        NotFound: There is neither.
        SlurmError: Slurm refused.
    """
    folder = folder.absolute()
    if (driver_folder(folder) / "driver.json").is_file():
        if not as_job:
            run_here(folder)
        file = DriverFile.read(folder)
        site, leases = load_site(driver_folder(folder) / "site.toml"), [Path(one) for one in file.leases]
        return submit_driver(
            folder, file.command, site=site, target=file.target, leases=leases, cwd=Path(file.cwd)
        )
    if not (folder / "job.toml").is_file():
        raise NotFound(
            "there is nothing here to go on with",
            where=folder,
            hint="a study's folder, or a workflow's, is meant",
        )
    project = Project.find(folder)
    if as_job:
        site = load_site(folder / "site.toml")
        return submit_sweep(load_job(folder / "job.toml"), project, site, folder)
    return _become([*hpcmass_command(), "sweep", "resume", str(folder), "--project", str(project.root)])


def _become(command: list[str]) -> NoReturn:
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise HpcmassError(f"cannot start {command[0]!r}: {error.strerror}") from error
