"""Train a job: in this process, as one of the ranks that a launcher started, or by starting the ranks."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcmass.config import (
    Job,
    Project,
    Site,
    as_job,
    job_from_values,
    job_to_toml,
    load_site,
    read_run_job,
    site_to_toml,
)
from hpcmass.errors import ConfigError
from hpcmass.files import make_dir
from hpcmass.launch import detect_ranks, hpcmass_command
from hpcmass.runs import RunFolder, Status
from hpcmass.workflow.containers import needs_container, outside_error, rank_prefix, with_container
from hpcmass.workflow.placed import Placed, place_ranks
from hpcmass.workflow.targets import target_here


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
    container: str | None = None,
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
        container: An Apptainer image for every rank, in place of the target's.
        console: Whether rank 0 shows its progress.

    Returns:
        The run's folder, and its status when it ended.
    """
    sets = [*sets, *([f'train.backend="{backend}"'] if backend else [])]
    job = as_job(job, sets)
    if job.command is not None:
        raise ConfigError(
            "a job with 'command' has nothing to train by itself",
            where=job.name,
            hint="start the script with: hpcmass run -- COMMAND, or search with: hpcmass sweep JOB",
        )
    run = RunFolder(run_folder or project.run_path(run_name or job.name))
    site = with_container(load_site(site_file, project.site_file), container)
    launched = _launched(ranks)
    if job.train.mode == "per-shard":
        from hpcmass.workflow.per_shard import train_per_shard

        if launched is not None and launched > 1:
            raise ConfigError(
                "a per-shard job starts its own workers, and is not run by several ranks",
                where="train.mode",
                hint="run it without mpiexec",
            )
        return run, train_per_shard(job, run, project, site, fresh=fresh, console=console)
    target = target_here(job, site, os.environ)
    contained = needs_container(target)
    if launched is not None and contained:
        raise outside_error(target)
    placed = place_ranks(job.resources, target, env=os.environ, asked=ranks)
    ranks = placed.ranks
    here = placed.allocation is None or placed.allocation.host
    if launched is not None or (ranks == 1 and here and not contained):
        from hpcmass.train.rank import train_rank

        backend = job.train.backend
        return run, train_rank(job, run, project, comm_name=backend, console=console, fresh=fresh, site=site)
    if ranks > job.train.global_batch:
        raise ConfigError(
            f"{ranks} ranks cannot share a global batch of {job.train.global_batch}: some would have no sample",
            where="--ranks",
            hint="fewer ranks, or a larger train.global_batch",
        )
    return run, _start(job, run, project, site, placed, fresh=fresh, console=console)


def _launched(asked: int | None) -> int | None:
    """How many ranks a launcher around us has started, or None where this process is to start them.

    Raises:
        ConfigError: They are several, and another number is asked for.
    """
    found = detect_ranks(os.environ)
    if found.source == "none":
        return None
    if asked is None or asked == found.size:
        return found.size
    if found.size == 1:
        return None  # An `srun --pty bash`, say: one process, in which `--ranks 4` means what it says.
    raise ConfigError(
        f"{asked} ranks are asked for, but {found.size} were started ({found.source})",
        where="--ranks",
        hint="leave --ranks out under mpiexec or srun, or leave those out",
    )


def _start(
    job: Job, run: RunFolder, project: Project, site: Site, placed: Placed, *, fresh: bool, console: bool
) -> Status:
    """Start the ranks: each is this command again, which then finds itself under a launcher."""
    from hpcmass.train.start import start_ranks

    with _scratch(run, placed) as scratch:
        job_file, site_file = Path(scratch) / "job.toml", Path(scratch) / "site.toml"
        job_file.write_text(job_to_toml(job), encoding="utf-8")
        site_file.write_text(site_to_toml(site), encoding="utf-8")
        further = [Path(scratch), *_own_folders(placed)]
        container = rank_prefix(target_here(job, site, os.environ), job, project, run.path, further=further)
        argv = [*hpcmass_command(in_container=bool(container)), "train", str(job_file)]
        argv += ["--project", str(project.root), "--site", str(site_file)]
        argv += ["--run-folder", str(run.path.absolute()), *(["--fresh"] if fresh else [])]
        return start_ranks(
            argv,
            run=run,
            ranks=placed.ranks,
            target=placed.target,
            threads_per_rank=job.resources.threads_per_rank,
            backend=job.train.backend,
            console=console,
            layout=placed.layout,
            allocation=placed.allocation,
            container=container,
        )


def _own_folders(placed: Placed) -> list[Path]:
    """Where this machine's ranks and their keepers tell each other things; on several nodes beside the run."""
    return [Path(tempfile.gettempdir())] if placed.allocation is None else []


@contextlib.contextmanager
def _scratch(run: RunFolder, placed: Placed) -> Iterator[str]:
    """A folder for what the ranks are to read; on several nodes one that all of them see, beside the run."""
    if placed.allocation is None:
        with tempfile.TemporaryDirectory(prefix="hpcmass-job-") as folder:
            yield folder
        return
    parent = run.path.absolute().parent
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    make_dir(parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{run.path.name}-job-", dir=parent) as folder:
            yield folder
    finally:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()


def run_command(
    command: Sequence[str],
    project: Project,
    *,
    ranks: int | None = None,
    run_name: str | None = None,
    threads_per_rank: int | None = None,
    quiet: bool = False,
    site_file: str | None = None,
    container: str | None = None,
) -> tuple[RunFolder, Status]:
    """Start a script of the user's own on several ranks.

    Args:
        command: Its words; `python` is the interpreter that runs hpcmass.
        project: Where its run lies.
        ranks: Processes to start; default: 1, or in a Slurm job those that sbatch was asked for (`--ntasks`),
            else one a GPU, else one a node.
        run_name: Name of the run; default: the script's name, and a number where that is taken.
        threads_per_rank: CPU threads a rank; default: the cores shared out.
        quiet: Keep rank 0's output to its log file.
        site_file: The site file.
        container: An Apptainer image for every rank, in place of the target's.

    Returns:
        The run's folder, and its status when it ended.
    """
    from hpcmass.train.script import run_script

    run = RunFolder(project.run_path(run_name)) if run_name else _free_run(project, _script_name(command))
    site = with_container(load_site(site_file, project.site_file), container)
    threads = {"threads_per_rank": threads_per_rank} if threads_per_rank else {}
    values = {"name": run.path.name, "command": list(command), "resources": threads}
    job = job_from_values(values)
    target = target_here(job, site, os.environ)
    placed = place_ranks(job.resources, target, env=os.environ, asked=ranks, script=True)
    job = job_from_values({**values, "resources": {"ranks": placed.ranks, **threads}})
    if run.exists():
        _check_same(run, job)
    status = run_script(
        list(command),
        run=run,
        job=job,
        site=site,
        ranks=placed.ranks,
        target=placed.target,
        threads_per_rank=threads_per_rank,
        cwd=Path.cwd(),
        console=not quiet,
        layout=placed.layout,
        allocation=placed.allocation,
        container=rank_prefix(target, job, project, run.path, further=_own_folders(placed)),
    )
    return run, status


def _check_same(run: RunFolder, job: Job) -> None:
    """Refuse another command under the name of a run: a completed one would be shown as its success.

    Raises:
        ConfigError: The run was begun with another command.
    """
    begun = read_run_job(run.job_file)
    if begun.command != job.command:
        was = begun.command or []
        raise ConfigError(
            f"the run was begun with another command ({was if isinstance(was, str) else shlex.join(was)})",
            where=run.path,
            hint="give the run another name (--name NAME)",
        )


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
