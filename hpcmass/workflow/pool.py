"""Workers under Parsl: started, fed, and ended so that no process is left, however the driver ends."""

from __future__ import annotations

import atexit
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
from hpcmass.launch import usable_cores
from hpcmass.workflow.parsl_site import LABEL, parsl_config
from hpcmass.workflow.watchdog import TAG, Watchdog, end_tagged

GRACE_S = 15.0


class Pool:
    """Workers that run functions; open one with `open_pool`.

    Attributes:
        broken: Why no worker can be reached any more, or None.
    """

    def __init__(self, kernel: DataFlowKernel, tag: str) -> None:
        self._kernel = kernel
        self._lock = threading.Lock()
        self._waiting: set[Future[Any]] = set()
        self.tag = tag
        self.broken: LaunchError | None = None

    def run(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a worker call a function of an importable module.

        The future holds an exception when the worker was lost, or when the function raised, and a
        `LaunchError` when no worker can be reached any more.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self.broken is not None:
                future.set_exception(self.broken)
                return future
            self._waiting.add(future)
        app = parsl.python_app(function, data_flow_kernel=self._kernel, executors=[LABEL], cache=False)
        app(*args).add_done_callback(lambda done: self._settle(future, done))
        return future

    def _settle(self, future: Future[Any], done: Future[Any]) -> None:
        with self._lock:
            if future not in self._waiting:
                return
            self._waiting.discard(future)
        error = done.exception()
        future.set_result(done.result()) if error is None else future.set_exception(error)

    def watch(self, closing: threading.Event) -> None:
        """Fail what is in flight when the interchange is gone; Parsl would wait for its word for ever."""
        executor = cast(Any, self._kernel.executors[LABEL])
        while not closing.wait(1.0):
            code = executor.interchange_proc.poll()
            if code is not None:
                with self._lock:
                    self.broken = LaunchError(f"Parsl's interchange ended (exit code {code})")
                    waiting, self._waiting = self._waiting, set()
                for future in waiting:
                    future.set_exception(self.broken)
                return

    def close(self, grace_s: float) -> None:
        """End the workers and all that they started."""
        told: set[int] = set()
        try:
            if self.broken is None:
                told = _process_groups(self._kernel)
                self._kernel.cleanup()  # Sends TERM to the workers' process group.
            else:
                # Parsl's own way out would ask the interchange, and wait for its answer.
                atexit.unregister(self._kernel.atexit_cleanup)
        finally:
            end_tagged(self.tag, grace_s=grace_s, told=told)


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
        pool = Pool(kernel, tag)
        closing = threading.Event()
        threading.Thread(target=pool.watch, args=(closing,), daemon=True).start()
        try:
            yield pool
        finally:
            closing.set()
            pool.close(grace_s)


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
