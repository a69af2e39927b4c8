"""Writers killed with -9 within every call of the system, and at random moments; many processes at once."""

import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcmass.data import append, open_dataset, reshard, verify_dataset

spec = importlib.util.spec_from_file_location("writing_tools", Path(__file__).with_name("writing_tools.py"))
tools = importlib.util.module_from_spec(spec)
sys.modules["writing_tools"] = tools
spec.loader.exec_module(tools)


@pytest.fixture(autouse=True)
def kernel_that_stays_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process has written the kernel has: nothing need reach the disk, which a busy one makes slow."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


Work = Callable[[Path], object]


def write_rank(folder: Path) -> object:
    """Rank 0 of two; rank 1 has finished before, so that this one publishes."""
    return tools.produce(folder, 0, 10, rank=0, ranks=2)


def append_file(folder: Path) -> object:
    return append(folder, folder.parent / "more.npz", shards=2)


def reshard_it(folder: Path) -> object:
    return reshard(open_dataset(folder.parent / "source"), folder, shards=2)


def prepare(parent: Path, work: Work) -> Path:
    """A folder in which the work can begin."""
    parent.mkdir()
    folder = parent / "d"
    if work is write_rank:
        tools.produce(folder, 100, 3, rank=1, ranks=2)
    elif work is append_file:
        tools.produce(folder, 0, 5)
        np.savez(parent / "more.npz", **tools.samples(100, 9))
    else:
        tools.produce(parent / "source", 0, 9, shard_samples=2)
    return folder


def nothing_half(folder: Path, whole: dict[str, object]) -> None:
    """What a reader can see is what it will be, or not there yet."""
    seen = {name: data for name, data in tools.content(folder).items() if not name.startswith(".")}
    assert seen.items() <= whole.items()
    if any(name.startswith("manifest") for name in seen):
        assert verify_dataset(folder).ok


def begin_again_until_done(folder: Path, work: Work) -> int:
    """A scheduler that starts the work anew; what is complete already may say so."""

    def once_more() -> object:
        try:
            return work(folder)
        except Exception as error:
            if error.data.get("complete"):
                return None
            raise

    return tools.ended(tools.fork(once_more))


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("work", [write_rank, append_file, reshard_it])
def test_killed_within_a_call_of_the_system(tmp_path: Path, work: Work, step: int) -> None:
    """Within every `step`th of the calls that change files or folders."""
    undisturbed = prepare(tmp_path / "undisturbed", work)
    work(undisturbed)
    whole = tools.content(undisturbed)
    number, killed = 1, 0
    while True:
        folder = prepare(tmp_path / f"at-{number}", work)
        code = tools.ended(tools.fork(lambda at=folder: work(at), dies_at=number))
        nothing_half(folder, whole)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert begin_again_until_done(folder, work) == 0, number
        assert tools.content(folder) == whole, f"killed within call {number}"
        number, killed = number + step, killed + 1
    assert killed > 5


def race(folder: Path, delays: random.Random, kills: int, works: list[Callable[[], object]]) -> None:
    """All works at once, each killed at random and begun again, until `kills` were killed; then to the end."""
    left = dict(enumerate(works))
    while left:
        pids = {number: tools.fork(work) for number, work in left.items()}
        if kills > 0:
            # A moment of the writing, whichever: nothing is expected of it.
            time.sleep(delays.random() * 0.2)
            for pid in pids.values():
                if delays.random() < 0.7:
                    os.kill(pid, signal.SIGKILL)
        for number, pid in pids.items():
            code = tools.ended(pid)
            assert code in (0, -signal.SIGKILL), number
            kills -= code != 0
            if code == 0:
                del left[number]


def ranks_of(folder: Path) -> list[Callable[[], object]]:
    def work(rank: int) -> object:
        return tools.produce(folder, 100 * rank, 5 + 4 * rank, rank=rank, ranks=8, shard_samples=3)

    return [lambda rank=rank: work(rank) for rank in range(8)]


@pytest.mark.parametrize("kills", [12, pytest.param(50, marks=pytest.mark.soak)])
def test_eight_processes_killed_at_random(tmp_path: Path, kills: int) -> None:
    for work in ranks_of(tmp_path / "undisturbed"):
        work()
    race(tmp_path / "d", random.Random(0), kills, ranks_of(tmp_path / "d"))
    assert tools.content(tmp_path / "d") == tools.content(tmp_path / "undisturbed")
    tools.check_samples(tmp_path / "d", [100 * rank + i for rank in range(8) for i in range(5 + 4 * rank)])


def test_additions_at_once_all_land_whole_and_in_some_order(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    tools.produce(folder, 0, 5)
    works = []
    for number in range(1, 6):
        np.savez(tmp_path / f"{number}.npz", **tools.samples(100 * number, 4 + number))
        works.append(lambda path=tmp_path / f"{number}.npz", name=f"n{number}": append(folder, path, name=name))
    race(folder, random.Random(1), 0, works)
    manifest = open_dataset(folder).manifest
    names = [part["name"] for part in manifest.source["parts"]]
    assert (names[0], sorted(names[1:])) == (None, ["n1", "n2", "n3", "n4", "n5"])
    numbers = list(range(5))
    for name in names[1:]:
        numbers += range(100 * int(name[1]), 100 * int(name[1]) + 4 + int(name[1]))
    tools.check_samples(folder, numbers)
    assert verify_dataset(folder).ok
    assert len(list(folder.glob("manifest-*.json"))) == 6
    assert list(folder.glob(".*")) == []


@pytest.mark.soak
def test_additions_killed_at_random_land_once(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    tools.produce(folder, 0, 5)

    def work(number: int) -> object:
        return tools.produce(folder, 100 * number, 9, append=f"n{number}", shard_samples=2)

    race(folder, random.Random(2), 50, [lambda number=number: work(number) for number in range(1, 9)])
    parts = open_dataset(folder).manifest.source["parts"]
    assert sorted(part["name"] for part in parts[1:]) == [f"n{number}" for number in range(1, 9)]
    tools.check_samples(
        folder, [*range(5), *(100 * int(part["name"][1]) + i for part in parts[1:] for i in range(9))]
    )
    assert list(folder.glob(".*")) == []
