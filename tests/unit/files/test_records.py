"""Records: torn lines are skipped and closed off, and every line is JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from hpcmass.files import append_record, read_records


def test_a_torn_line_is_skipped_and_closed_off(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    append_record(file, {"step": 1})
    with open(file, "ab") as torn:
        torn.write(b'{"step": 2, "lo')
    assert list(read_records(file)) == [{"step": 1}]
    append_record(file, {"step": 3})
    assert list(read_records(file)) == [{"step": 1}, {"step": 3}]


def test_a_reader_of_a_growing_file_sees_whole_records_in_order(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from hpcmass.files import append_record
for step in range(2000):
    append_record(Path(sys.argv[1]), {"step": step, "again": [step] * 20})
"""
    file = tmp_path / "m.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", code, str(file)])
    while writer.poll() is None:
        seen = [record["step"] for record in read_records(file)]
        assert seen == list(range(len(seen)))
    assert writer.returncode == 0
    assert len(list(read_records(file))) == 2000


def test_a_writer_that_is_killed_loses_at_most_its_last_record(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from hpcmass.files import append_record
for step in range(10):
    append_record(Path(sys.argv[1]), {"step": step})
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m.jsonl")], check=False)
    assert [record["step"] for record in read_records(tmp_path / "m.jsonl")] == list(range(10))


def test_every_line_is_json(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    append_record(
        file, {"a": float("nan"), "b": [float("inf"), -float("inf")], "c": np.float32(0.5), "d": np.int64(3)}
    )
    line = file.read_text()
    assert json.loads(line, parse_constant=lambda name: 1 / 0) == {
        "a": "NaN",
        "b": ["Infinity", "-Infinity"],
        "c": 0.5,
        "d": 3,
    }


def test_no_file_no_records_and_odd_lines_are_none(tmp_path: Path) -> None:
    assert list(read_records(tmp_path / "none.jsonl")) == []
    (tmp_path / "odd.jsonl").write_bytes(b'\n[1]\n"text"\n\xff\xfe\n{"step": 1}\n')
    assert list(read_records(tmp_path / "odd.jsonl")) == [{"step": 1}]
    assert os.listdir(tmp_path) == ["odd.jsonl"]


def test_a_line_that_is_nested_too_deep_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes(b'{"a": 1}\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
    assert list(read_records(file)) == [{"a": 1}, {"a": 2}]
