"""What a worker does: run one run folder, whatever is in it.

A worker hands back the folder's path and nothing else. What came of the run stands in the folder; errors
of the run do not travel, so that nothing depends on pickling them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hpcmass.config import Job, Project, load_job, load_site
from hpcmass.errors import BlockLost, HpcmassError, LeaseHeld, RecipeError
from hpcmass.files import make_dir
from hpcmass.launch import hpcmass_command
from hpcmass.runs import RunFolder, State
from hpcmass.workflow import pilot
from hpcmass.workflow.containers import needs_container, rank_prefix
from hpcmass.workflow.slots import Ending, Slot
from hpcmass.workflow.targets import named_target, target_of


def run_trial(run_dir: str, project_root: str, ranks: int) -> str:
    """Run (or go on with) a run folder in this process, or by ranks that this process starts.

    Args:
        run_dir: The run folder, laid down before.
        project_root: The project folder, for the paths of `[data]`.
        ranks: Processes of the run; one is run in this process where the job has a recipe.

    Raises:
        LeaseHeld: Somebody else runs it.
        BlockLost: It was stopped because its block comes to its end; it goes on elsewhere.
    """
    run = RunFolder(run_dir)
    if run.status().state is State.COMPLETED:
        return run_dir
    attempt = run.status().attempt + 1
    ending = Ending.of_this_block()
    try:
        with Slot.here().held(run, attempt), ending, _output_to(run.log_file(attempt, 0)):
            _run(load_job(run.job_file), run, Project(Path(project_root)), ranks)
    except LeaseHeld:
        raise
    except SystemExit as error:
        _failed(run, attempt, RecipeError(f"the recipe ended its process (exit {error.code})", where=run_dir))
    except Exception as error:
        _failed(run, attempt, error)
    if ending.asked and run.status().state not in (State.COMPLETED, State.FAILED):
        raise BlockLost("its block came to the end of its time", where=run_dir, transient=True, cause="TIMEOUT")
    return run_dir


def _run(job: Job, run: RunFolder, project: Project, ranks: int) -> None:
    # The imports are here because torch takes seconds, and a worker imports only what its runs need.
    threads = job.resources.threads_per_rank
    site = load_site(run.path / "site.toml")
    here = os.environ.get(pilot.TARGET)  # Which target has room is known only now.
    target = named_target(here, site, "targets") if here else target_of(job, site)
    if here and ranks == 1:
        target = target.model_copy(update={"launcher": "auto"})  # A process; no mpiexec for one.
    if job.command is not None:
        from hpcmass.train.script import fill_command, run_script

        run_script(
            fill_command(job.command, job.params),
            run=run,
            ranks=ranks,
            target=target,
            threads_per_rank=threads or _threads(ranks),
            cwd=project.root,
            container=rank_prefix(target, job, project, run.path, cwd=project.root),
            console=False,
        )
    elif ranks > 1 or needs_container(target):
        from hpcmass.train.start import start_ranks

        container = rank_prefix(target, job, project, run.path)
        argv = [*hpcmass_command(in_container=bool(container)), "train", str(run.job_file)]
        argv += ["--project", str(project.root), "--run-folder", str(run.path.absolute())]
        start_ranks(
            argv,
            run=run,
            ranks=ranks,
            target=target,
            threads_per_rank=threads or _threads(ranks),
            backend=job.train.backend,
            console=False,
            container=container,
        )
    else:
        from hpcmass.train.rank import train_rank

        train_rank(job, run, project, comm_name="single", console=False)


def _threads(ranks: int) -> int:
    """CPU threads of one rank: this worker's share of the cores, shared out among its ranks."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) // ranks)


def _failed(run: RunFolder, attempt: int, error: BaseException) -> None:
    """Write down an error that the run did not write down itself, as one before its start."""
    status = run.status()
    if status.state in (State.FAILED, State.STOPPED, State.COMPLETED):
        return
    attempt = max(attempt, status.attempt)
    run.record_exception(attempt, 0, error)
    message = error.message if isinstance(error, HpcmassError) else f"{type(error).__name__}: {error}"
    run.update(state=State.FAILED, attempt=attempt, reason=message)


@contextlib.contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Let everything that this process (and C code in it) prints go to a file meanwhile."""
    make_dir(file.parent)
    saved = [os.dup(1), os.dup(2)]
    target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.close(target)
        yield
    finally:
        for number, handle in zip((1, 2), saved, strict=True):
            os.dup2(handle, number)
            os.close(handle)
