"""The verdict: what the folder proves comes first, and nothing that is not known is success."""

from itertools import product

import pytest

from hpcmass.runs import State
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.judge import Facts, Phase, judge
from hpcmass.slurm.usage import Used, parse_sstat


def job(state: JobState, job_id: str = "7", **more: object) -> JobInfo:
    return JobInfo(job_id, state, **more)  # type: ignore[arg-type]


def test_only_a_completed_folder_is_completed_whatever_slurm_says() -> None:
    """Every folder state with every job state, heard and unheard."""
    for folder, state, silent, held in product(State, JobState, ("", "down"), (False, True)):
        facts = Facts(folder, held=held and folder is State.RUNNING, jobs=[job(state)], silent=silent)
        found = judge(facts)
        assert (found.phase is Phase.COMPLETED) is (folder is State.COMPLETED), facts
        if not state.ended and state is not JobState.UNKNOWN and folder is not State.COMPLETED:
            assert not found.final, facts
        assert found.phase is not Phase.CREATED


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT, JobState.NODE_FAIL])
def test_a_completed_folder_with_a_bad_job_is_success_and_says_so(state: JobState) -> None:
    found = judge(Facts(State.COMPLETED, jobs=[job(state)]))
    assert (found.phase, found.final) == (Phase.COMPLETED, True)
    assert state.value in found.notes[0]


@pytest.mark.parametrize("folder", [State.CREATED, State.UNKNOWN])
def test_slurms_completed_is_no_success(folder: State) -> None:
    found = judge(Facts(folder, jobs=[job(JobState.COMPLETED)]))
    assert (found.phase, found.final) == (Phase.FAILED, True)
    assert "no success" in found.reason


def test_a_local_run_is_what_its_folder_says() -> None:
    assert judge(Facts(State.RUNNING, held=True)).phase is Phase.RUNNING
    assert judge(Facts(State.UNKNOWN, reason="gone")).phase is Phase.UNKNOWN
    assert judge(Facts(State.STOPPED, cancelled="by me")).phase is Phase.CANCELLED
    assert judge(Facts(State.CREATED)).phase is Phase.CREATED


def test_waiting_before_the_first_hop_and_between_two() -> None:
    queued = judge(Facts(State.CREATED, jobs=[job(JobState.PENDING, reason="Priority")]))
    assert (queued.phase, queued.final) == (Phase.QUEUED, False)
    facts = Facts(
        State.STOPPED, jobs=[job(JobState.PENDING, reason="BeginTime")], hops=1, hop_cause="time-limit"
    )
    between = judge(facts)
    assert between.phase is Phase.REQUEUED
    assert "after the time limit" in between.reason
    assert judge(Facts(State.UNKNOWN, jobs=[job(JobState.PENDING)])).phase is Phase.REQUEUED


def test_a_successor_that_waits_while_the_hop_before_it_runs() -> None:
    jobs = [job(JobState.RUNNING, "7"), job(JobState.PENDING, "8", reason="Dependency")]
    found = judge(Facts(State.RUNNING, held=True, lease_job="7", jobs=jobs))
    assert found.phase is Phase.RUNNING
    assert found.job is not None
    assert found.job.job_id == "7"
    jobs[0] = job(JobState.COMPLETED, "7")
    assert judge(Facts(State.STOPPED, jobs=jobs, hops=1)).phase is Phase.REQUEUED


def test_a_running_job_whose_ranks_are_silent() -> None:
    running = job(JobState.RUNNING, started=100.0)
    assert judge(Facts(State.CREATED, jobs=[running])).reason == "it starts up"
    # The folder's last word is from the hop before.
    assert judge(Facts(State.STOPPED, updated=90.0, jobs=[running])).reason == "it starts up"
    assert judge(Facts(State.UNKNOWN, updated=90.0, jobs=[running], hop_began=101.0)).phase is Phase.RUNNING
    ending = judge(Facts(State.FAILED, reason="NaN", updated=200.0, jobs=[running]))
    assert (ending.phase, ending.final) == (Phase.RUNNING, False)
    assert "NaN" in ending.reason
    lost = judge(Facts(State.UNKNOWN, updated=200.0, jobs=[running]))
    assert (lost.phase, lost.final) == (Phase.UNKNOWN, False)
    assert "a node may be down" in lost.reason


def test_a_lease_of_a_dead_job_does_not_make_it_run() -> None:
    """The node is down and its lease not yet run out."""
    facts = Facts(State.RUNNING, held=True, lease_job="7", jobs=[job(JobState.NODE_FAIL)])
    assert judge(facts).phase is Phase.FAILED
    by_hand = Facts(State.RUNNING, held=True, lease_job="99", jobs=[job(JobState.NODE_FAIL)])
    assert judge(by_hand).phase is Phase.RUNNING


def test_a_silent_slurm() -> None:
    unheard = [job(JobState.UNKNOWN)]
    waits = judge(Facts(State.CREATED, jobs=unheard, silent="timed out"))
    assert (waits.phase, waits.final) == (Phase.UNKNOWN, False)
    assert "timed out" in waits.reason
    runs = judge(Facts(State.RUNNING, held=True, jobs=unheard, silent="timed out"))
    assert runs.phase is Phase.RUNNING
    assert runs.notes
    assert judge(Facts(State.STOPPED, jobs=unheard, silent="x", hop_next="requeue")).phase is Phase.UNKNOWN
    over = judge(Facts(State.FAILED, jobs=unheard, silent="x", hop_next="none"))
    assert (over.phase, over.final) == (Phase.FAILED, True)
    # Accounting answered although the controller did not.
    assert judge(Facts(State.CREATED, jobs=[job(JobState.TIMEOUT)], silent="x")).phase is Phase.FAILED


def test_cancelled() -> None:
    gone = [job(JobState.CANCELLED)]
    assert judge(Facts(State.CREATED, jobs=gone, cancelled="by me: enough")).reason == "by me: enough"
    assert judge(Facts(State.STOPPED, jobs=gone)).phase is Phase.CANCELLED
    own = judge(Facts(State.FAILED, reason="NaN", jobs=[job(JobState.FAILED)], cancelled="by me"))
    assert own.phase is Phase.FAILED
    waits = judge(Facts(State.CREATED, jobs=[job(JobState.PENDING)], cancelled="by me"))
    assert waits.phase is Phase.QUEUED
    assert "to be cancelled" in waits.notes[0]


def test_forgotten_jobs() -> None:
    unknown = [job(JobState.UNKNOWN)]
    found = judge(Facts(State.CREATED, jobs=unknown, accounting=False))
    assert (found.phase, found.final) == (Phase.UNKNOWN, True)
    assert "no accounting" in found.reason
    assert judge(Facts(State.STOPPED, reason="asked", jobs=unknown)).reason == "asked"
    assert judge(Facts(State.CREATED, jobs=unknown, cancelled="x")).phase is Phase.CANCELLED
    cut_off = judge(Facts(State.CREATED, submitted="cut off"))
    assert cut_off.phase is Phase.UNKNOWN
    assert "hpcmass submit" in cut_off.advice
    begun = judge(Facts(State.CREATED, submitted="under way"))
    assert (begun.phase, begun.final) == (Phase.CREATED, False)
    late = judge(Facts(State.CREATED, jobs=[job(JobState.UNKNOWN, reason="sacct still says RUNNING")]))
    assert late.reason == "job 7: sacct still says RUNNING"


def test_a_promise_to_go_on_that_was_not_kept() -> None:
    facts = Facts(State.STOPPED, jobs=[job(JobState.COMPLETED)], hops=1, hop_next="requeue")
    assert any("no such job" in note for note in judge(facts).notes)


def test_what_sstat_said() -> None:
    text = (
        "1.batch|cpu=00:00:01,energy=0,fs/disk=30630,mem=10804K,pages=0,vmem=286056K\n"
        "1.0|cpu=00:00:19,energy=0,fs/disk=6743352,mem=366228K,pages=0,vmem=378784K\n"
        "2.extern|\nnonsense\n3|cpu=1\n"
    )
    assert parse_sstat(text) == {"1": Used(20.0, (10804 + 366228) * 1024)}
