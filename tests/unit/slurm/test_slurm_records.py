"""Submissions and hops of a run folder, read back; intents that nobody finished."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hpcmass.errors import AlreadyExists, CorruptError
from hpcmass.files import Owner, append_record, publish_json
from hpcmass.slurm.records import (
    Hop,
    SubmissionRecord,
    numbers,
    publish_submission,
    read_hops,
    read_submissions,
)
from hpcmass.slurm.send import _under_way, pending


def record(number: int, job_id: str = "12", **more: object) -> SubmissionRecord:
    values = {"site": "s", "target": "cpu", "script": f"job-{number:04d}.sbatch", "submitted": 1.0, **more}
    return SubmissionRecord(number, job_id, **values)  # type: ignore[arg-type]


def test_submissions_come_back_newest_last(tmp_path: Path) -> None:
    assert read_submissions(tmp_path / "none") == []
    records = [
        record(2, "13", array_index=4, after=("afterok:12",), name="a", layout={"nodes": 2}),
        record(1),
    ]
    for each in records:
        publish_submission(tmp_path, each)
    assert read_submissions(tmp_path) == records[::-1]
    assert [each.slurm_id for each in read_submissions(tmp_path)] == ["12", "13_4"]
    assert json.loads((tmp_path / "slurm/submission-0002.json").read_text())["format"] == 1
    with pytest.raises(AlreadyExists):
        publish_submission(tmp_path, record(1, "99"))


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    publish_json(tmp_path / "slurm/submission-0001.json", {"format": 1})
    with pytest.raises(CorruptError) as caught:
        read_submissions(tmp_path)
    assert "submission-0001.json" in str(caught.value)


def test_hops_with_and_without_an_end(tmp_path: Path) -> None:
    file = tmp_path / "slurm" / "hops.jsonl"
    append_record(
        file,
        {
            "kind": "begin",
            "hop": 1,
            "job_id": "12",
            "restart": 0,
            "host": "cn1",
            "nodes": ["cn1", "cn2"],
            "ranks": 4,
            "ends": 9.0,
            "from_step": 0,
            "time": 1.0,
        },
    )
    append_record(
        file,
        {
            "kind": "end",
            "hop": 1,
            "state": "STOPPED",
            "cause": "time-limit",
            "step": 7,
            "next": "requeue",
            "reason": "x",
            "time": 5.0,
        },
    )
    with file.open("a") as handle:
        handle.write('{"kind": "begin", "hop": "junk"}\n{"torn')
    append_record(file, {"kind": "begin", "hop": 2, "job_id": "12", "restart": 1, "time": 6.0})
    first, second = read_hops(tmp_path)
    assert (first.nodes, first.step, first.cause, first.began, first.ended) == (
        ("cn1", "cn2"),
        7,
        "time-limit",
        1.0,
        5.0,
    )
    assert second == Hop(2, job_id="12", restart=1, began=6.0)
    assert read_hops(tmp_path / "none") == []


def test_an_intent_without_its_record_is_pending(tmp_path: Path) -> None:
    assert not pending(tmp_path)
    publish_json(tmp_path / "slurm/intent-0001.json", {"comment": "c"})
    assert pending(tmp_path)
    publish_submission(tmp_path, record(1))
    assert not pending(tmp_path)
    assert numbers(tmp_path) == numbers(tmp_path, "submission") == [1]


def test_whose_submit_is_under_way() -> None:
    me = vars(Owner.this_process())
    assert _under_way({"owner": me})
    assert not _under_way(
        {"owner": {**me, "start_ticks": 1}, "time": time.time()}
    )  # this host: known to be gone
    elsewhere = {**me, "host": "other"}
    assert _under_way({"owner": elsewhere, "time": time.time()})
    assert not _under_way({"owner": elsewhere, "time": time.time() - 3600})
    assert not _under_way({})
