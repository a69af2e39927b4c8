"""`status`, `wait`, `cancel`, `why` on a real Slurm: what is shown is what is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpcmass.config import Site, load_job
from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobState
from hpcmass.slurm.judge import Phase
from hpcmass.slurm.records import SubmissionRecord, publish_submission
from hpcmass.workflow.cancel import cancel_runs
from hpcmass.workflow.follow import BackOff, Follower
from hpcmass.workflow.state import RunView, observe
from hpcmass.workflow.sweeps import lay_down_run
from hpcmass.workflow.usage import Sampler
from hpcmass.workflow.why import explain_run

pytestmark = pytest.mark.slurm

HPCMASS = [sys.executable, "-c", "from hpcmass.__main__ import main; main()"]
HELD = """
import pathlib, time

STEPS = []

def transform(batch, train=True):
    STEPS.append(train)
    time.sleep(0.3 if train else 0)
    while STEPS.count(True) > 10 and not (pathlib.Path(__file__).parent / "go").exists():
        time.sleep(0.05)
    return batch
"""


@pytest.fixture(autouse=True)
def _speaks_to_it(slurm_env: dict[str, str]) -> None:
    pass


@pytest.fixture
def slurm() -> Slurm:
    return Slurm(timeout_s=120, patience_s=120)


def lay(project: Path, name: str) -> RunFolder:
    job = load_job(project / "job.toml")
    lay_down_run(job, Site.local(), project / "runs" / name, ranks=1, recipe=project / "recipe.py")
    return RunFolder(project / "runs" / name)


def submit(cluster: Cluster, runs: RunFolder | list[RunFolder], body: str, *options: str) -> str:
    """Submit a script for a run, or for several as an array's elements, and write it down as submit does."""
    listed = runs if isinstance(runs, list) else [runs]
    folder = listed[0].path.parent
    script = folder / f"job-{time.time_ns()}.sh"
    script.write_text(f"#!/bin/bash\n{body}\n")
    words = [f"--output={folder}/batch-%j.log", "--nodes=1", *options]
    done = cluster.run("sbatch", "--parsable", *words, str(script))
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    for index, run in enumerate(listed):
        number = (
            1 + len(list((run.path / "slurm").glob("submission-*"))) if (run.path / "slurm").is_dir() else 1
        )
        element = index if isinstance(runs, list) else None
        record = SubmissionRecord(number, job_id, element, target="cpu", submitted=time.time())
        publish_submission(run.path, record)
    return job_id


def see(run: RunFolder, slurm: Slurm, good: Callable[[RunView], Any], limit_s: float = 240) -> RunView:
    """Look until a view is as it should be."""
    until = time.monotonic() + limit_s
    while True:
        (found,) = observe([run], slurm)
        if good(found):
            return found
        assert time.monotonic() < until, (found.phase, found.verdict, found.job)
        time.sleep(0.3)


def phase(*wanted: Phase) -> Callable[[RunView], bool]:
    return lambda view: view.phase in wanted


def cli(project: Path, *words: str, code: int | None = 0) -> str:
    done = subprocess.run(
        [*HPCMASS, *words, "--project", str(project)],
        capture_output=True,
        text=True,
        timeout=700,
        env=os.environ,
    )
    assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def train(project: Path, run: RunFolder) -> str:
    words = [*HPCMASS, "train", str(project / "job.toml"), "--project", str(project), "--run", run.path.name]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    return f"export OMP_NUM_THREADS=1\nexec {quoted}"


def test_jobs_that_wait_say_why(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    held, later, after, never = (lay(project, name) for name in ("held", "later", "after", "never"))
    submit(cluster, held, "true", "--hold")
    first = submit(cluster, later, "true", "--begin=now+1hour")
    submit(cluster, after, "true", f"--dependency=afterok:{first}")
    failed = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap", "exit 3").stdout.strip()
    submit(cluster, never, "true", f"--dependency=afterok:{failed}")

    calls = slurm.calls
    views = observe([held, later, after], slurm)
    assert slurm.calls - calls <= 2
    assert [view.phase for view in views] == [Phase.QUEUED] * 3
    reasons = [view.verdict.reason for view in views]
    assert "held by its owner" in reasons[0]
    assert "begin time" in reasons[1]
    assert "submitted after" in reasons[2]
    assert views[1].expected_start is not None
    assert views[1].expected_start > time.time() + 3000
    found = see(never, slurm, lambda view: "never lets" in view.verdict.reason)
    assert "as it stands it will not start" in found.verdict.notes

    shown = json.loads(cli(project, "status", "--json"))
    assert shown["format"] == 1
    assert {run["name"]: run["state"] for run in shown["runs"]} == dict.fromkeys(
        ("held", "later", "after", "never"), "QUEUED"
    )
    text = cli(project, "why", "held")
    assert "scontrol release" in text


def test_a_run_from_queue_to_completion(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    with open(project / "recipe.py", "a") as file:
        file.write(HELD)
    run = lay(project, "whole")
    job_id = submit(cluster, run, train(project, run), "--partition=cpu")
    found = see(run, slurm, lambda view: view.phase is Phase.RUNNING and view.status.step > 1)
    assert found.job is not None
    assert found.job.job_id == job_id
    assert found.nodes
    assert found.nodes[0].startswith("cn")
    assert found.status.total_steps == 20
    assert found.ends is not None
    text = cli(project, "status", job_id)
    assert "RUNNING" in text
    assert f"on {found.nodes[0]}" in text
    (project / "go").touch()  # beside the recipe, which is the project's
    assert cli(project, "wait", "whole", "--timeout", "10m").splitlines()[-1].startswith("whole: COMPLETED")
    (done,) = observe([run], slurm)
    assert done.phase is Phase.COMPLETED
    (start,) = run.records("start")
    assert list(start["parts"]) == ["imports", "rendezvous", "data", "model", "first_step"]
    assert sorted(start["parts"].values()) == list(start["parts"].values())


def test_slurm_completed_is_no_success(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    run, broken = lay(project, "empty"), lay(project, "broken")
    submit(cluster, run, "true")
    submit(cluster, broken, "echo no such module; exit 7")
    found = see(run, slurm, lambda view: view.verdict.final)
    assert found.phase is Phase.FAILED
    assert "no success" in found.verdict.reason
    # Its exit code is known once accounting has it, a few seconds later.
    assert see(broken, slurm, lambda view: "exit code 7" in view.verdict.reason).phase is Phase.FAILED
    cli(project, "wait", "empty", "--timeout", "10m", code=1)
    assert "hpcmass rerun empty" in cli(project, "why", "empty")


def test_the_folder_proves_success_whatever_slurm_says(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    run = lay(project, "proved")
    job_id = submit(cluster, run, "sleep 300")
    see(run, slurm, phase(Phase.RUNNING))
    cluster.run("scancel", job_id)
    see(run, slurm, phase(Phase.CANCELLED))
    run.update(state=State.COMPLETED, step=20, ended=time.time())
    (found,) = observe([run], slurm)
    assert found.phase is Phase.COMPLETED
    assert any("CANCELLED" in line for line in explain_run(run, slurm).lines())


def test_cancel_held_waiting_running_and_elements(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    held, waiting, running = (lay(project, name) for name in ("held", "waiting", "running"))
    array = [lay(project, f"element-{index}") for index in range(3)]
    submit(cluster, held, "true", "--hold")
    submit(cluster, waiting, "true", "--begin=now+1hour")
    submit(cluster, running, "sleep 300")
    submit(cluster, array, "sleep 300", "--array=0-2%1")
    see(running, slurm, phase(Phase.RUNNING))
    see(array[0], slurm, phase(Phase.RUNNING))
    views = observe(array, slurm)
    assert [view.phase for view in views] == [Phase.RUNNING, Phase.QUEUED, Phase.QUEUED]
    see(array[1], slurm, lambda view: "of its array" in view.verdict.reason)  # Slurm looks at it in its turn.

    text = cli(project, "cancel", "held", "waiting", "running", "element-1", "--why", "a test; $(no shell)")
    assert text.count("cancelled job") == 4
    for run in (held, waiting, running, array[1]):
        found = see(run, slurm, lambda view: view.verdict.final)
        assert found.phase is Phase.CANCELLED
        assert "a test; $(no shell)" in found.verdict.reason
    assert observe(array[:1], slurm)[0].phase is Phase.RUNNING
    again = cancel_runs([held, running], slurm)
    assert all(one.done and "already" in one.text for one in again)
    cli(project, "wait", "held", "running", code=1)
    cli(project, "wait", "element-0", "--timeout", "1s", code=124)


def test_a_silent_slurm_is_unknown_and_then_right_again(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    waits, runs, done = (lay(project, name) for name in ("waits", "runs", "done"))
    submit(cluster, waits, "true", "--begin=now+1hour")
    submit(cluster, runs, "sleep 300")
    done.update(state=State.COMPLETED, step=3)
    see(runs, slurm, phase(Phase.RUNNING))
    hasty = Slurm(timeout_s=3, patience_s=0)  # squeue itself tries for many seconds
    follower = Follower([waits, runs, done], hasty, back_off=BackOff(0.2, 1.0))
    until = time.monotonic() + 180
    while [view.phase for view in follower.look()] != [Phase.QUEUED, Phase.RUNNING, Phase.COMPLETED]:
        assert time.monotonic() < until
        time.sleep(0.1)
    cluster.stop_controller()
    try:
        until = time.monotonic() + 180
        while (views := follower.look())[0].phase is not Phase.UNKNOWN:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert [view.phase for view in views] == [Phase.UNKNOWN, Phase.UNKNOWN, Phase.COMPLETED]
        assert "since " in views[0].verdict.reason
        assert views[0].last_known.startswith("it was QUEUED")
        assert observe([waits], hasty)[0].last_known.startswith("submitted at")
        (told,) = cancel_runs([waits], hasty, "while it was away")
        assert not told.done
        assert (waits.path / "slurm" / "cancel").read_text().endswith("while it was away\n")
    finally:
        cluster.start_controller()
    until = time.monotonic() + 180
    while (views := follower.look())[1].phase is not Phase.RUNNING:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert views[0].phase is Phase.QUEUED
    assert "to be cancelled" in " ".join(views[0].verdict.notes)
    assert cancel_runs([waits], slurm)[0].done
    assert see(waits, slurm, lambda view: view.verdict.final).phase is Phase.CANCELLED


def test_a_killed_node(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    lost, back = lay(project, "lost"), lay(project, "back")
    submit(cluster, lost, "sleep 300", "--nodelist=cn3", "--no-requeue")
    submit(cluster, back, "sleep 300", "--nodelist=cn3", "--requeue")
    see(lost, slurm, phase(Phase.RUNNING))
    see(back, slurm, phase(Phase.RUNNING))
    for run in (lost, back):
        run.update(state=State.RUNNING, attempt=1, step=5)  # its process is gone with the node
    cluster.kill_node("cn3")
    assert see(lost, slurm, phase(Phase.UNKNOWN, Phase.FAILED)).verdict.reason
    found = see(lost, slurm, phase(Phase.FAILED))
    assert "one of its nodes failed" in found.verdict.reason
    assert any("rerun lost" in line for line in explain_run(lost, slurm).lines())
    waits = see(back, slurm, phase(Phase.REQUEUED))
    assert not waits.verdict.final


def test_a_job_that_slurm_has_forgotten(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    run = lay(project, "old")
    publish_submission(run.path, SubmissionRecord(1, "999999", submitted=1.0))
    (found,) = observe([run], slurm)
    assert found.phase is Phase.UNKNOWN
    assert found.verdict.final
    assert "no longer knows job 999999" in found.verdict.reason
    run.update(state=State.FAILED, reason="the loss is NaN")
    (found,) = observe([run], slurm)
    assert (found.phase, found.verdict.reason) == (Phase.FAILED, "the loss is NaN")


def test_a_number_that_another_job_has_now(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    """A Slurm that lost its state counts from 1 again: neither shown nor cancelled is the other job."""
    mine, other = lay(project, "mine"), lay(project, "other")
    job_id = submit(cluster, other, "sleep 300", "--comment=hpcmass:other", "--job-name=other")
    record = SubmissionRecord(1, job_id, submitted=time.time(), comment="hpcmass:mine", name="mine")
    publish_submission(mine.path, record)
    see(other, slurm, phase(Phase.RUNNING))
    assert observe([mine], slurm)[0].phase is Phase.UNKNOWN
    assert cancel_runs([mine], slurm)[0].done
    assert slurm.jobs([job_id])[job_id].state is JobState.RUNNING
    assert slurm.jobs([job_id])[job_id].comment == "hpcmass:other"
    cluster.run("scancel", job_id)
    see(other, slurm, lambda view: view.verdict.final)


def test_what_a_running_job_uses(cluster: Cluster, project: Path, slurm: Slurm) -> None:
    if not cluster.has_accounting:
        pytest.skip("this cluster gathers what jobs use with accounting only")
    run = lay(project, "busy")
    submit(cluster, run, "exec timeout 500 sh -c 'while :; do :; done'")
    running = see(run, slurm, phase(Phase.RUNNING))
    sampler = Sampler(slurm)
    until = time.monotonic() + 240
    while not ((usage := sampler.sample([running]).get("busy")) and usage.cpus and usage.memory_bytes):
        assert time.monotonic() < until, usage
        time.sleep(0.5)
    assert usage.source == "sstat"
    assert 0.01 < usage.cpus < 1.5
    assert usage.memory_bytes < 1e9
    cancel_runs([run], slurm)
    ended = see(run, slurm, lambda view: view.verdict.final and bool(view.job and view.job.used))
    assert sampler.sample([ended])["busy"].source == "sacct"


def test_without_accounting(
    cluster_factory: Callable[..., Cluster], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_factory(accounting=False)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    slurm = Slurm(timeout_s=120, patience_s=120)
    run, old = lay(project, "plain"), lay(project, "old")
    submit(cluster, run, "sleep 300")
    publish_submission(old.path, SubmissionRecord(1, "999999", submitted=1.0))
    see(run, slurm, phase(Phase.RUNNING))
    (found,) = observe([old], slurm)
    assert found.phase is Phase.UNKNOWN
    assert "no accounting" in found.verdict.reason
    assert "no accounting" in cli(project, "status")
    assert cancel_runs([run], slurm)[0].done
    assert see(run, slurm, lambda view: view.verdict.final).phase is Phase.CANCELLED
    assert "keeps no accounting" in cli(project, "why", "old")
