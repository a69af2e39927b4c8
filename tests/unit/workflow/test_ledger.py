"""Node-seconds of blocks: reserved before sbatch, settled by what Slurm says."""

import time

import pytest

from hpcmass.files import append_record
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.workflow.blocks import JOURNAL
from hpcmass.workflow.ledger import Ledger


def test_what_a_block_reserves_is_given_back_when_slurm_accounts_less(tmp_path):
    journal = tmp_path / JOURNAL
    ledger = Ledger(journal, 3600.0)
    assert ledger.grant(2, 600) == 600
    for number, nodes in (("0", 2), ("1", 2)):
        record = {"driver": "d", "script": f"cpu-{number}.sbatch"}
        append_record(journal, {"kind": "intent", **record, "nodes": nodes, "time_s": 600})
        ledger.reserve("d", f"cpu-{number}.sbatch", nodes, 600)
        append_record(journal, {"kind": "block", **record, "job_id": f"1{number}"})
        ledger.submitted("d", f"cpu-{number}.sbatch", f"1{number}")
    assert ledger.grant(1, 3600) == 1200
    assert ledger.grant(2, 3600) == 600
    assert ledger.grant(20, 600) == 60
    assert ledger.grant(21, 600) == 0
    started = time.time() - 100
    infos = {"10": JobInfo("10", JobState.COMPLETED, started=started, used=(("elapsed_s", 90.0),), source="sacct"),
                    "11": JobInfo("11", JobState.RUNNING, started=started, source="squeue")}  # fmt: skip
    ledger.look(infos)
    assert ledger.used_s() == pytest.approx(180 + 200, abs=5)
    assert ledger.reserved_s() == pytest.approx(1200 - 200, abs=5)
    assert ledger.grant(1, 36000) == (3600 - 180 - 1200) // 60 * 60
    # Another driver reads the same from the journal; of a block that nobody knows, all counts.
    other = Ledger(journal, 3600.0)
    assert other.unsettled() == ["11"]
    assert other.grant(1, 36000) == (3600 - 180 - 1200) // 60 * 60
    other.forget("d")
    assert (other.used_s(), other.reserved_s()) == (180 + 1200, 0)
    assert Ledger(journal).grant(5, 10**9) == 10**9
