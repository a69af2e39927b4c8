"""Runs as they are shown: from real run folders, and what a recorded Slurm says of their jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from hpcmass.config import Project
from hpcmass.errors import NotFound, SlurmError
from hpcmass.files import append_record
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.judge import Phase
from hpcmass.slurm.records import SubmissionRecord, publish_submission
from hpcmass.workflow.cancel import cancel_runs
from hpcmass.workflow.follow import BackOff, Follower, until_over
from hpcmass.workflow.select import all_runs, select_runs
from hpcmass.workflow.state import observe, read_run
from hpcmass.workflow.usage import parse_gpus
from hpcmass.workflow.why import explain_run


class Recorded:
    """Answers of a Slurm, in the place of the client; the real one is in tests/slurm/test_state.py."""

    def __init__(self, jobs: Mapping[str, JobInfo], *, accounting: bool = True) -> None:
        self.known, self.accounting = dict(jobs), accounting
        self.silent = ""
        self.asked: list[Sequence[str]] = []
        self.cancelled: list[str] = []
        self.down = ""

    def jobs(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        self.asked.append(list(ids))
        self.silent = self.down
        unknown = {one: JobInfo(one, JobState.UNKNOWN, reason=self.down or "not known") for one in ids}
        return (
            unknown if self.down else {**unknown, **{one: self.known[one] for one in ids if one in self.known}}
        )

    def has_accounting(self) -> bool:
        return self.accounting

    def cancel(self, ids: Sequence[str]) -> None:
        if self.down:
            raise SlurmError(self.down, transient=True)
        self.cancelled += ids


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.create(tmp_path / "p", "p")


def make(project: Project, name: str, job_id: str | None = None, **status: object) -> RunFolder:
    run = RunFolder(project.runs / name)
    run.create(f'name = "{name}"\n', "")
    if status:
        run.update(**status)
    if job_id is not None:
        base, _, index = job_id.partition("_")
        publish_submission(
            run.path,
            SubmissionRecord(1, base, int(index) if index else None, target="cpu", submitted=time.time()),
        )
    return run


def test_one_question_for_any_number_of_runs(project: Project) -> None:
    runs = [make(project, f"run-{number:03d}", f"5_{number}") for number in range(300)]
    done = make(project, "done", "9", state=State.COMPLETED)
    pending = {f"5_{number}": JobInfo(f"5_{number}", JobState.PENDING, "Resources") for number in range(300)}
    slurm = Recorded(pending)
    views = observe([*runs, done], slurm)  # type: ignore[arg-type]
    assert len(slurm.asked) == 1
    assert "9" not in slurm.asked[0]
    assert {view.phase for view in views[:-1]} == {Phase.QUEUED}
    assert views[-1].phase is Phase.COMPLETED


def test_no_slurm_is_asked_about_local_runs(project: Project) -> None:
    runs = [make(project, "a"), make(project, "b", state=State.FAILED, reason="NaN")]
    slurm = Recorded({})
    assert [view.phase for view in observe(runs, slurm)] == [Phase.CREATED, Phase.FAILED]  # type: ignore[arg-type]
    assert slurm.asked == []
    assert [view.phase for view in observe(runs, None)] == [Phase.CREATED, Phase.FAILED]


def test_json_holds_what_the_page_says(project: Project) -> None:
    run = make(
        project, "näme", "7", state=State.RUNNING, step=5, total_steps=20, attempt=1, metrics={"loss": 1.0}
    )
    for step in (1, 3, 5):
        append_record(
            run.metrics_file,
            {"kind": "train", "step": step, "loss": 1 / step, "samples_per_s": 50.0, "time": 1000.0 + step},
        )
    job = JobInfo("7", JobState.RUNNING, nodes=("cn1",), started=1.0, ends=time.time() + 600)
    with run.lease():
        (found,) = observe([run], Recorded({"7": job}))  # type: ignore[arg-type]
    value = json.loads(json.dumps(found.as_json()))
    assert value["state"] == "RUNNING"
    assert (value["step"], value["total_steps"], value["left_s"]) == (5, 20, 15.0)
    assert value["job"]["id"] == "7"
    assert value["nodes"] == ["cn1"]
    page = (Path(__file__).parents[3] / "docs" / "state.md").read_text(encoding="utf-8")
    for key in value:
        assert f"`{key}`" in page, key


def test_a_resume_takes_no_part_in_the_speed(project: Project) -> None:
    run = make(project, "r", state=State.RUNNING, step=30, total_steps=40)
    for step, when in ((10, 0.0), (20, 1.0)):
        append_record(run.metrics_file, {"kind": "train", "step": step, "time": when})
    append_record(run.metrics_file, {"kind": "resume", "from_step": 20, "time": 5000.0})
    for step, when in ((25, 5001.0), (30, 5002.0)):
        append_record(run.metrics_file, {"kind": "train", "step": step, "loss": "NaN", "time": when})
    reading = read_run(run)
    assert reading.steps_per_s == 5.0
    assert reading.loss is not None
    assert reading.loss != reading.loss


def test_runs_by_what_people_write(project: Project) -> None:
    first, second = make(project, "lr-1", "12"), make(project, "lr-2", "13_4")
    trial = RunFolder(project.studies / "s" / "trials" / "000003")
    trial.create('name = "s"\n', "")
    (project.studies / "s" / "job.toml").write_text('name = "s"\n')

    def names(*words: str) -> list[str]:
        return [run.path.name for run in select_runs(words, project)]

    assert names("lr-*") == ["lr-1", "lr-2"]
    assert names("lr-2", "lr-*") == ["lr-2", "lr-1"]
    assert names("12") == ["lr-1"]
    assert names("13_4") == names("13") == ["lr-2"]
    assert names(str(first.path)) == ["lr-1"]
    RunFolder(trial.path.with_name("000003.old-1")).create('name = "s"\n', "")
    assert names("s") == names("s/*") == names("s/3") == ["000003"]
    for word in ("nothing-*", "99", "lr-3", "s/4"):
        with pytest.raises(NotFound):
            names(word)
    second.update(step=1)
    assert [run.path.name for run in all_runs(project)] == ["lr-2", "lr-1"]


def test_polls_get_rarer_and_hurry_when_a_folder_changes(project: Project) -> None:
    run = make(project, "r", "7")
    slurm = Recorded({"7": JobInfo("7", JobState.PENDING, "Priority")})
    now = 0.0
    follower = Follower([run], slurm, back_off=BackOff(2, 60, 2), clock=lambda: now)  # type: ignore[arg-type]
    asked = []
    for _ in range(300):
        follower.look()
        if len(slurm.asked) > len(asked):
            asked.append(now)
        now += 1
    gaps = [later - before for before, later in pairwise(asked)]
    assert gaps[0] <= 2
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60
    polls = len(asked)
    run.update(state=State.STOPPED, step=3)
    follower.look()
    now += 1
    follower.look()
    assert len(slurm.asked) == polls + 1


def test_a_silent_slurm_is_remembered(project: Project) -> None:
    run = make(project, "r", "7")
    slurm = Recorded({"7": JobInfo("7", JobState.PENDING, "Priority")})
    follower = Follower([run], slurm, back_off=BackOff(0, 0))  # type: ignore[arg-type]
    assert follower.look()[0].phase is Phase.QUEUED
    slurm.down = "it is away"
    (view,) = follower.look()
    assert view.phase is Phase.UNKNOWN
    assert "it is away" in view.verdict.reason
    assert "since" in view.verdict.reason
    assert view.last_known == "it was QUEUED (other jobs are ahead of it)"
    assert not view.verdict.final
    slurm.down = ""
    assert follower.look()[0].phase is Phase.QUEUED
    assert follower.silent_since is None


def test_waiting_ends_with_the_last_run(project: Project) -> None:
    first, second = make(project, "a", state=State.COMPLETED), make(project, "b")
    second.update(state=State.RUNNING)
    lease = second.lease()
    lease.acquire()
    rounds = 0

    def sleep(_: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            second.update(state=State.COMPLETED)
            lease.release()

    views = list(until_over(Follower([first, second], None), sleep=sleep))
    assert rounds == 3
    assert [view.phase for view in views[-1]] == [Phase.COMPLETED, Phase.COMPLETED]
    second.update(state=State.FAILED)
    ended = list(until_over(Follower([second], None), sleep=lambda _: None, grace_s=0.0))
    assert ended[-1][0].phase is Phase.FAILED
    second.update(state=State.RUNNING)
    with second.lease():
        timed = list(until_over(Follower([second], None), timeout_s=0.0))
    assert not timed[-1][0].verdict.final


def test_cancel_claims_first_and_says_what_it_did(project: Project) -> None:
    run, done = make(project, "r", "7"), make(project, "d", state=State.COMPLETED)
    slurm = Recorded({"7": JobInfo("7", JobState.PENDING, "JobHeldUser")})
    slurm.down = "no answer"
    (told,) = cancel_runs([run], slurm, "why\nnot")  # type: ignore[arg-type]
    assert not told.done
    assert "its next hop ends at once" in told.text
    cancel = run.path / "slurm" / "cancel"
    before = cancel.read_text()
    assert "why" in before
    slurm.down = ""
    again = cancel_runs([run, done], slurm)  # type: ignore[arg-type]
    assert [one.done for one in again] == [True, True]
    assert "already" in again[0].text
    assert slurm.cancelled == ["7"]
    assert "completed" in again[1].text
    assert cancel.read_text() == before


def test_a_successor_submitted_meanwhile_is_cancelled_too(project: Project) -> None:
    run = make(project, "r", "7", state=State.STOPPED)
    slurm = Recorded({"7": JobInfo("7", JobState.COMPLETING)})

    def cancel(ids: Sequence[str]) -> None:
        assert (run.path / "slurm" / "cancel").exists()
        slurm.cancelled += ids
        if "8" not in ids:
            publish_submission(run.path, SubmissionRecord(2, "8", by="successor", submitted=time.time()))

    slurm.cancel = cancel  # type: ignore[method-assign]
    assert cancel_runs([run], slurm)[0].done  # type: ignore[arg-type]
    assert slurm.cancelled == ["7", "8"]


def test_a_number_that_another_job_has_now(project: Project) -> None:
    """Slurm lost its state and counts from 1 again: the other job is neither shown nor cancelled."""
    run = RunFolder(project.runs / "r")
    run.create('name = "r"\n', "")
    mine = SubmissionRecord(1, "7", submitted=time.time(), comment="hpcmass:mine", name="r")
    publish_submission(run.path, mine)
    others = [
        JobInfo("7", JobState.RUNNING, name="r", comment="hpcmass:another", source="squeue"),
        JobInfo("7", JobState.RUNNING, name="bash", source="squeue"),
        JobInfo("7", JobState.FAILED, name="bash", source="sacct"),
        JobInfo("7", JobState.RUNNING, name="r", submitted=mine.submitted - 3600, source="sacct"),
    ]
    for other in others:
        slurm = Recorded({"7": other})
        (view,) = observe([run], slurm)  # type: ignore[arg-type]
        assert view.phase is Phase.UNKNOWN
        lines = explain_run(run, slurm).lines()  # type: ignore[arg-type]
        assert any("another job has its number" in line for line in lines)
        assert lines[-1] == "- hpcmass rerun r"
        assert cancel_runs([run], slurm)[0].done  # type: ignore[arg-type]
        assert slurm.cancelled == []
        (run.path / "slurm" / "cancel").unlink()
    for same in (
        JobInfo("7", JobState.RUNNING, name="renamed", comment="a site's: hpcmass:mine", source="squeue"),
        JobInfo("7", JobState.RUNNING, name="r", comment="a site's own", source="squeue"),
        # A requeued job counts as submitted anew.
        JobInfo("7", JobState.RUNNING, name="r", submitted=mine.submitted + 3600, source="sacct"),
    ):
        (view,) = observe([run], Recorded({"7": same}))  # type: ignore[arg-type]
        assert view.phase is Phase.RUNNING


def test_a_local_run_is_asked_to_stop(project: Project) -> None:
    run = make(project, "r", state=State.UNKNOWN)
    fresh = make(project, "fresh")
    ended = make(project, "ended", state=State.FAILED)
    told = cancel_runs([run, fresh, ended], None)
    assert "never started" in told[1].text
    assert "ended already" in told[2].text
    assert not (ended.path / "stop").exists()


@pytest.mark.parametrize(
    ("job", "output", "words"),
    [
        (JobInfo("7", JobState.OUT_OF_MEMORY), "", "memory"),
        (
            JobInfo("7", JobState.FAILED, exit_code=1),
            "slurmstepd: error: Detected 1 oom-kill event(s)\n",
            "oom-kill",
        ),
        (
            JobInfo(
                "7",
                JobState.FAILED,
                exit_code=137,
                used=(("max_rss_bytes", 3.9e9), ("memory_asked_bytes", 4e9), ("nodes", 1.0)),
            ),
            "",
            "98 %",
        ),
        (JobInfo("7", JobState.TIMEOUT), "", "time limit"),
        (JobInfo("7", JobState.NODE_FAIL, nodes=("cn3",)), "", "one of its nodes failed on cn3"),
        (JobInfo("7", JobState.PREEMPTED), "", "preempted"),
    ],
)
def test_why_names_what_slurm_did(project: Project, job: JobInfo, output: str, words: str) -> None:
    run = make(project, "r", "7", state=State.UNKNOWN, attempt=1, step=4)
    (run.path / "slurm" / "out-7.log").write_text(output)
    text = "\n".join(explain_run(run, Recorded({"7": job})).lines())  # type: ignore[arg-type]
    assert words in text
    assert "hpcmass rerun r" in text
    assert "FAILED" in text.splitlines()[0]
    memory_advice = "more memory" in text
    assert memory_advice is (words in ("memory", "oom-kill", "98 %"))


def test_why_tells_the_hops(project: Project) -> None:
    run = make(project, "r", "7", state=State.STOPPED, attempt=2, step=40)
    hops = run.path / "slurm" / "hops.jsonl"
    append_record(hops, {"kind": "begin", "hop": 1, "job_id": "7", "nodes": ["cn1"], "ranks": 2, "time": 1.0})
    append_record(
        hops,
        {
            "kind": "end",
            "hop": 1,
            "cause": "time-limit",
            "step": 40,
            "next": "requeue",
            "time": 2.0,
            "state": "STOPPED",
        },
    )
    job = JobInfo("7", JobState.PENDING, "BeginTime")
    lines = explain_run(run, Recorded({"7": job})).lines()  # type: ignore[arg-type]
    assert lines[0].startswith("r: REQUEUED: it goes on after the time limit")
    assert any("1: job 7 on cn1, 2 ranks" in line and "step 40: time-limit" in line for line in lines)
    assert any("next: requeue" in line for line in lines)


def test_what_a_hop_said_is_why_its_job_failed(project: Project) -> None:
    """A recipe that cannot be loaded: no rank has begun, and Slurm knows an exit code only."""
    run = make(project, "r", "7")
    slurm = Recorded({"7": JobInfo("7", JobState.FAILED, exit_code=1)})
    hops = run.path / "slurm" / "hops.jsonl"
    begin = {"kind": "begin", "hop": 1, "job_id": "7", "nodes": ["cn1"], "ranks": 1, "time": time.time()}
    append_record(hops, begin)
    said = {"cause": "failed", "state": "FAILED", "reason": "build_model: no width", "next": "none"}
    append_record(hops, {"kind": "end", "hop": 1, "step": 0, "time": time.time(), **said})
    (view,) = observe([run], slurm)  # type: ignore[arg-type]
    assert (view.phase, view.verdict.reason) == (Phase.FAILED, "build_model: no width")
    lines = explain_run(run, slurm).lines()  # type: ignore[arg-type]
    assert lines[0] == "r: FAILED: build_model: no width"
    assert not any("never started" in line or "attempts: 0" in line for line in lines)
    assert any("1 rank," in line for line in lines)
    assert "submit the job again" in lines[-1]  # rerun would do the very same again
    # What the folder proves stands, also when Slurm has forgotten the job or does not answer.
    assert observe([run], Recorded({}))[0].phase is Phase.FAILED  # type: ignore[arg-type]
    assert observe([run], None)[0].phase is Phase.FAILED
    # A later job that never got as far as a hop failed for a reason of its own.
    publish_submission(run.path, SubmissionRecord(2, "8", by="rerun", submitted=time.time() + 60))
    slurm.known["8"] = JobInfo("8", JobState.NODE_FAIL)
    (view,) = observe([run], slurm)  # type: ignore[arg-type]
    assert view.verdict.reason == "job 8: one of its nodes failed"


def test_a_job_that_is_ending_promises_nothing(project: Project) -> None:
    run = make(project, "r", "7", state=State.STOPPED, step=4, total_steps=9, reason="stopped by SIGTERM")
    for step in (1, 4):
        append_record(run.metrics_file, {"kind": "train", "step": step, "time": 1000.0 + step})
    ending = JobInfo("7", JobState.COMPLETING, started=1.0, ends=time.time())
    (view,) = observe([run], Recorded({"7": ending}))  # type: ignore[arg-type]
    assert (view.phase, view.left_s, view.ends) == (Phase.RUNNING, None, None)


def test_gpus_of_this_machine() -> None:
    (gpu,) = parse_gpus("0, 35, 1024, 81559\n1, [N/A], 3, 4\n")
    assert (gpu.index, gpu.busy, gpu.memory_bytes) == (0, 0.35, 1024 * 1024**2)
