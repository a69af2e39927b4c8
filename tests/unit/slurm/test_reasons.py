"""Slurm's reasons in plain words."""

import pytest

from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.reasons import next_step, plain_end, plain_reason


@pytest.mark.parametrize(
    ("reason", "words", "hopeless"),
    [
        ("Resources", "waits for nodes", False),
        ("Priority", "other jobs are ahead", False),
        ("QOSMaxCpuPerUserLimit", "the QOS limits CPUs for you", False),
        ("QOSMaxGRESPerUser", "the QOS limits GPUs", False),
        ("QOSMaxJobsPerUserLimit", "running jobs for you", False),
        ("QOSGrpCpuLimit", "the QOS limits CPUs for all of its jobs", False),
        ("QOSMaxNodePerJobLimit", "more nodes than the QOS allows one job", True),
        ("QOSMaxWallDurationPerJobLimit", "more wall time than the QOS allows", True),
        ("AssocGrpCPUMinutesLimit", "your account has no CPU minutes left: the budget is used up", False),
        ("AssocGrpCPURunMinutesLimit", "your account limits CPU minutes of jobs at once", False),
        ("AssocMaxJobsLimit", "your account limits running jobs", False),
        ("AssocGrpMemLimit", "your account limits memory", False),
        ("MaxCpuPerAccount", "Slurm limits CPUs for your account", False),
        ("QOSMinCpuNotSatisfied", "the QOS wants more CPUs in a job", True),
        ("QOSMaxUnknownPerUser", "Slurm says: QOSMaxUnknownPerUser", False),
        ("ReqNodeNotAvail", "down, drained or reserved", False),
        ("(ReqNodeNotAvail, UnavailableNodes:cn[1-2])", "reserved (maintenance, perhaps): cn[1-2]", False),
        (
            "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions",
            "nodes that it needs are down",
            False,
        ),
        ("Dependency", "submitted after", False),
        ("DependencyNeverSatisfied", "never lets", True),
        ("JobHeldUser", "held by its owner", True),
        ("JobHeldAdmin", "administrator", True),
        ("BeginTime", "begin time", False),
        ("PartitionDown", "partition is down", False),
        ("PartitionTimeLimit", "more wall time", True),
        ("launch_failed_requeued_held", "holds it", True),
        ("SomethingOfNextYear", "Slurm says: SomethingOfNextYear", False),
        ("", "names no reason", False),
    ],
)
def test_reasons(reason: str, words: str, hopeless: bool) -> None:
    found = plain_reason(reason, "12")
    assert words in found.text
    assert found.hopeless is hopeless
    assert not found.text.endswith(".")
    if hopeless:
        assert found.advice


def test_the_advice_names_the_job() -> None:
    assert plain_reason("JobHeldUser", "12_3").advice == "let it go with: scontrol release 12_3"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (JobInfo("1", JobState.OUT_OF_MEMORY), "more memory than it had asked for"),
        (JobInfo("1", JobState.TIMEOUT), "time limit"),
        (JobInfo("1", JobState.NODE_FAIL), "nodes failed"),
        (JobInfo("1", JobState.FAILED, exit_code=3), "failed with exit code 3"),
        (JobInfo("1", JobState.FAILED, exit_code=0, signal=9), "failed (signal 9)"),
        (JobInfo("1", JobState.FAILED, reason="JobLaunchFailure", exit_code=1), "could not start it"),
        (JobInfo("1", JobState.COMPLETED, exit_code=0), "exit code 0"),
        # The controller's word, and later accounting's, for a job of kill-on-invalid-dep (seen on 22.05).
        (JobInfo("1", JobState.CANCELLED, "DependencyNeverSatisfied"), "did not end well"),
        (JobInfo("1", JobState.CANCELLED, "Dependency"), "while it waited for another job"),
    ],
)
def test_ends(job: JobInfo, words: str) -> None:
    assert words in plain_end(job)


def test_every_way_to_end_has_words_and_those_that_need_it_a_next_step() -> None:
    for state in JobState:
        if state.ended:
            assert not plain_end(JobInfo("1", state)).startswith("Slurm says")
    assert "memory" in next_step(JobState.OUT_OF_MEMORY, begun=True)
    assert "longer" in next_step(JobState.TIMEOUT, begun=True)
    assert "last checkpoint" in next_step(JobState.CANCELLED, begun=True)
    assert next_step(JobState.CANCELLED, begun=False) == "hpcmass rerun RUN"
