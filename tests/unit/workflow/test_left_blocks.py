"""Blocks of earlier drivers, and the trials that their workers have."""

import time
from pathlib import Path

from hpcmass.files import append_record
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.attempts import SLOTS
from hpcmass.workflow.attached import LeftBlocks
from hpcmass.workflow.blocks import JOURNAL


def test_a_file_that_cannot_be_read_now_ends_no_block(tmp_path: Path) -> None:
    append_record(tmp_path / JOURNAL, {"kind": "block", "driver": "d", "job_id": "7", "script": "cpu-0.sbatch"})
    run = RunFolder(tmp_path / "trials" / "000000")
    run.create("", "")
    append_record(run.path / SLOTS, {"kind": "begin", "job_id": "7", "time": time.time()})
    lease = run.lease()
    lease.acquire()
    run.update(state=State.RUNNING)
    left = LeftBlocks(tmp_path / JOURNAL)
    try:
        assert left.has(run)
        slots = run.path / SLOTS
        slots.rename(tmp_path / "aside")
        slots.mkdir()  # as a file server that stumbles: an OSError, and not that there is none
        assert left.has(run)
        slots.rmdir()
        (tmp_path / "aside").rename(slots)
        append_record(slots, {"kind": "end", "time": time.time()})
        assert not left.has(run)
        slots.rename(tmp_path / "aside")
        slots.mkdir()
        assert not left.has(run)
    finally:
        lease.release()
