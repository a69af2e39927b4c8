"""A driver as a Slurm job of its own: for sites whose login nodes end long processes.

`FOLDER/driver/` holds `driver.json` (the command that is the driver), the site, its batch script, its output,
and `hops.jsonl`. The job runs `driver_hop.drive`.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hpcmass.config import Job, Layout, Project, Site, Target, parse_duration, site_to_toml
from hpcmass.errors import ConfigError, CorruptError, HpcmassError
from hpcmass.files import Lease, append_record, make_dir, read_json, replace, replace_json
from hpcmass.launch import hpcmass_command
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.submission import submit_script
from hpcmass.workflow.block_shape import DEFAULT_TIME_S
from hpcmass.workflow.submit import signal_s
from hpcmass.workflow.targets import named_target

MEMORY_GB = 2.0


@dataclass(frozen=True)
class DriverFile:
    """What `driver.json` says.

    Attributes:
        command: The driver's words.
        cwd: Its working folder.
        requeue: Whether the job goes on by requeue; else by a successor.
        leases: Leases (paths without suffix) that the driver takes: of a driver that is gone with its node they
            are held for a while.
        target: Where its job runs; None: the site's default.
    """

    command: tuple[str, ...]
    cwd: str
    requeue: bool
    leases: tuple[str, ...] = ()
    target: str | None = None

    @classmethod
    def read(cls, folder: Path) -> DriverFile:
        """That of a folder.

        Raises:
            NotFound: Its driver was never a job.
        """
        file = driver_folder(folder) / "driver.json"
        raw = read_json(file)
        try:
            leases, target = tuple(raw["leases"]), raw.get("target")
            return cls(tuple(raw["command"]), raw["cwd"], bool(raw["requeue"]), leases, target)
        except (KeyError, TypeError) as error:
            raise CorruptError(f"is not a driver's record ({error})", where=file) from error


def driver_folder(folder: Path) -> Path:
    """Where a driver that is a job keeps what is its own."""
    return folder / "driver"


def note_driver(
    folder: Path,
    command: Sequence[str],
    *,
    site: Site,
    target: str | None = None,
    leases: Sequence[Path] = (),
    cwd: Path | None = None,
) -> Path:
    """Write down what a folder's driver is, so that `hpcmass workflow resume FOLDER` goes on with it.

    Args:
        folder: What it works in (a study's folder, a project's), on a file system that the nodes see.
        command: The driver: a command that goes on with what its folders say when it is started again, ends in
            order at SIGTERM, and ends with 0 when everything is done.
        site: The site.
        target: Where it runs when it is a job, on one core; default: the site's own.
        leases: See `DriverFile`.
        cwd: Its working folder; default: this process's.

    Returns:
        The folder of what is the driver's own.

    Raises:
        ConfigError: The site has no such target.
    """
    chosen = named_target(target or site.default_target, site, "--driver-target")
    place = make_dir(driver_folder(folder.absolute()))
    record = {
        "format": 1,
        "command": list(command),
        "cwd": str((cwd or Path.cwd()).absolute()),
        "requeue": chosen.requeue,
        "leases": [str(path.absolute()) for path in leases],
        "target": target,
    }
    replace(place / "site.toml", site_to_toml(site))
    replace_json(place / "driver.json", record)
    return place


def submit_driver(
    folder: Path,
    command: Sequence[str],
    *,
    site: Site,
    target: str | None = None,
    leases: Sequence[Path] = (),
    name: str = "hpcmass-driver",
    cwd: Path | None = None,
    slurm: Slurm | None = None,
) -> str:
    """Submit a command as a driver; gives the job's id.

    Args:
        folder: As for `note_driver`, and so are the next ones.
        command: The driver.
        site: The site.
        target: Where the job runs.
        leases: Those that the driver takes.
        name: The job's name.
        cwd: The driver's working folder.
        slurm: The way to Slurm.

    Raises:
        ConfigError: The target is not one of Slurm's.
        SlurmError: Slurm refused, or does not answer.
    """
    target_name = target or site.default_target
    chosen = named_target(target_name, site, "--driver-target")
    if chosen.kind != "slurm":
        raise ConfigError(
            f"the target '{target_name}' is not one of Slurm's, so that no driver can be a job there",
            where="--driver",
            hint="leave --driver job out, or name a target with --driver-target",
        )
    place = note_driver(folder, command, site=site, target=target, leases=leases, cwd=cwd)
    comment = f"hpcmass:{uuid.uuid4().hex}"
    text = _script(folder.absolute(), chosen, name, comment)
    number = 1 + sum(1 for file in place.glob("job-*.sbatch"))
    slurm = slurm or Slurm(patience_s=120.0)
    job_id = submit_script(text, place, slurm=slurm, name=f"job-{number:04d}.sbatch", comment=comment)
    append_record(place / "hops.jsonl", {"kind": "submitted", "job_id": job_id, "time": time.time()})
    return job_id


def _script(folder: Path, target: Target, name: str, comment: str, after: Sequence[str] = ()) -> str:
    text = target.max_time or target.block_time or target.default_time
    time_s = round(parse_duration(text)) if text else DEFAULT_TIME_S
    memory_gb = min(MEMORY_GB, target.memory_gb or MEMORY_GB)
    # One core is asked for and no accelerator, whatever a run gets there.
    asked = target.model_copy(update={"exclusive": False, "gres": {}})
    return render_script(
        ScriptSpec(
            name=name,
            target=asked,
            layout=Layout(1, 1, 1, 1, 0, memory_gb, time_s),
            command=(*hpcmass_command(), "workflow", "drive", str(folder)),
            out=driver_folder(folder),
            after=tuple(after),
            signal_s=signal_s(time_s),
            comment=comment,
            title=f"driver of {folder.name}",
        )
    )


def submit_sweep(
    job: Job,
    project: Project,
    site: Site,
    folder: Path,
    *,
    target: str | None = None,
    slurm: Slurm | None = None,
) -> str:
    """Lay a study down and submit its driver as a job; gives the job's id.

    Raises:
        ConfigError, LeaseHeld, SlurmError: As for `sweep`, and for `submit_driver`.
    """
    from hpcmass.workflow.sweeps import check_study, lay_down

    check_study(job, site)
    make_dir(folder)
    with Lease(folder / "lease"):
        lay_down(job, site, folder)
    words = [*hpcmass_command(), "sweep", "resume", str(folder), "--project", str(project.root)]
    return submit_driver(
        folder, words, site=site, target=target, leases=[folder / "lease"],
        name=f"hpcmass-sweep-{job.name}", cwd=project.root, slurm=slurm,
    )  # fmt: skip


def run_here(folder: Path) -> NoReturn:
    """Become a folder's driver.

    Raises:
        NotFound: The folder has none.
    """
    file = DriverFile.read(folder)
    os.chdir(file.cwd)
    try:
        os.execvp(file.command[0], list(file.command))
    except OSError as error:
        raise HpcmassError(f"cannot start {file.command[0]!r}: {error.strerror}", where=folder) from error
