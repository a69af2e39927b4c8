"""What follows from an attempt's end, by its cause: a real driver, trials that end as told."""

import json
import threading
import time

import pytest
from test_driver import Threads, drive
from toy_trials import toy_job, toy_trial

from hpcmass.config import job_from_values, read_run_job
from hpcmass.errors import BlockLost, TrainError
from hpcmass.files import read_records
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.attempts import AttemptLog
from hpcmass.sweep.causes import Cause
from hpcmass.sweep.records import Outcome, read_outcome, read_trials
from hpcmass.sweep.remedy import Room, remedy
from hpcmass.workflow.slots import Slot


def ends_with(error):
    def trial(path):
        run = RunFolder(path)
        attempt = run.status().attempt + 1
        with run.lease():
            run.update(state=State.RUNNING, attempt=attempt)
            run.record_exception(attempt, 0, error)
            run.update(state=State.FAILED, reason=str(error))
        return path

    return trial


def records(folder, kind="end"):
    return [record for record in read_records(folder / "attempts.jsonl") if record["kind"] == kind]


def test_memory_that_ran_out_brings_more_of_it_as_long_as_there_is_some(tmp_path, monkeypatch):
    seen = []

    def wants_six(path):
        memory = read_run_job(RunFolder(path).job_file).resources.memory_gb or 2.0
        seen.append(memory)
        return toy_trial(path) if memory >= 6 else ends_with(MemoryError("Unable to allocate 6.00 GiB"))(path)

    monkeypatch.setattr(
        Threads, "room", lambda self, trial: Room(memory_gb=seen[-1], most_memory_gb=8.0), raising=False
    )
    result, _ = drive(toy_job(trials=1, retries=2), tmp_path, wants_six)
    assert seen == [2.0, 4.0, 8.0]
    assert result.counts["complete"] == 1
    assert [(r["cause"], r["free"], r["next"]) for r in records(tmp_path)] == [
        ("OOM", False, "again"),
        ("OOM", False, "again"),
        ("COMPLETED", False, "complete"),
    ]
    assert [r.get("changes") for r in records(tmp_path, "submit")] == [
        None,
        {"resources.memory_gb": 4.0},
        {"resources.memory_gb": 8.0},
    ]


def test_memory_that_no_node_has_fails_the_trial_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Threads, "room", lambda self, trial: Room(memory_gb=8.0, most_memory_gb=8.0), raising=False
    )
    result, started = drive(toy_job(trials=1), tmp_path, ends_with(MemoryError()))
    assert (result.counts["failed"], started) == (1, [0])
    assert "no node has more than the 8 GB that it had" in read_outcome(tmp_path / "trials/000000").reason


def test_a_recipe_without_memory_gets_smaller_micro_batches_of_the_same_global_batch():
    def job_of(**train):
        data = {"train": "data/x"}
        return job_from_values(
            {"name": "a", "recipe": "r.py", "data": data, "train": {"global_batch": 32, **train}}
        )

    job = job_of()
    said = remedy(Cause.OOM, job, {}, Room(), ranks=4, ran_s=1, got_on=False)
    assert (said.again, said.changes) == (True, {"train.accumulation": 2})
    cut = job_of(accumulation=8)
    assert not remedy(Cause.OOM, cut, {}, Room(), ranks=4, ran_s=1, got_on=False).again
    same = job_of(reproducible=True)
    assert not remedy(Cause.OOM, same, {}, Room(), ranks=4, ran_s=1, got_on=False).again


@pytest.mark.parametrize(
    ("ran_s", "got_on", "wall"), [(100, True, None), (500, True, 1200), (100, False, 1200)]
)
def test_a_block_that_was_too_short_is_followed_by_a_longer_one(ran_s, got_on, wall):
    job, room = toy_job(), Room(wall_s=600, most_wall_s=3600)
    said = remedy(Cause.TIMEOUT, job, {}, room, ranks=1, ran_s=ran_s, got_on=got_on)
    assert (said.again, said.changes.get("wall_s")) == (True, wall)
    at_most = Room(wall_s=600, most_wall_s=600)
    assert remedy(Cause.TIMEOUT, job, {}, at_most, ranks=1, ran_s=500, got_on=False).changes == {}


def test_nodes_that_fail_cost_nothing_and_are_avoided_and_slurm_says_why(tmp_path, monkeypatch):
    told = iter(["NODE_FAIL", "PREEMPTED", "CANCELLED", ""])
    avoided, count = [], []
    monkeypatch.setattr(Threads, "state_of", lambda self, trial: next(told), raising=False)
    submit = Threads.submit
    monkeypatch.setattr(Threads, "submit", lambda self, t: (avoided.append(t.avoid), submit(self, t))[1])

    def lost(path):
        count.append(path)
        if len(count) > 4:
            return toy_trial(path)
        name = f"cn{len(count)}"
        place = {"kind": "begin", "attempt": len(count), "node": name, "time": 5.0 + len(count)}
        with open(RunFolder(path).path / "slots.jsonl", "a") as file:
            file.write(json.dumps(place) + "\n")
        raise BlockLost("the workers are gone", transient=True)

    result, _ = drive(toy_job(trials=1, retries=0), tmp_path, lost)
    assert result.counts["complete"] == 1
    ends = records(tmp_path)
    assert [r["cause"] for r in ends] == ["NODE_FAIL", "PREEMPTED", "CANCELLED", "LOST", "COMPLETED"]
    assert all(r["free"] for r in ends[:4])
    assert [r["node"] for r in ends[:4]] == ["cn1", "cn2", "cn3", "cn4"]
    assert avoided == [(), ("cn1",), ("cn1", "cn2"), ("cn1", "cn2"), ("cn1", "cn2", "cn4")]


def test_a_trial_that_diverges_is_pruned_and_neither_failed_nor_begun_again(tmp_path):
    error = TrainError("the loss is NaN or infinite at step 3 (epoch 1)")
    result, started = drive(toy_job(trials=4), tmp_path, ends_with(error))
    assert (result.counts["pruned"], started) == (4, [0, 1, 2, 3])
    outcome = read_outcome(tmp_path / "trials/000000")
    assert (outcome.cause, outcome.reason) == ("DIVERGED", f"pruned: {error.message}")


def test_a_driver_that_dies_leaves_its_attempt_on_record_and_retries_stay_counted(tmp_path):
    def loses(path):
        raise RuntimeError("the worker is gone")

    class Died(Exception):
        pass

    def dies_at_the_second(event):
        if event == ("retried", 0):
            raise Died

    class Events(list):
        def append(self, event):
            dies_at_the_second(event)

    with pytest.raises(Died):
        drive(toy_job(trials=1, retries=1), tmp_path, loses, events=Events())
    assert [r["cause"] for r in records(tmp_path)] == ["MACHINE"]
    result, started = drive(toy_job(trials=1, retries=1), tmp_path, loses)
    assert (result.counts["failed"], started) == (1, [0])  # The one retry, and not a second.
    ends = records(tmp_path)
    assert [(r["attempt"], r["next"]) for r in ends] == [(1, "again"), (2, "failed")]
    assert [r["attempt"] for r in records(tmp_path, "submit")] == [1, 2]


def test_an_attempt_that_nobody_saw_end_is_ended_by_the_next_driver(tmp_path):
    with pytest.raises(ZeroDivisionError):
        drive(toy_job(trials=1), tmp_path, dies=True)
    spec = read_trials(tmp_path)[0][0]
    with open(tmp_path / "attempts.jsonl", "a") as file:
        file.write(json.dumps({"kind": "submit", "trial": spec.number, "attempt": 1, "time": 1.0}) + "\n")
    result, _ = drive(toy_job(trials=1), tmp_path)
    assert result.counts["complete"] == 1
    assert [(r["attempt"], r["cause"], r["free"]) for r in records(tmp_path)] == [
        (1, "DRIVER", True),
        (2, "COMPLETED", False),
    ]


@pytest.mark.parametrize(("state", "cause", "free"), [("PREEMPTED", "PREEMPTED", True), ("", "MACHINE", False)])
def test_a_worker_that_was_told_to_end_asks_slurm_by_whom(tmp_path, monkeypatch, state, cause, free):
    monkeypatch.setattr(Threads, "state_of", lambda self, trial: state, raising=False)
    seen = []

    def told(path):
        seen.append(path)
        if len(seen) == 1:
            RunFolder(path).update(state=State.STOPPED, reason="stopped by SIGTERM", attempt=1)
            return path
        return toy_trial(path)

    result, _ = drive(toy_job(trials=1, retries=1), tmp_path, told)
    assert result.counts["complete"] == 1
    assert [(r["cause"], r["free"]) for r in records(tmp_path)] == [(cause, free), ("COMPLETED", False)]


def test_a_trial_that_ends_with_the_driver_that_began_it_loses_no_retry(tmp_path):
    """The next driver has attached to it when the earlier one's workers are told to end."""
    job, events = toy_job(trials=1, retries=0), []
    with pytest.raises(ZeroDivisionError):
        drive(job, tmp_path, dies=True)
    run = read_trials(tmp_path)[0][0].run
    AttemptLog(tmp_path).submit(0, 1, {}, ())
    runs = threading.Event()

    def told_to_end():
        with run.lease():
            run.update(state=State.RUNNING, attempt=1, started=time.time())
            runs.set()
            until = time.monotonic() + 240
            while ("attached", 0) not in events and time.monotonic() < until:
                time.sleep(0.01)
            run.update(state=State.STOPPED, reason="stopped by SIGTERM", ended=time.time())

    thread = threading.Thread(target=told_to_end)
    thread.start()
    assert runs.wait(240)
    result, started = drive(job, tmp_path, events=events)
    thread.join()
    assert ("attached", 0) in events
    assert (result.counts["complete"], started) == (1, [0])
    assert [(r["cause"], r["free"]) for r in records(tmp_path)] == [("DRIVER", True), ("COMPLETED", False)]


def test_an_attempt_that_never_had_a_worker_took_no_node_seconds(tmp_path):
    class Died(Exception):
        pass

    class Events(list):
        def append(self, event):
            super().append(event)
            if self.count(("started", 0)) == 2:  # The second attempt waits for a worker.
                raise Died

    lost = []

    def trial(path):
        if lost:
            raise BlockLost("its block was gone before it began", transient=True)
        lost.append(path)
        with Slot.here().held(RunFolder(path), 1):
            time.sleep(0.05)
        raise BlockLost("its block is gone", transient=True)

    with pytest.raises(Died):
        drive(toy_job(trials=1), tmp_path, trial, events=Events())
    drive(toy_job(trials=1), tmp_path)
    first, second, *_ = records(tmp_path)
    assert (first["cause"], second["cause"], second["attempt"]) == ("LOST", "DRIVER", 2)
    assert first["node_s"] >= 0.05
    assert (second["node_s"], second["node"], second["started"]) == (None, "", None)


def test_a_driver_that_dies_between_an_attempts_end_and_the_outcome_has_one_on_record(tmp_path, monkeypatch):
    def dies(outcome, folder):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Outcome, "publish", dies)
        with pytest.raises(ZeroDivisionError):
            drive(toy_job(trials=1), tmp_path)
    result, started = drive(toy_job(trials=1), tmp_path)
    assert (result.counts["complete"], started) == (1, [])
    assert [(r["attempt"], r["cause"]) for r in records(tmp_path)] == [(1, "COMPLETED")]
