"""Seconds that training waits for a checkpoint, against one memcpy of the state, in turns: goal at most 1.3.

    python benchmarks/checkpoint_stall.py [--quick]

A network of 25 million parameters (4 million with --quick) and its AdamW state, 300 MB (48 MB), trained by hand between
checkpoints, so that each one is of a state that has changed. The memcpy copies one flat array of as many bytes
into another one: the faster of the C library's, in one thread, and torch's in all threads. The two take turns,
and the ratio is the median over those pairs. While they are measured nothing is being written (that is waited
for); what the writing costs is told beside: the steps while a checkpoint is written, against steps without,
and the checkpoint that training waits for whole (`train.checkpoint_background = false`). The first checkpoint
also takes its memory from the system; it is told too and not part of the ratio. `cpu_ratio` is the same in
processor time of the training thread, which other work on the machine disturbs less; with OMP_NUM_THREADS=1
it is all of the work.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hpcmass.config import job_from_values
from hpcmass.launch import RankEnv
from hpcmass.runs import RunFolder
from hpcmass.train.checkpoint import Mark
from hpcmass.train.comm import open_communicator
from hpcmass.train.keeping import Keeper

GOAL = 1.3


class Trained:
    """A model that trains, and its state."""

    def __init__(self, width: int, layers: int) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.batch = torch.randn(8, width)
        self.step()

    def step(self) -> float:
        """One step; its seconds."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(self.batch).square().mean().backward()
        self.optimizer.step()
        return time.perf_counter() - began

    def state(self) -> dict[str, object]:
        """As the loop's."""
        return {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict()}

    def keeper(self, folder: Path, background: bool) -> Keeper:
        """Writes it to a run folder of its own."""
        table = {"checkpoint_background": background, "keep_checkpoints": 1}
        job = job_from_values({"name": "stall", "command": ["true"], "train": table})
        comm = open_communicator("single", RankEnv(0, 1, 0, 1, source="none"))
        names = [name for name, _ in self.model.named_parameters()]
        return Keeper(RunFolder(folder), comm, job.train, self.state, names, folder / "recipe.py", print)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a state of 48 MB, fewer rounds")
    quick = parser.parse_args().quick
    trained = Trained(1000, 4 if quick else 25)
    nbytes = 4 * 3 * sum(p.numel() for p in trained.model.parameters())
    source, target = torch.ones(nbytes // 4), torch.zeros(nbytes // 4)
    folder = Path(tempfile.mkdtemp())
    copy = faster_copy(target, source)
    blocked, copies, plain, beside, whole = [], [], [], [], []  # type: ignore[var-annotated]
    try:
        keeper, waiting = trained.keeper(folder / "a", True), trained.keeper(folder / "b", False)
        for number in range(-1, 10 if quick else 15):
            mark = Mark(number + 2, 0, 0, 1)
            plain.append(trained.step())
            if number % 2:
                copies.append(timed(copy))
            blocked.append(timed(lambda mark=mark: keeper.keep(mark, wait=False)))  # type: ignore[misc]
            while keeper.flags()[0]:
                beside.append(trained.step())
            keeper.finish()
            if not number % 2:
                copies.append(timed(copy))
            if number % 4 == 0:
                whole.append(timed(lambda mark=mark: waiting.keep(mark, wait=False))[0])  # type: ignore[misc]
    finally:
        shutil.rmtree(folder)
    first, pairs = blocked[0][0], list(zip(blocked[1:], copies[1:], strict=True))
    copy_s, blocked_s = (statistics.median(one[0] for one in many[1:]) for many in (copies, blocked))
    ratio, by_cpu = (round(statistics.median(b[k] / c[k] for b, c in pairs), 3) for k in (0, 1))
    load = os.getloadavg()[0]
    print(f"state {nbytes / 1e6:.0f} MB, {torch.get_num_threads()} threads, load {load:.1f}")
    print(f"one memcpy {copy_s * 1e3:9.1f} ms  ({nbytes / copy_s / 1e9:.1f} GB/s)")
    print(f"training waits {blocked_s * 1e3:5.1f} ms  (the first time {first * 1e3:.1f} ms)")
    print(f"waits for all of it {statistics.median(whole) * 1e3:.1f} ms with checkpoint_background = false")
    if beside:
        print(
            f"a step {statistics.mean(plain) * 1e3:.1f} ms, {statistics.mean(beside) * 1e3:.1f} ms while one is written"
        )
    figure = {
        "name": "checkpoint_stall",
        "ratio": ratio,
        "unit": "of memcpy",
        "goal": GOAL,
        "met": ratio <= GOAL,
    }
    sync = round(statistics.median(whole) / copy_s, 1)
    print(
        json.dumps(
            {
                **figure,
                "cpu_ratio": by_cpu,
                "blocked_ms": round(blocked_s * 1e3, 1),
                "sync_ratio": sync,
                "load": round(load, 1),
            }
        )
    )


def faster_copy(target: torch.Tensor, source: torch.Tensor) -> Callable[[], object]:
    """The faster of the C library's memcpy and torch's, by a few tries."""

    def by_c() -> object:
        return ctypes.memmove(target.data_ptr(), source.data_ptr(), 4 * len(source))

    def by_torch() -> object:
        return target.copy_(source)

    tries = {copy: min(timed(copy)[0] for _ in range(5)) for copy in (by_c, by_torch)}
    return min(tries, key=lambda copy: tries[copy])


def timed(what: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of this thread's processor time."""
    began, used = time.perf_counter(), time.thread_time()
    what()
    return time.perf_counter() - began, time.thread_time() - used


if __name__ == "__main__":
    main()
