"""What a rank says of its start: how long each part of it took, and where it runs."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from hpcmass.config import Job
from hpcmass.errors import HpcmassError
from hpcmass.files import process_start, replace_json
from hpcmass.runs import RunFolder
from hpcmass.train.comm.base import Communicator

_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


class Startup:
    """Seconds from the start of this process to the end of each part of its start.

    Attributes:
        began: When the process started, in seconds since the epoch.
    """

    def __init__(self) -> None:
        age = _process_age_s()
        self.began = time.time() - age
        self._zero = time.monotonic() - age
        self._parts: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Say that a part is done; the first word counts."""
        self._parts.setdefault(part, round(time.monotonic() - self._zero, 3))

    def record(self, attempt: int) -> dict[str, Any]:
        """The record for `metrics.jsonl`."""
        return {"kind": "start", "attempt": attempt, "began": self.began, "parts": dict(self._parts)}


def _process_age_s() -> float:
    """Seconds since this process was started; 0.0 where the system does not tell."""
    ticks = process_start(os.getpid())
    if ticks is None:
        return 0.0
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return max(0.0, age)


def place_of(rank: int) -> dict[str, Any]:
    """Where this rank runs: host, process, the cores that it may use, and the GPUs that it sees."""
    cores = sorted(os.sched_getaffinity(0))
    devices = next((os.environ[name] for name in _DEVICES if os.environ.get(name)), "")
    return {"rank": rank, "host": socket.gethostname(), "pid": os.getpid(), "cores": cores, "gpus": devices}


def write_places(run: RunFolder, attempt: int, places: Sequence[dict[str, Any]]) -> None:
    """Write down where the ranks of an attempt run: for people only, so a full disk is no reason to end."""
    with contextlib.suppress(HpcmassError):
        replace_json(
            run.path / "ranks" / f"attempt-{attempt}.json",
            {"format": 1, "attempt": attempt, "ranks": list(places)},
        )


def start_in_words(
    job: Job, comm: Communicator, attempt: int, from_step: int, unlike: Sequence[str]
) -> list[str]:
    """Lines for the user when training begins; `unlike`: what may keep a reproducible run from being so."""
    many = f"{comm.size} rank{'s' * (comm.size != 1)} ({comm.name})"
    said = [
        f"going on from step {from_step} on {many}, attempt {attempt}" if attempt > 1 else f"training on {many}"
    ]
    said += [f"warning: {warning}" for warning in unlike]
    train = job.train
    if train.lr_factor != 1.0:
        said.append(
            f"lr {train.scaled_lr:.6g} = {train.lr:g} × {train.lr_factor:.4g} "
            f"({train.lr_scaling}, global_batch {train.global_batch} to lr_batch {train.lr_batch})"
        )
    return said


def how_it_trains(
    job: Job, comm: Communicator, settled: dict[str, Any] | None, unlike: Sequence[str]
) -> dict[str, Any]:
    """What the first record of an attempt says of how it trains."""
    train = job.train
    how = {"backend": comm.name, "ranks": comm.size, "reduction": comm.reduction, "lr": train.scaled_lr}
    how |= {name: getattr(train, name) for name in ("lr_scaling", "precision", "compression", "compile")}
    if settled is not None:
        how["reproducible"] = {**settled, "warnings": list(unlike)}
        how["reduction"] = "in the order of micro-batches"
    return how
