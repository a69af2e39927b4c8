"""When to stop, why a job ends, and what follows: pure decisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcmass.slurm.outlive import (
    FLOOR_S,
    Decision,
    Fate,
    Seen,
    chain,
    decide,
    fate_of,
    is_early_warning,
    is_node_trouble,
    parse_said,
    parse_shown,
    preempted_soon,
    signal_of_script,
    times,
    worn_out,
)
from hpcmass.slurm.records import Hop, SubmissionRecord

# As scontrol 22.05 showed a job in its last two seconds: cancelled, and requeued.
CANCELLED = """\
JobId=1 JobName=a JobState=RUNNING Restarts=7
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=COMPLETING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   StartTime=1795580755 EndTime=1795580757 Deadline=N/A
   PreemptEligibleTime=1795580755 PreemptTime=None
"""
REQUEUED = CANCELLED.replace("Restarts=0", "Restarts=1")
NODE_DOWN = CANCELLED.replace("Reason=None", "Reason=NodeDown")
RUNNING = CANCELLED.replace("COMPLETING", "RUNNING")


# -- when ------------------------------------------------------------------------------------------------
def test_the_margin_grows_with_the_checkpoints_time() -> None:
    assert times(0, 36000).stop == 36000 - FLOOR_S
    assert times(0, 36000, checkpoint_s=100, step_s=10).stop == 36000 - FLOOR_S - 3 * 110


def test_a_short_job_still_gets_somewhere() -> None:
    assert times(0, 60).stop == 45
    # A checkpoint that takes long in a short job: half of it at most.
    assert times(0, 60, checkpoint_s=1000).stop == 30


@given(whole=st.floats(1, 1e6), checkpoint=st.floats(0, 1e5), step=st.floats(0, 1e4), began=st.floats(0, 2e9))
def test_moments_are_in_order(whole: float, checkpoint: float, step: float, began: float) -> None:
    when = times(began, began + whole, checkpoint_s=checkpoint, step_s=step)
    assert began <= when.stop <= when.end <= when.kill <= when.limit
    assert when.stop - began >= 0.49 * whole


def test_slurms_early_warning_is_told_from_a_wish_to_stop() -> None:
    when = times(0, 600)
    assert is_early_warning(500, when, 120)
    assert is_early_warning(420, when, 120)  # a minute early, as Slurm may
    assert not is_early_warning(300, when, 120)  # nobody's warning: somebody wants a stop
    assert not is_early_warning(when.stop + 1, when, 120)
    assert not is_early_warning(500, None, 120)
    assert not is_early_warning(500, when, None)
    assert signal_of_script("#!/bin/bash\n#SBATCH --signal=B:USR1@120\n") == 120
    assert signal_of_script("echo '#SBATCH --signal=B:USR1@120'\n") is None


# -- why -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shown", "said", "fate"),
    [
        (CANCELLED, Fate.CANCELLED, Fate.CANCELLED),
        (CANCELLED, Fate.PREEMPTED, Fate.PREEMPTED),  # PreemptMode=CANCEL
        (CANCELLED, None, Fate.UNKNOWN),
        (REQUEUED, Fate.PREEMPTED, Fate.REQUEUED),
        (REQUEUED, None, Fate.REQUEUED),
        (NODE_DOWN, Fate.NODE_FAIL, Fate.NODE_FAIL),
        (RUNNING, None, Fate.RUNNING),
        ("", Fate.CANCELLED, Fate.CANCELLED),
        ("", Fate.PREEMPTED, Fate.UNKNOWN),  # requeued or not: only Slurm knows
        ("", None, Fate.UNKNOWN),
        ("slurm_load_jobs error: Unable to contact slurm controller", None, Fate.UNKNOWN),
    ],
)
def test_fate(shown: str, said: Fate | None, fate: Fate) -> None:
    assert fate_of(parse_shown(shown), said, restart=0) is fate


def test_fate_after_earlier_restarts() -> None:
    assert fate_of(parse_shown(REQUEUED), Fate.CANCELLED, restart=1) is Fate.CANCELLED


def test_what_slurmstepd_says() -> None:
    line = "slurmstepd-cn1: error: *** JOB 4 ON cn1 CANCELLED AT 2026-11-25T04:25:58 {} ***\n"
    assert parse_said(line.format("DUE TO PREEMPTION")) is Fate.PREEMPTED
    assert parse_said(line.format("DUE TO TIME LIMIT")) is Fate.TIMEOUT
    assert parse_said(line.format("DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS")) is Fate.NODE_FAIL
    assert parse_said(line.format("DUE TO JOB REQUEUE")) is Fate.REQUEUED
    assert parse_said(line.replace(" {}", "")) is Fate.CANCELLED
    assert (
        parse_said(line.format("DUE TO PREEMPTION") + "training\n" + line.replace(" {}", "")) is Fate.CANCELLED
    )
    assert parse_said("step 10 loss 0.1\n") is None


def test_notice_of_preemption() -> None:
    assert not preempted_soon(parse_shown(RUNNING))
    assert preempted_soon(parse_shown(RUNNING.replace("PreemptTime=None", "PreemptTime=1795580760")))
    assert not preempted_soon(None)


# -- what next -------------------------------------------------------------------------------------------
def failed(step: int, hop: int = 1, cause: str = "failed") -> Hop:
    return Hop(hop, job_id="1", from_step=0, step=step, cause=cause)


def test_completed_and_cancelled_end_it() -> None:
    done = decide(Seen("COMPLETED", asked="time-limit", step=10), [])
    assert (done.cause, done.go_on, done.exit_code) == ("completed", False, 0)
    told = decide(Seen("STOPPED", asked="term", cancel="by me", fate=Fate.RUNNING), [])
    assert (told.cause, told.go_on, told.reason) == ("cancelled", False, "by me")
    plain = decide(Seen("STOPPED", asked="term", fate=Fate.CANCELLED), [])
    assert (plain.cause, plain.go_on) == ("cancelled", False)
    pruned = decide(Seen("STOPPED", stop_file="pruned at step 4"), [])
    assert (pruned.cause, pruned.go_on, pruned.reason) == ("cancelled", False, "pruned at step 4")


@pytest.mark.parametrize(
    ("seen", "cause", "by_slurm"),
    [
        (Seen("STOPPED", asked="time-limit", step=9, from_step=4), "time-limit", False),
        (Seen("STOPPED", asked="signal", step=9), "signal", False),
        (Seen("STOPPED", asked="term", step=9), "signal", False),
        (Seen("STOPPED", asked="term", fate=Fate.REQUEUED, said=Fate.PREEMPTED), "preempted", True),
        (Seen("STOPPED", asked="term", fate=Fate.REQUEUED, said=Fate.NODE_FAIL), "node-failure", True),
        (Seen("STOPPED", asked="term", fate=Fate.REQUEUED, said=Fate.REQUEUED), "signal", True),
        (Seen("STOPPED", asked="term", fate=Fate.NODE_FAIL), "node-failure", False),
        # Ranks that were killed while they were asked to stop have not failed.
        (Seen("FAILED", asked="time-limit", fault="transient", step=9, from_step=4), "time-limit", False),
        (Seen("RUNNING", asked="term", fate=Fate.PREEMPTED), "preempted", False),
    ],
)
def test_what_ends_a_job_does_not_end_a_run(seen: Seen, cause: str, by_slurm: bool) -> None:
    decision = decide(seen, [failed(9)])
    assert (decision.cause, decision.go_on, decision.by_slurm) == (cause, True, by_slurm)


def test_sigterm_that_nobody_explains_is_left_to_slurm() -> None:
    decision = decide(Seen("STOPPED", asked="term", fate=Fate.UNKNOWN), [])
    assert not decision.go_on
    assert decision.exit_code != 0


def test_one_retry_of_what_may_pass_none_of_the_runs_own_error() -> None:
    first = decide(Seen("FAILED", reason="killed", fault="transient", step=5), [])
    assert (first.cause, first.go_on) == ("failed", True)
    again = decide(Seen("FAILED", reason="killed", fault="transient", step=5), [failed(5)])
    assert (again.cause, again.go_on) == ("no-progress", False)
    assert "twice at step 5" in again.reason
    own = decide(Seen("FAILED", reason="NaN", fault="own", step=5, asked="term"), [])
    assert (own.cause, own.go_on, own.reason) == ("failed", False, "NaN")


@pytest.mark.parametrize(
    ("past", "go_on"),
    [
        ([failed(5)], False),
        ([failed(5), failed(8, 2, "preempted")], True),  # there was progress since
        ([failed(5), failed(5, 2, "node-failure"), failed(5, 3, "lost")], False),  # no progress since
        ([failed(4)], True),
        ([failed(5, 1, "lost"), failed(5, 2, "lost"), failed(5, 3, "preempted")], True),  # nobody failed
    ],
)
def test_failures_count_without_progress_between_them(past: list[Hop], go_on: bool) -> None:
    assert decide(Seen("FAILED", fault="transient", step=5, from_step=5), past).go_on is go_on


@pytest.mark.parametrize(
    ("past", "step", "go_on"),
    [
        ([], 5, True),
        ([failed(5, 1, "node-failure")], 5, True),
        ([failed(5, 1, "node-failure"), failed(5, 2, "node-failure")], 5, False),
        ([failed(5, 1, "lost"), failed(5, 2, "preempted"), failed(5, 3, "node-failure")], 5, False),
        ([failed(4, 1, "node-failure"), failed(5, 2, "node-failure")], 5, True),  # there was progress
        ([failed(5, 1, "preempted"), failed(5, 2, "preempted"), failed(5, 3, "signal")], 5, True),
        ([Hop(1, cause="node-failure"), Hop(2, cause="node-failure")], None, False),
        # Of a script nobody knows how far it came in a hop of another end.
        ([Hop(1, cause="node-failure"), Hop(2, cause="node-failure"), Hop(3, cause="time-limit")], None, True),
    ],
)
def test_a_run_that_loses_its_nodes_again_and_again_is_ended(
    past: list[Hop], step: int | None, go_on: bool
) -> None:
    seen = Seen("FAILED", fault="transient", fate=Fate.NODE_FAIL, step=step, from_step=step or 0)
    decision = decide(seen, past)
    assert decision.go_on is go_on
    if not go_on:
        assert (decision.cause, decision.exit_code) == ("no-progress", 1)
        assert "3 hops in a row lost a node" in decision.reason


def test_nodes_that_took_the_hop_down_count_before_the_next_begins() -> None:
    lost = [failed(5, n, "lost") for n in (1, 2, 3)]
    assert worn_out(5, lost[:2]) is None
    assert worn_out(6, lost) is None
    stopped = worn_out(5, lost)
    assert stopped is not None
    assert (stopped.cause, stopped.go_on, stopped.exit_code) == ("no-progress", False, 1)


@pytest.mark.parametrize(
    ("kind", "stderr", "lost"),
    [
        ("timeout", "", True),  # no answer within its time
        ("other", "srun: error: Node failure on cn2", True),
        ("controller", "srun: error: Task launch for StepId=7.3 failed on node cn2: "
            "Communication connection failure", True),
        ("other", "srun: error: Task launch for StepId=7.3 failed on node cn2: Socket timed out on send/recv "
            "operation", True),
        ("node-name", "srun: error: Unable to create step for job 7: Required node not available (down, drained "
            "or reserved)", True),
        ("option", "srun: unrecognized option '--overlap'", False),
        ("other", "srun: error: Couldn't find the specified plugin name for mpi/none looking at all files", False),
        ("other", "srun: error: Unable to create step for job 7: Memory required by task is not available", False),
        ("other", "srun: error: cn2: task 1: Segmentation fault", False),
        ("no-slurm", "", False),
    ],
)  # fmt: skip
def test_which_errors_of_srun_speak_of_a_node(kind: str, stderr: str, lost: bool) -> None:
    assert is_node_trouble(kind, stderr) is lost


def test_a_time_limit_too_short_for_any_progress_ends_it() -> None:
    seen = Seen("STOPPED", asked="time-limit", step=5, from_step=5)
    before = Hop(1, job_id="1", cause="time-limit", from_step=5, step=5)
    assert decide(seen, []).go_on
    stopped = decide(seen, [before])
    assert (stopped.cause, stopped.go_on) == ("no-progress", False)
    assert decide(Seen("STOPPED", asked="time-limit", step=6, from_step=5), [before]).go_on
    assert decide(
        Seen("STOPPED", asked="time-limit", step=None), [before]
    ).go_on  # a script that keeps no steps


@pytest.mark.parametrize(
    ("steps", "hops"),
    [
        ([102, 102, 103, 102, 103, 102], 5),  # a script that begins anew each time
        ([102, 102, 102], 3),
        ([500, 200, 450, 700], None),  # one that counts from 0 again in its second phase
        ([100, 101, 102, 103], None),  # little, but on and on
    ],
)
def test_a_script_that_begins_anew_in_every_hop_is_ended(steps: list[int], hops: int | None) -> None:
    past: list[Hop] = []
    for number, step in enumerate(steps, 1):
        from_step = steps[number - 2] if number > 1 else 0
        if not decide(Seen("STOPPED", asked="time-limit", step=step, from_step=from_step), past).go_on:
            assert number == hops
            return
        past.append(Hop(number, job_id="1", cause="time-limit", from_step=from_step, step=step))
    assert hops is None


def test_a_chain_is_the_jobs_that_follow_each_other() -> None:
    hops = [Hop(n + 1, job_id=job) for n, job in enumerate(["7", "8", "8", "9"])]
    records = [
        SubmissionRecord(1, "7"),
        SubmissionRecord(2, "8", by="rerun"),
        SubmissionRecord(3, "9", by="successor", after=("afterany:8",)),
    ]
    assert [hop.hop for hop in chain(hops, records, "9")] == [2, 3, 4]
    assert [hop.hop for hop in chain(hops, records, "7")] == [1]


@given(
    st.builds(
        Seen,
        state=st.sampled_from(["COMPLETED", "STOPPED", "FAILED", "RUNNING", "UNKNOWN", "CREATED"]),
        step=st.none() | st.integers(0, 3),
        from_step=st.integers(0, 3),
        fault=st.sampled_from(["", "own", "transient"]),
        asked=st.sampled_from(["", "time-limit", "signal", "term"]),
        stop_file=st.none() | st.just("pruned"),
        cancel=st.none() | st.just("by me"),
        fate=st.sampled_from(Fate),
        said=st.none() | st.sampled_from(Fate),
    )
)
def test_what_holds_for_every_decision(seen: Seen) -> None:
    decision: Decision = decide(seen, [failed(2)])
    if seen.cancel or seen.state == "COMPLETED" or seen.fate is Fate.CANCELLED:
        assert not decision.go_on
    if decision.exit_code == 0:
        assert decision.go_on or seen.state == "COMPLETED"
    assert decision.reason
