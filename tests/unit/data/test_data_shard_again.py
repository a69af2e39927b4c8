"""`shard` by several ranks, killed at any moment and begun again: the same bytes, and nothing half in between."""

import importlib.util
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hpcmass.data import verify_dataset
from hpcmass.data.sharding import plan as plan_module
from hpcmass.data.sources import open_source
from hpcmass.data.write import shard
from hpcmass.errors import DataError, HpcmassError, LeaseHeld, RankFailed

spec = importlib.util.spec_from_file_location("writing_tools", Path(__file__).with_name("writing_tools.py"))
tools = importlib.util.module_from_spec(spec)
sys.modules["writing_tools"] = tools
spec.loader.exec_module(tools)

N = 60
OPTIONS = {
    "plain": {"shards": 2, "splits": {"a": 0.7, "b": 0.3}, "strategy": "stratified"},
    "compressed": {"shards": 3, "compression": "gzip-4"},
    "table": {"shards": 2, "stack": ["p", "q"]},
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six stretches of two blocks, several groups of shards; and a kernel that stays up: nothing need reach the disk."""
    monkeypatch.setattr(plan_module, "BLOCK_BYTES", 200)
    monkeypatch.setattr(plan_module, "STRETCHES", (6, 128))
    monkeypatch.setattr(plan_module, "GROUP_BYTES", 700)
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def prepare(parent: Path, kind: str = "plain") -> Path:
    """A source, alike whenever it is made; and the folder that it is to be cut into."""
    parent.mkdir(exist_ok=True)
    if kind == "table":
        rows = [f"{i},{i / 4},{i % 3}" for i in range(N)]
        (parent / "s.csv").write_text("\n".join(["p,q,label", *rows]) + "\n")
    else:
        np.savez(parent / "s.npz", **tools.samples(0, N))
    return parent / "d"


def cut(out: Path, kind: str = "plain", **more: object) -> object:
    source = out.parent / ("s.csv" if kind == "table" else "s.npz")
    return shard(source, out, **{"workers": 1, **OPTIONS[kind], **more})


def content(out: Path) -> dict[str, object]:
    """What lies beside the source, hidden things too."""
    return {name: data for name, data in tools.content(out.parent).items() if not name.startswith("s.")}


def finished(work: Callable[[], object]) -> int:
    """Begun once more, as a scheduler does; what is complete already may say so."""

    def once_more() -> object:
        try:
            return work()
        except HpcmassError as error:
            if error.data.get("complete"):
                return None
            raise

    return tools.ended(tools.fork(once_more))


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("kind", list(OPTIONS))
def test_killed_within_a_call_of_the_system(tmp_path: Path, kind: str, step: int) -> None:
    """Within every `step`th of the calls that change files or folders."""
    undisturbed = prepare(tmp_path / "undisturbed", kind)
    cut(undisturbed, kind)
    whole = content(undisturbed)
    number, killed = 1, 0
    while True:
        out = prepare(tmp_path / f"at-{number}", kind)
        code = tools.ended(tools.fork(lambda at=out: cut(at, kind), dies_at=number))
        if out.exists():
            assert {name: data for name, data in content(out).items() if name.startswith("d")} == whole
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert finished(lambda at=out: cut(at, kind)) == 0, number
        assert content(out) == whole, f"killed within call {number}"
        number, killed = number + step, killed + 1
    assert killed > 5


def test_killed_while_it_overwrites(tmp_path: Path) -> None:
    undisturbed = prepare(tmp_path / "undisturbed")
    cut(undisturbed, seed=7)
    number = 3
    while True:
        out = prepare(tmp_path / f"at-{number}")
        first = cut(out)
        code = tools.ended(tools.fork(lambda at=out: cut(at, seed=7, overwrite=True), dies_at=number))
        if code == 0:
            break
        if out.exists():
            seen = json.loads((out / "a" / "manifest-000001.json").read_text())["id"]
            assert seen == first[0].id or tools.content(out) == tools.content(undisturbed)
        assert finished(lambda at=out: cut(at, seed=7, overwrite=True)) == 0
        assert content(out) == content(undisturbed), number
        number += 61


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("kind", list(OPTIONS))
def test_ranks_do_not_show(tmp_path: Path, kind: str, ranks: int) -> None:
    undisturbed, out = prepare(tmp_path / "one", kind), prepare(tmp_path / "several", kind)
    cut(undisturbed, kind)
    pids = [
        tools.fork(lambda rank=rank: cut(out, kind, rank=rank, ranks=ranks, start="s")) for rank in range(ranks)
    ]
    assert [tools.ended(pid) for pid in pids] == [0] * ranks
    assert content(out) == content(undisturbed)


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_ranks_killed_at_random_and_begun_again_as_others(tmp_path: Path, kills: int) -> None:
    undisturbed, out = prepare(tmp_path / "one"), prepare(tmp_path / "several")
    cut(undisturbed)
    whole, draw, round_ = content(undisturbed), random.Random(0), 0
    while not out.exists():
        round_ += 1
        ranks = draw.choice([1, 2, 3])
        # Each start has a name of its own, or none at all, as under an mpiexec that tells nothing.
        start = draw.choice(["", f"start {round_}"])
        victim = draw.randrange(ranks) if kills > 0 else -1
        dies_at = draw.randrange(5, 60)
        pids = [
            tools.fork(
                lambda rank=rank, ranks=ranks, start=start: cut(out, rank=rank, ranks=ranks, start=start),
                dies_at=dies_at if rank == victim else None,
            )
            for rank in range(ranks)
        ]
        codes = [tools.ended(pid) for pid in pids[: victim + 1]]
        if victim >= 0 and codes[victim] == -signal.SIGKILL:
            kills -= 1
            for pid in pids[victim + 1 :]:
                os.kill(pid, signal.SIGKILL)  # as the launcher does
        for pid in pids[victim + 1 :]:
            tools.ended(pid)
    finished(lambda: cut(out))
    assert content(out) == whole


# -- what is gone on with ---------------------------------------------------------------------------------
class Stop(Exception):
    """What interrupts a sharding here."""


def stop_at(stage: str, count: int = 1) -> Callable[[str, int, int], None]:
    calls = 0

    def progress(at: str, done: int, total: int) -> None:
        nonlocal calls
        calls += at == stage
        if calls == count:
            raise Stop

    return progress


def interrupt(out: Path, stage: str, count: int = 1, kind: str = "plain") -> None:
    with pytest.raises(Stop):
        cut(out, kind, progress=stop_at(stage, count))
    assert not out.exists()


def staged(out: Path) -> Iterator[Path]:
    return out.parent.glob(".d.sharding/work-*/whole/**/*.h5")


@pytest.mark.parametrize("kind", ["plain", "compressed"])
def test_finished_shards_are_not_written_again(tmp_path: Path, kind: str) -> None:
    out, said = prepare(tmp_path / "w", kind), []
    interrupt(out, "checksum", 2, kind)
    record = [json.loads(path.read_text()) for path in out.parent.glob(".d.sharding/work-*/group-*.json")]
    known = {one["file"] for group in record for one in group["shards"]}
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in staged(out)}
    assert known
    cut(out, kind, note=said.append)
    assert "60 of 60 samples are written" in said[0]
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*.h5")}
    if kind == "compressed":
        assert {name: after[name] for name in known} == {name: before[name] for name in known}
    else:
        assert set(before.values()) <= {
            (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*.h5")
        }


def test_what_is_written_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, said, read = prepare(tmp_path / "w"), [], []
    interrupt(out, "shard", 6)
    opened = open_source(out.parent / "s.npz")
    kind = type(opened)
    plain = kind.read
    monkeypatch.setattr(kind, "read", lambda self, start, stop: read.append(start) or plain(self, start, stop))
    cut(out, note=said.append, strategy="stratified", by="label")
    assert "20 of 60 samples are written, 0 of 4 shards are finished" in said[0]
    assert read == [0, *range(20, 60, 5)]  # the labels of all, by which the cut is planned


def test_a_source_that_has_changed_is_noticed(tmp_path: Path) -> None:
    out, said = prepare(tmp_path / "w"), []
    interrupt(out, "shard", 5)
    np.savez(out.parent / "s.npz", **tools.samples(1000, N))
    cut(out, note=said.append)
    assert said == ["the source has changed since this was begun: begins anew"]
    fresh = tmp_path / "fresh" / "d"
    fresh.parent.mkdir()
    (fresh.parent / "s.npz").write_bytes((out.parent / "s.npz").read_bytes())
    cut(fresh)
    assert content(out) == content(fresh)


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    out = prepare(tmp_path / "w")

    def touch(stage: str, done: int, total: int) -> None:
        os.utime(out.parent / "s.npz", ns=(0, 0))

    with pytest.raises(DataError, match="has changed while"):
        cut(out, progress=touch)
    assert content(out) == {}


def test_another_command_begins_anew_and_says_so(tmp_path: Path) -> None:
    out, said = prepare(tmp_path / "w"), []
    interrupt(out, "shard", 5)
    with pytest.raises(DataError, match="no field"):
        cut(out, targets=["nothing"])
    cut(out, seed=3, note=said.append)
    assert said == ["what was begun there otherwise (cut) is given up: begins anew"]
    other = prepare(tmp_path / "other")
    cut(other, seed=3)
    assert tools.content(out) == tools.content(other)


@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_a_finished_shard_that_was_damaged_is_not_believed(tmp_path: Path, damage: str) -> None:
    out, said = prepare(tmp_path / "w"), []
    interrupt(out, "checksum")
    victim = next(staged(out))
    if damage == "removed":
        victim.unlink()
    else:
        os.truncate(victim, 100)
    cut(out, note=said.append)
    assert said == [f"{victim.name} is missing or was changed: begins anew"]
    assert all(verify_dataset(out / split).ok for split in "ab")


def test_a_record_that_a_loss_of_power_spoilt_is_done_without(tmp_path: Path) -> None:
    undisturbed, out = prepare(tmp_path / "one"), prepare(tmp_path / "w")
    cut(undisturbed)
    interrupt(out, "shard", 5)
    next(out.parent.glob(".d.sharding/work-*/stretch-00001.json")).write_bytes(b"")
    cut(out)
    assert content(out) == content(undisturbed)


def test_a_table_is_not_copied_again(tmp_path: Path) -> None:
    out = prepare(tmp_path / "w", "table")
    interrupt(out, "shard", 3, "table")
    stages: list[str] = []
    cut(out, "table", progress=lambda stage, done, total: stages.append(stage))
    assert "read" not in stages
    assert "shard" in stages


# -- several at once --------------------------------------------------------------------------------------
def held(out: Path, **more: object) -> int:
    """A process that is at work and stays so until there is a file `go`."""

    def hold(stage: str, done: int, total: int) -> None:
        (out.parent / "s.here").touch()
        while not (out.parent / "s.go").exists():
            time.sleep(0.01)

    pid = tools.fork(lambda: cut(out, progress=hold, **more))
    until = time.monotonic() + 120
    while not (out.parent / "s.here").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    return pid


def test_the_second_of_two_at_once_is_told_who_has_it(tmp_path: Path) -> None:
    out = prepare(tmp_path / "w")
    pid = held(out)
    for more in ({}, {"seed": 5}):
        with pytest.raises(LeaseHeld, match=f"process {pid} on "):
            cut(out, **more)
    # Of a second start of several ranks each is told.
    second = tools.fork(lambda: refused(out, rank=1, ranks=2, start="second"))
    with pytest.raises(LeaseHeld, match=f"process {pid} on "):
        cut(out, rank=0, ranks=2, start="second")
    assert tools.ended(second) == 0
    (out.parent / "s.go").touch()
    assert tools.ended(pid) == 0
    assert all(verify_dataset(out / split).ok for split in "ab")


def refused(out: Path, **more: object) -> None:
    with pytest.raises(LeaseHeld, match="being written by others"):
        cut(out, **more)


def test_the_reason_of_one_rank_ends_all(tmp_path: Path) -> None:
    undisturbed, out = prepare(tmp_path / "one"), prepare(tmp_path / "w")
    cut(undisturbed)

    def full(stage: str, done: int, total: int) -> None:
        if stage == "shard" and done > 0:
            raise HpcmassError("the disk of this node is full")

    def other() -> None:
        with pytest.raises(HpcmassError, match=r"^the disk of this node is full"):
            cut(out, rank=1, ranks=2, start="x", progress=full)

    pid = tools.fork(other)
    with pytest.raises(RankFailed, match=r"rank 1 \(.*\) has ended: the disk of this node is full"):
        cut(out, rank=0, ranks=2, start="x")
    assert tools.ended(pid) == 0
    assert not out.exists()
    cut(out)
    assert content(out) == content(undisturbed)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_other(tmp_path: Path, victim: int) -> None:
    out = prepare(tmp_path / "w")

    def die(stage: str, done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pid = tools.fork(lambda: cut(out, rank=victim, ranks=2, start="x", progress=die))
    with pytest.raises(RankFailed, match=f"rank {victim} of 2 has ended|rank 0 "):
        cut(out, rank=1 - victim, ranks=2, start="x")
    assert tools.ended(pid) == -signal.SIGKILL
    assert not out.exists()


def test_ranks_that_see_different_sources_are_refused(tmp_path: Path) -> None:
    out = prepare(tmp_path / "w")
    (tmp_path / "w" / "elsewhere").mkdir()
    np.savez(tmp_path / "w" / "elsewhere" / "s.npz", **tools.samples(0, N + 1))

    def other() -> None:
        with pytest.raises(DataError, match="sees another source"):
            shard(tmp_path / "w" / "elsewhere" / "s.npz", out, rank=1, ranks=2, start="x", **OPTIONS["plain"])

    pid = tools.fork(other)
    with pytest.raises(RankFailed, match="sees another source"):
        cut(out, rank=0, ranks=2, start="x")
    assert tools.ended(pid) == 0
    assert not out.exists()
