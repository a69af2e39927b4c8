"""The slot in which a worker runs an item: noted in the run folder, and left in time before its block ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from types import FrameType
from typing import Any

from hpcmass.files import append_record
from hpcmass.runs import RunFolder
from hpcmass.sweep.attempts import SLOTS
from hpcmass.workflow import pilot

FILE = SLOTS


@dataclass(frozen=True)
class Slot:
    """Where a worker is.

    Attributes:
        target: Name of the target; empty for a worker of this machine.
        job_id: The block's Slurm job.
        host, node: The host's name, and the node's as Slurm calls it.
        slot: Number of the slot on the node.
        gpus: What `CUDA_VISIBLE_DEVICES` says, or None.
        nodes: Nodes that an item has.
        share: The part of them that is its own: 0.25 where four have a node.
    """

    target: str
    job_id: str
    host: str
    node: str
    slot: int
    gpus: str | None
    nodes: int = 1
    share: float = 1.0

    @classmethod
    def here(cls, env: Mapping[str, str] | None = None) -> Slot:
        """The slot of this worker."""
        env = os.environ if env is None else env
        host = socket.gethostname()
        return cls(
            target=env.get(pilot.TARGET, ""),
            job_id=env.get(pilot.JOB, ""),
            host=host,
            node=env.get("SLURMD_NODENAME", host),
            slot=int(env.get("PARSL_WORKER_RANK", "0")),
            gpus=env.get("CUDA_VISIBLE_DEVICES"),
            nodes=int(env.get(pilot.NODES, "1")),
            share=float(env.get(pilot.SHARE, "1")),
        )

    @contextlib.contextmanager
    def held(self, run: RunFolder, attempt: int) -> Iterator[None]:
        """Note in the run folder when this slot was taken for it and given back."""
        record = {"attempt": attempt, **asdict(self)}
        append_record(run.path / FILE, {"kind": "begin", **record, "time": time.time()})
        before = _cpu_s()
        try:
            yield
        finally:
            spent = {"cpu_s": round(_cpu_s() - before, 3), "time": time.time()}
            append_record(run.path / FILE, {"kind": "end", **record, **spent})


def _cpu_s() -> float:
    # Of this process and of what it started and waited for; ranks on other nodes are not in it.
    return sum(u.ru_utime + u.ru_stime for u in map(getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


class Ending:
    """Asks what runs here to checkpoint and stop (SIGUSR1) shortly before the block ends. A context manager.

    Attributes:
        asked: Whether it has.
    """

    def __init__(self, at: float | None) -> None:
        self._at = at
        self._closing = threading.Event()
        self._old: Any = None
        self.asked = False

    @classmethod
    def of_this_block(cls, env: Mapping[str, str] | None = None) -> Ending:
        """That of the block in which this worker runs; without one it never asks."""
        env = os.environ if env is None else env
        ends = env.get(pilot.ENDS, "")
        return cls(float(ends) - float(env.get(pilot.STOP_S, "0")) if ends.isdigit() else None)

    def __enter__(self) -> Ending:
        if self._at is not None and threading.current_thread() is threading.main_thread():
            # The handler of whoever trains is put on top of this one, so that the signal never ends the worker.
            self._old = signal.signal(signal.SIGUSR1, _nothing)
            threading.Thread(target=self._wait, daemon=True, name="hpcmass-ending").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._old is not None:
            signal.signal(signal.SIGUSR1, self._old)

    def _wait(self) -> None:
        assert self._at is not None
        while not self._closing.wait(max(0.2, min(60.0, self._at - time.time()))):
            if time.time() < self._at:
                continue
            self.asked = True
            if signal.getsignal(signal.SIGUSR1) is not _nothing:  # Else it has not begun to train.
                os.kill(os.getpid(), signal.SIGUSR1)
                return


def _nothing(_number: int, _frame: FrameType | None) -> None:
    return None
