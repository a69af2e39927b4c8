"""Shards on a node's own disk: found again, evicted by age, never while somebody reads them."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcmass.data.manifest import ShardInfo
from hpcmass.data.stage import Arrival, Stage
from hpcmass.errors import CorruptError, NotFound, StorageError

BYTES = 1000


def content(number: int) -> bytes:
    return bytes([number]) * BYTES


def shard(number: int) -> ShardInfo:
    return ShardInfo(f"shard-{number:05d}.h5", 10, BYTES, hashlib.sha256(content(number)).hexdigest(), {"x": 0})


def put(arrival: Arrival, data: memoryview) -> None:
    arrival.write(data)
    arrival.check(data)


def bring(stage: Stage, number: int, *, used: float | None = None) -> Path:
    arrival = stage.receive(shard(number))
    data = memoryview(content(number))
    for piece in (data[:300], data[300:]):
        put(arrival, piece)
    place = arrival.finish(Path("from"))
    if used is not None:
        os.utime(place, (used, used))
    return place


def numbers(stage: Stage) -> list[int]:
    return sorted(n for n in range(10) if (stage.place(shard(n)) / shard(n).file).exists())


def left(stage: Stage) -> list[str]:
    return sorted(p.name for p in stage.folder.iterdir() if p.name != ".lock")


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def waits_for_a_lock() -> bool:
    """Whether a thread of this process waits for a flock: what the kernel says."""
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(line[1:3] == ["->", "FLOCK"] and line[5] == str(os.getpid()) for line in lines)


@contextlib.contextmanager
def other_job(program: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own, which has `Stage`, `shard`, `wait_for` and `Path`."""
    here = [str(Path(__file__).parent), str(Path(__file__).parents[3])]
    begin = f"import sys\nsys.path[:0] = {here!r}\nfrom test_data_stage import *\n"
    words = [sys.executable, "-c", begin + program]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield other
    finally:
        other.kill()
        other.communicate()


def test_what_arrived_is_found_by_the_next_job(tmp_path: Path) -> None:
    first = Stage(tmp_path)
    assert first.use([shard(1), shard(2)]) == [False, False]
    place = bring(first, 1)
    assert (place / "shard-00001.h5").read_bytes() == content(1)
    first.close()
    second = Stage(tmp_path)
    assert second.use([shard(1), shard(2)]) == [True, False]
    # Cut short, it is none.
    os.chmod(place / "shard-00001.h5", 0o600)
    os.truncate(place / "shard-00001.h5", 10)
    assert second.use([shard(1)]) == [False]
    second.close()
    assert left(second) == [place.name]


def test_what_was_touched_since_it_was_checked_is_not_trusted(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    place = bring(stage, 1)
    file = place / shard(1).file
    assert (place / "checked").read_text().split()[:2] == [shard(1).sha256, str(BYTES)]
    assert stage.use([shard(1)]) == [True]
    os.chmod(file, 0o600)
    file.write_bytes(content(2))  # of the same size
    assert stage.use([shard(1)]) == [False]
    # It is brought anew, and replaces what is there.
    assert bring(stage, 1).samefile(place)
    assert stage.use([shard(1)]) == [True]
    assert file.read_bytes() == content(1)
    # Nothing says that it was checked.
    (place / "checked").unlink()
    assert stage.use([shard(1)]) == [False]
    stage.close()
    assert left(stage) == [place.name]


def test_damage_that_only_reading_shows_is_found_by_checking_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    file = bring(stage, 1) / shard(1).file
    assert stage.check_again(shard(1))
    before = file.stat()
    os.chmod(file, 0o600)
    file.write_bytes(content(2))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stage.use([shard(1)]) == [True]
    assert not stage.check_again(shard(1))
    assert stage.use([shard(1)]) == [False]
    stage.close()


def test_a_wrong_byte_is_found_and_leaves_nothing(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    arrival = stage.receive(shard(1))
    put(arrival, memoryview(content(2)))
    with pytest.raises(CorruptError, match="checksum") as caught:
        arrival.finish(Path("/data/shard-00001.h5"))
    assert "/data/shard-00001.h5" in str(caught.value)
    stage.close()
    assert left(stage) == []


def test_the_longest_unused_gives_way(tmp_path: Path) -> None:
    stage = Stage(tmp_path, limit_bytes=3 * BYTES)
    now = time.time()
    for number, age in ((1, 300), (2, 900), (3, 600)):
        bring(stage, number, used=now - age)
    assert stage.make_room(2 * BYTES)
    assert numbers(stage) == [1]
    assert not stage.make_room(4 * BYTES)
    assert numbers(stage) == [1], "nothing goes in vain"
    assert not Stage(tmp_path).make_room(1 << 60)
    assert numbers(stage) == [1]
    stage.close()


def test_what_another_process_reads_stays(tmp_path: Path) -> None:
    stage = Stage(tmp_path, limit_bytes=3 * BYTES)
    for number in (1, 2, 3):
        bring(stage, number)
    program = f"""
stage = Stage(Path({str(tmp_path)!r}))
print(stage.use([shard(2)]), flush=True)
sys.stdin.read()
"""
    with other_job(program) as other:
        assert other.stdout.readline() == "[True]\n"
        assert not stage.make_room(3 * BYTES)
        assert numbers(stage) == [1, 2, 3]
        assert stage.make_room(2 * BYTES)
        assert numbers(stage) == [2]
    # It was killed, and left its mark; nobody reads now.
    assert stage.make_room(3 * BYTES)
    assert numbers(stage) == []
    stage.close()
    assert left(stage) == []


def test_a_shard_is_found_before_or_after_an_eviction_never_during_it(tmp_path: Path) -> None:
    stage = Stage(tmp_path, limit_bytes=BYTES)
    bring(stage, 1)
    program = f"""
folder = Path({str(tmp_path)!r})
look = Stage._in_use
def slowly(self):
    found = look(self)
    (folder / "looked").touch()
    wait_for((folder / "go").exists)
    return found
Stage._in_use = slowly
print(Stage(folder, {BYTES}).make_room({BYTES}), flush=True)
"""
    with other_job(program) as other, ThreadPoolExecutor(1) as threads:
        wait_for((tmp_path / "looked").exists)
        using = threads.submit(stage.use, [shard(1)])
        wait_for(lambda: using.done() or waits_for_a_lock())
        (tmp_path / "go").touch()
        assert other.stdout.readline() in ("True\n", "False\n")
        assert using.result() == [numbers(stage) == [1]]
    stage.close()


def test_a_job_is_seen_by_others_from_its_beginning(tmp_path: Path) -> None:
    stage = Stage(tmp_path, limit_bytes=BYTES)
    bring(stage, 1)
    program = f"""
folder = Path({str(tmp_path)!r})
lock = fcntl.flock
def slowly(handle, how):
    if os.readlink(f"/proc/self/fd/{{handle}}").rpartition("/")[2].startswith("use-") and how & fcntl.LOCK_EX:
        (folder / "made").touch()
        wait_for((folder / "go").exists)
    lock(handle, how)
fcntl.flock = slowly
stage = Stage(folder)
print(stage.use([shard(1)]), flush=True)
sys.stdin.read()
"""
    with other_job(program) as other, ThreadPoolExecutor(1) as threads:
        wait_for((tmp_path / "made").exists)
        making = threads.submit(stage.make_room, 0)  # sweeps
        wait_for(lambda: making.done() or waits_for_a_lock())
        (tmp_path / "go").touch()
        assert other.stdout.readline() == "[True]\n"
        assert making.result()
        assert not stage.make_room(BYTES)
        assert numbers(stage) == [1]
    stage.close()


def test_a_job_waits_for_another_that_looks_around(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    other = Stage(tmp_path)
    handle = os.open(stage.folder / ".lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    with ThreadPoolExecutor(1) as threads:
        third = threads.submit(Stage, tmp_path)
        wait_for(lambda: third.done() or waits_for_a_lock())
        assert not third.done()
        os.close(handle)
        third.result().close()
    stage.close()
    other.close()
    assert left(stage) == []


def test_what_the_process_itself_is_going_to_read_stays(tmp_path: Path) -> None:
    stage = Stage(tmp_path, limit_bytes=2 * BYTES)
    bring(stage, 1)
    assert stage.use([shard(1), shard(2), shard(3)]) == [True, False, False]
    assert not stage.make_room(2 * BYTES)
    assert numbers(stage) == [1]
    stage.close()


def test_parts_of_a_process_that_is_gone_are_removed_and_of_a_living_one_not(tmp_path: Path) -> None:
    gone = Stage(tmp_path)
    gone.receive(shard(1)).write(memoryview(content(1)[:10]))
    os.close(gone._use)  # as when it is killed
    lives = Stage(tmp_path)
    arrival = lives.receive(shard(2))
    third = Stage(tmp_path)
    assert third.make_room(BYTES)
    parts = [p.name for p in third.folder.glob(".part-*")]
    assert len(parts) == 1
    assert shard(2).sha256[:16] in parts[0]
    put(arrival, memoryview(content(2)))
    arrival.finish(Path("from"))
    assert numbers(third) == [2]


def test_two_jobs_that_bring_the_same_shard(tmp_path: Path) -> None:
    one, two = Stage(tmp_path), Stage(tmp_path)
    arrivals = [one.receive(shard(1)), two.receive(shard(1))]
    for arrival in arrivals:
        put(arrival, memoryview(content(1)))
    assert {arrival.finish(Path("from")) for arrival in arrivals} == {one.place(shard(1))}
    assert numbers(one) == [1]
    assert not list(one.folder.glob(".part-*"))


def test_what_another_boot_left_is_not_trusted(tmp_path: Path) -> None:
    first = Stage(tmp_path)
    place = bring(first, 1)
    first.close()
    old = first.folder.rename(first.folder.with_name(f"{socket.gethostname()}-another-boot")) / place.name
    assert (old / shard(1).file).exists()
    assert Stage(tmp_path).use([shard(1)]) == [False]
    assert not old.exists()


def test_nothing_is_staged_where_other_nodes_may_be(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"other nodes may share its file system \(0x9fa0\)"):
        Stage(Path("/proc/self/nowhere"))


def test_nodes_that_share_a_folder_after_all_leave_each_other_alone(tmp_path: Path) -> None:
    one = Stage(tmp_path)
    arrival = one.receive(shard(1))
    put(arrival, memoryview(content(1)))
    program = f"""
import hpcmass.data.stage
hpcmass.data.stage.boot_id = lambda: "of another node"
socket.gethostname = lambda: "another-node"
print(Stage(Path({str(tmp_path)!r})).make_room(0), flush=True)
"""
    with other_job(program) as other:
        assert other.stdout.readline() == "True\n"
    arrival.finish(Path("from"))
    assert numbers(one) == [1]
    one.close()


def test_a_folder_that_was_removed_is_told_as_such(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    arrival = stage.receive(shard(1))
    put(arrival, memoryview(content(1)))
    shutil.rmtree(stage.folder)
    with pytest.raises(NotFound):
        arrival.finish(Path("from"))
    with pytest.raises(NotFound):
        stage.make_room(0)
    stage.close()


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    top = tmp_path / f"hpcmass-shards-{os.getuid()}"
    top.mkdir()
    os.chmod(top, 0o777)
    with pytest.raises(StorageError, match="others may write it"):
        Stage(tmp_path)
