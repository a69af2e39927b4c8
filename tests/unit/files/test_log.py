import json
import os
import subprocess
import sys

import pytest

from hpcmass.errors import AlreadyExists, CorruptError, StorageError
from hpcmass.files import LogReader, LogWriter, set_log_aside

RECORDS = [["a", 1], {"b": [None, 0.1]}, ["ü", "line\nbreak"], [7]]


def opened(folder, durable=False):
    reader = LogReader(folder)
    _, records = reader.read()
    return records, LogWriter(reader, durable=durable)


def written(folder, records=RECORDS):
    _, writer = opened(folder)
    for record in records:
        writer.append(record)
    writer.close()
    return folder / "000001.log"


def test_what_was_appended_is_read_by_all(tmp_path):
    first = LogReader(tmp_path / "log")
    assert first.read() == (True, [])  # there is no folder yet
    file = written(tmp_path / "log")
    assert first.read() == (False, RECORDS)
    assert first.read() == (False, [])
    records, writer = opened(tmp_path / "log", durable=True)
    writer.append(["more"], ["and more"])
    writer.close()
    assert (records, first.read()) == (RECORDS, (False, [["more"], ["and more"]]))
    assert len(file.read_bytes().splitlines()) == 1 + len(RECORDS)  # each writer has a file of its own


def test_a_tail_torn_at_any_byte_costs_its_own_record_only(tmp_path):
    whole = written(tmp_path / "whole").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for length in range(len(whole) + 1):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "000001.log").write_bytes(whole[:length])
        kept = RECORDS[: max(sum(end <= length for end in ends) - 1, 0)]
        live = LogReader(folder)
        assert live.read()[1] == kept
        records, writer = opened(folder)
        assert records == kept
        assert (folder / "000001.log").stat().st_size == max([end for end in ends if end <= length], default=0)
        writer.append(["after"])
        writer.close()
        assert LogReader(folder).read()[1] == [*kept, ["after"]]
        assert live.read() == (False, [["after"]])


@pytest.mark.parametrize("kind", ["log", "snapshot"])
def test_any_flipped_bit_is_found_and_its_place_said(tmp_path, kind):
    file = written(tmp_path)
    if kind == "snapshot":
        records, writer = opened(tmp_path)
        writer.snapshot(records)
        file = tmp_path / "000002.snapshot"
    whole = file.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            with pytest.raises(CorruptError) as found:
                LogReader(tmp_path).read()
            begins = whole.rfind(b"\n", 0, place) + 1
            assert found.value.where == str(file)
            # A newline that is none joins two lines, and another byte that is one parts a line.
            assert begins <= found.value.data["offset"] <= place + 1
    file.write_bytes(whole)
    assert LogReader(tmp_path).read()[1] == RECORDS


def test_a_snapshot_that_was_cut_and_a_segment_that_was_removed_are_damage(tmp_path):
    file = written(tmp_path)
    for _ in range(2):
        _, writer = opened(tmp_path)
        writer.append(["x"])
        writer.close()
    (tmp_path / "000002.log").rename(tmp_path / "away")
    with pytest.raises(CorruptError, match="segment 2 of the log is missing"):
        LogReader(tmp_path).read()
    (tmp_path / "away").rename(tmp_path / "000002.log")
    records, writer = opened(tmp_path)
    writer.snapshot(records)
    assert sorted(os.listdir(tmp_path)) == ["000004.snapshot"]
    assert not file.exists()
    whole = (tmp_path / "000004.snapshot").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "000004.snapshot").write_bytes(whole[:length])
        with pytest.raises(CorruptError):
            LogReader(tmp_path).read()
    aside = set_log_aside(tmp_path)
    assert (aside / "000004.snapshot").exists()
    assert LogReader(tmp_path).read() == (True, [])


def test_a_reader_goes_on_over_a_snapshot(tmp_path):
    written(tmp_path)
    reader = LogReader(tmp_path)
    reader.read()
    records, writer = opened(tmp_path)
    writer.append(["x"])
    writer.snapshot([*records, ["x"]])
    writer.append(["y"])
    assert reader.read() == (True, [*RECORDS, ["x"], ["y"]])
    writer.append(["z"])
    assert reader.read() == (False, [["z"]])
    writer.close()


def test_two_writers_never_share_a_file(tmp_path):
    _, one = opened(tmp_path)
    _, other = opened(tmp_path)
    one.append(["one"])
    with pytest.raises(AlreadyExists, match="another writer"):
        other.append(["other"])
    one.append(["one again"])
    one.close()
    assert LogReader(tmp_path).read()[1] == [["one"], ["one again"]]


def test_a_full_disk_leaves_no_half_record(tmp_path, monkeypatch):
    _, writer = opened(tmp_path)
    writer.append(["before"])
    write, room = os.write, [9]

    def full(handle, data):
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        count = write(handle, bytes(data)[: room[0]])
        room[0] = 0
        return count

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space"):
        writer.append(["lost"])
    monkeypatch.setattr(os, "write", write)
    writer.append(["after"])
    writer.close()
    assert LogReader(tmp_path).read()[1] == [["before"], ["after"]]
    assert (tmp_path / "000001.log").read_bytes().count(b"\n") == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from hpcmass.files import LogReader, LogWriter

folder, last = Path(sys.argv[1]), int(sys.argv[2])
reader = LogReader(folder)
records = reader.read()[1]
writer = LogWriter(reader, durable=True)
calls = 0
def counted(name):
    before = getattr(os, name)
    def call(*arguments, **named):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **named)
    setattr(os, name, call)
for name in ("open", "write", "fsync", "fdatasync", "link", "unlink", "stat", "listdir", "ftruncate", "mkdir", "close"):
    counted(name)
writer.append(["x"])
writer.snapshot([*records, ["x"]])
writer.append(["y"])
print(calls)
"""


def test_a_writer_that_is_killed_at_any_call_leaves_a_whole_log(tmp_path):
    for last in range(1, 100):
        folder = tmp_path / str(last)
        written(folder)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(last)], capture_output=True, text=True, timeout=60
        )
        records, writer = opened(folder)
        assert records[: len(RECORDS)] == RECORDS
        assert records[len(RECORDS) :] in ([], [["x"]], [["x"], ["y"]])
        writer.append(["after"])
        writer.close()
        assert LogReader(folder).read()[1] == [*records, ["after"]]
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert 10 < last < 99
    assert json.loads(done.stdout) == last - 1
