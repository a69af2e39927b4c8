"""Node-seconds of blocks: reserved before sbatch, settled by what Slurm says."""

import time
from types import SimpleNamespace

import pytest

from hpcmass.config import Resources
from hpcmass.files import append_record
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.workflow.blocks import JOURNAL
from hpcmass.workflow.feeding import Pool
from hpcmass.workflow.lanes import Ask, Lane
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


def pool_with(ledger, **nodes):
    """A pool whose lanes have blocks of so many nodes, and none of them there."""
    pool = Pool(SimpleNamespace(executors={}), "d", book=SimpleNamespace(ledger=ledger, driver="d"))
    for label, count in nodes.items():
        shape = SimpleNamespace(nodes=count, target=label)
        lane = Lane(label, SimpleNamespace(shape=shape, live_blocks=list), shape, room=0)
        pool.lanes[label] = lane
        pool._ways[Ask(Resources(ranks=count))] = [lane]
    return pool


def test_a_budget_that_pays_only_for_blocks_that_nothing_waits_for_is_spent(tmp_path):
    pool = pool_with(Ledger(tmp_path / JOURNAL, 100.0), small=1, large=4)
    assert not pool.spent()
    pool.run_as(Ask(Resources(ranks=4)), print)
    assert pool.spent()  # else it would be waited for in vain
    pool.run_as(Ask(Resources(ranks=1)), print)
    assert not pool.spent()


def test_a_budget_is_not_spent_before_the_last_block_is_settled(tmp_path):
    ledger = Ledger(tmp_path / JOURNAL, 660.0)
    pool = pool_with(ledger, cpu=1)
    ledger.reserve("d", "cpu-0.sbatch", 1, 620)
    ledger.submitted("d", "cpu-0.sbatch", "7")
    ended = {"7": JobInfo("7", JobState.NODE_FAIL, started=time.time() - 10, source="squeue")}
    ledger.look(ended, patient=True)  # Accounting is late.
    assert ledger.grant(1, 60) == 0
    assert not pool.spent()
    ledger.look(ended)
    assert ledger.grant(1, 60) == 60
    assert not pool.spent()
    ledger.reserve("another", "cpu-0.sbatch", 1, 640)  # Whoever has that settles it.
    ledger.submitted("another", "cpu-0.sbatch", "8")
    assert pool.spent()


class Told(dict):
    """What Slurm says, while another thread is told the same and is quicker."""

    def __init__(self, ledger, infos):
        super().__init__(infos)
        self.ledger = ledger

    def items(self):
        for pair in super().items():
            self.ledger.look({pair[0]: pair[1]})
            yield pair


def test_a_block_is_settled_once_whoever_looks(tmp_path):
    journal = tmp_path / JOURNAL
    ledger = Ledger(journal, 3600.0)
    record = {"driver": "d", "script": "cpu-0.sbatch"}
    append_record(journal, {"kind": "intent", **record, "nodes": 2, "time_s": 600})
    ledger.reserve("d", "cpu-0.sbatch", 2, 600)
    append_record(journal, {"kind": "block", **record, "job_id": "10"})
    ledger.submitted("d", "cpu-0.sbatch", "10")
    done = JobInfo("10", JobState.COMPLETED, used=(("elapsed_s", 90.0),), source="sacct")
    ledger.look(Told(ledger, {"10": done}))
    assert ledger.used_s() == 180
    assert Ledger(journal, 3600.0).used_s() == 180
    # A driver that was stopped meanwhile goes on, and says it too.
    append_record(journal, {"kind": "settled", **record, "node_s": 180.0, "job_id": "10"})
    assert Ledger(journal, 3600.0).used_s() == 180
