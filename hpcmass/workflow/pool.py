"""Workers under Parsl: started, fed, and ended so that no process is left, however the driver ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import parsl
from parsl.dataflow.dflow import DataFlowKernel
from parsl.errors import ConfigurationError

from hpcmass.config import Target
from hpcmass.errors import ConfigError, LaunchError
from hpcmass.files import make_dir, storage_errors
from hpcmass.workflow.parsl_site import LABEL, parsl_config
from hpcmass.workflow.watchdog import TAG, Watchdog, end_tagged

GRACE_S = 15.0


class Pool:
    """Workers that run functions; open one with `open_pool`."""

    def __init__(self, kernel: DataFlowKernel, tag: str) -> None:
        self._kernel = kernel
        self.tag = tag

    def run(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a worker call a function of an importable module.

        The future holds an exception when the worker was lost, or when the function raised.
        """
        app = parsl.python_app(function, data_flow_kernel=self._kernel, executors=[LABEL], cache=False)
        future: Future[Any] = app(*args)
        return future


@contextlib.contextmanager
def open_pool(
    target: Target, *, parallel: int, folder: Path, threads: int | None = None, grace_s: float = GRACE_S
) -> Iterator[Pool]:
    """Start `parallel` workers on a target; end them and all that they started when the body ends.

    Args:
        target: What the site offers.
        parallel: Workers.
        folder: Parsl's scripts and logs go to `folder/parsl`.
        threads: CPU threads a worker may use; by default its share of the cores.
        grace_s: How long what runs may take to end by itself (to write a checkpoint, say), in seconds.

    Raises:
        ConfigError: The target's kind is not known.
    """
    tag = uuid.uuid4().hex
    environment = worker_environment(target, parallel, threads, tag)
    with _parsl_dir(folder) as run_dir, Watchdog(tag, grace_s=grace_s):
        config = parsl_config(target, parallel=parallel, run_dir=run_dir, environment=environment)
        try:
            kernel = DataFlowKernel(config)
        except ConfigurationError as error:
            raise ConfigError(f"Parsl refuses its configuration: {error}") from error
        except BaseException:
            end_tagged(tag, grace_s=0)
            raise
        closing = threading.Event()
        threading.Thread(target=_watch_interchange, args=(kernel, closing), daemon=True).start()
        try:
            yield Pool(kernel, tag)
        finally:
            closing.set()
            told = _process_groups(kernel)
            try:
                kernel.cleanup()  # Sends TERM to the workers' process group.
            finally:
                end_tagged(tag, grace_s=grace_s, told=told)


def _watch_interchange(kernel: DataFlowKernel, closing: threading.Event) -> None:
    """Fail what is in flight when the interchange is gone; Parsl would wait for its word for ever."""
    executor = cast(Any, kernel.executors[LABEL])
    while not closing.wait(1.0):
        code = executor.interchange_proc.poll()
        if code is not None:
            executor.set_bad_state_and_fail_all(LaunchError(f"Parsl's interchange ended (exit code {code})"))
            return


def _process_groups(kernel: DataFlowKernel) -> set[int]:
    groups = set()
    for resource in cast(Any, kernel.executors[LABEL]).provider.resources.values():
        with contextlib.suppress(ProcessLookupError):
            groups.add(os.getpgid(resource["remote_pid"]))
    return groups


def worker_environment(target: Target, parallel: int, threads: int | None, tag: str) -> dict[str, str]:
    """What workers and all that they start find in their environment beside the driver's own."""
    share = threads or max(1, (target.cores or usable_cores()) // parallel)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # Parsl names its processes with setproctitle, which would write over the tag.
    environment = {TAG: tag, "SPT_NOENV": "1", **{name: str(share) for name in names}}
    home = Path(__file__).resolve().parents[2]
    if home != Path(sysconfig.get_path("purelib")).resolve():
        # hpcmass runs from a checkout: the workers are to find the same one.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
    return environment


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _parsl_dir(folder: Path) -> Iterator[Path]:
    """`folder/parsl`, or a temporary folder where a shell would read that path as something else."""
    try:
        parsl_config(Target(), parallel=1, run_dir=folder, environment={})
    except ConfigError:
        temporary = Path(tempfile.mkdtemp(prefix="hpcmass-parsl-"))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    with storage_errors(folder, "make the folder"):
        make_dir(folder / "parsl")
    yield folder / "parsl"
