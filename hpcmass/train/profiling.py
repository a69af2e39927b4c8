"""Traces of some steps: torch's profiler on every rank, and Horovod's timeline.

They lie in the run's folder `profile/`: `trace-rank-N.json`, and `horovod-timeline.json`; chrome://tracing and
https://ui.perfetto.dev open both.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from hpcmass.files import publishing, storage_errors
from hpcmass.train.comm.base import Communicator

WAIT_STEPS, WARM_UP_STEPS = 2, 1
"""Steps before the traced ones: the first are unlike all others, and one warms the profiler up."""


def allow_timeline(steps: int) -> None:
    """Before Horovod starts: that its timeline may be begun later."""
    if steps:
        os.environ.setdefault("HOROVOD_TIMELINE", "DYNAMIC")


class Profiler:
    """Traces `steps` steps of this rank from where it is; does nothing where they are 0."""

    def __init__(self, steps: int, run: Path, comm: Communicator, say: Callable[[str], None]) -> None:
        """Prepare.

        Args:
            steps: Steps to trace.
            run: The run's folder.
            comm: The ranks.
            say: A line for the user (rank 0).
        """
        self._steps, self._folder, self._comm, self._say = steps, run / "profile", comm, say
        self._profile: Any = None
        self._done = 0

    def start(self) -> None:
        """Begin, in the training's thread.

        Raises:
            StorageError: The folder cannot be made.
        """
        if not self._steps:
            return
        with storage_errors(self._folder, "make the folder"):
            self._folder.mkdir(exist_ok=True)
        activities = [ProfilerActivity.CPU]
        if self._comm.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        plan = schedule(wait=WAIT_STEPS, warmup=WARM_UP_STEPS, active=self._steps, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._export)
        self._profile.start()
        self._comm.start_timeline(self._folder / "horovod-timeline.json")

    def step(self) -> None:
        """After every step."""
        if self._profile is None:
            return
        self._profile.step()
        self._done += 1
        if self._done == WAIT_STEPS + WARM_UP_STEPS + self._steps:
            self.close()

    def close(self) -> None:
        """End; what was traced so far is written."""
        if self._profile is not None:
            open_one, self._profile = self._profile, None
            open_one.stop()
            self._comm.stop_timeline()

    def _export(self, traced: torch.profiler.profile) -> None:
        path = self._folder / f"trace-rank-{self._comm.rank}.json"
        with storage_errors(path, "write the trace"):
            path.unlink(missing_ok=True)  # of an attempt before
        scratch = path.with_suffix(".part.json")  # the profiler goes by the suffix
        traced.export_chrome_trace(str(scratch))
        with storage_errors(path, "write the trace"), publishing(path) as temporary:
            shutil.move(scratch, temporary)
        if self._comm.rank == 0:
            self._say(f"traces of {self._steps} steps are in {self._folder}")
