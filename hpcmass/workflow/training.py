"""Train a job: in this process, as one of the ranks that a launcher started, or by starting the ranks."""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hpcmass.config import Job, Project, Target, job_from_values, job_to_toml, load_job, load_site
from hpcmass.errors import ConfigError
from hpcmass.launch import detect_ranks
from hpcmass.runs import RunFolder, Status
from hpcmass.workflow.targets import target_of


def train(
    job: Job | Path | str,
    project: Project,
    *,
    sets: Sequence[str] = (),
    run_name: str | None = None,
    run_folder: Path | str | None = None,
    ranks: int | None = None,
    backend: str | None = None,
    fresh: bool = False,
    site_file: str | None = None,
    console: bool = True,
) -> tuple[RunFolder, Status]:
    """Train what a job says, or go on with its run.

    Args:
        job: The job, or its file.
        project: Where its data and runs lie.
        sets: Overrides of a job file, `key=value`.
        run_name: Name of the run; default: the job's.
        run_folder: The run's folder itself, instead of a name.
        ranks: Ranks to start; default: `resources.ranks`. Under a launcher its ranks are taken.
        backend: Overrides `train.backend`.
        fresh: Begin anew; an old run of that name is kept under another one.
        site_file: The site file.
        console: Whether rank 0 shows its progress.

    Returns:
        The run's folder, and its status when it ended.
    """
    sets = [*sets, *([f'train.backend="{backend}"'] if backend else [])]
    if not isinstance(job, Job):
        job = load_job(job, sets)
    if job.command is not None:
        raise ConfigError(
            "a job with 'command' has nothing to train by itself",
            where=job.name,
            hint="start the script with: hpcmass run -- COMMAND, or search with: hpcmass sweep JOB",
        )
    run = RunFolder(run_folder or project.run_path(run_name or job.name))
    if job.train.mode == "per-shard":
        from hpcmass.workflow.per_shard import train_per_shard

        return run, train_per_shard(job, run, project, load_site(site_file), fresh=fresh)
    under_launcher = detect_ranks(os.environ).source != "none"
    ranks = ranks or job.resources.ranks
    if under_launcher or ranks == 1:
        from hpcmass.train.rank import train_rank

        return run, train_rank(job, run, project, comm_name=job.train.backend, console=console, fresh=fresh)
    return run, _start(job, run, project, ranks, target_of(job, load_site(site_file)), fresh)


def _start(job: Job, run: RunFolder, project: Project, ranks: int, target: Target, fresh: bool) -> Status:
    """Start the ranks: each is this command again, which then finds itself under a launcher."""
    from hpcmass.train.start import start_ranks

    with tempfile.TemporaryDirectory(prefix="hpcmass-job-") as scratch:
        job_file = Path(scratch) / "job.toml"
        job_file.write_text(job_to_toml(job), encoding="utf-8")
        argv = [sys.executable, "-m", "hpcmass", "train", str(job_file), "--project", str(project.root)]
        argv += ["--run-folder", str(run.path.absolute()), *(["--fresh"] if fresh else [])]
        return start_ranks(
            argv,
            run=run,
            ranks=ranks,
            target=target,
            threads_per_rank=job.resources.threads_per_rank,
            backend=job.train.backend,
        )


def run_command(
    command: Sequence[str],
    project: Project,
    *,
    ranks: int = 1,
    run_name: str | None = None,
    threads_per_rank: int | None = None,
    quiet: bool = False,
    site_file: str | None = None,
) -> tuple[RunFolder, Status]:
    """Start a script of the user's own on several ranks.

    Args:
        command: Its words; `python` is the interpreter that runs hpcmass.
        project: Where its run lies.
        ranks: Processes to start.
        run_name: Name of the run; default: the script's name, and a number where that is taken.
        threads_per_rank: CPU threads a rank; default: the cores shared out.
        quiet: Keep rank 0's output to its log file.
        site_file: The site file.

    Returns:
        The run's folder, and its status when it ended.
    """
    from hpcmass.train.script import run_script

    resources = {"ranks": ranks, **({"threads_per_rank": threads_per_rank} if threads_per_rank else {})}
    run = RunFolder(project.run_path(run_name)) if run_name else _free_run(project, _script_name(command))
    job = job_from_values({"name": run.path.name, "command": list(command), "resources": resources})
    site = load_site(site_file)
    status = run_script(
        list(command),
        run=run,
        job=job,
        ranks=ranks,
        target=target_of(job, site),
        threads_per_rank=threads_per_rank,
        cwd=Path.cwd(),
        console=not quiet,
    )
    return run, status


def _script_name(command: Sequence[str]) -> str:
    """The script's name without its suffix, held to what a run's name may hold."""
    words = [word for word in command if not word.startswith("-")]
    script = next((word for word in words if word.endswith((".py", ".sh"))), words[0] if words else "run")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(script).stem).strip("-._")
    return name[:80] or "run"


def _free_run(project: Project, name: str) -> RunFolder:
    for number in itertools.count(1):
        run = RunFolder(project.run_path(name if number == 1 else f"{name}-{number}"))
        if not run.path.exists():
            return run
    raise AssertionError
