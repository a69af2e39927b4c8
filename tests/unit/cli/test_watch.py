"""`hpcmass watch`: its picture at any width, and a project in which not every run can be read."""

from __future__ import annotations

import time

import pytest

from hpcmass.cli.lines import width
from hpcmass.cli.root import run as cli
from hpcmass.cli.watch_view import Curves, Rank, Screen, render
from hpcmass.config import Project
from hpcmass.files import append_record
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.records import SubmissionRecord, publish_submission
from hpcmass.workflow.state import Answer, RunView, read_run, view
from hpcmass.workflow.usage import Usage

NOW = time.time()


def make(project: Project, name: str, job: JobInfo | None = None, **status: object) -> RunView:
    run = RunFolder(project.runs / name)
    run.create(f'name = "{name}"\n', "")
    run.update(**{"state": State.CREATED, **status})
    if job is not None:
        publish_submission(run.path, SubmissionRecord(1, job.job_id, target="cpu", submitted=NOW))
    return view(read_run(run), Answer({} if job is None else {job.job_id: job}))


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.create(tmp_path_factory.mktemp("watch") / "p", "p")


def queued(project: Project) -> RunView:
    job = JobInfo("7", JobState.PENDING, "Priority", partition="cpu", submitted=NOW - 300, started=NOW + 600)
    return make(project, "wäits-本", job)


def working(project: Project) -> RunView:
    job = JobInfo("8", JobState.RUNNING, partition="gpu", nodes=("gn1", "gn2"), ends=NOW + 3600)
    status = {"state": State.RUNNING, "attempt": 1, "step": 30, "total_steps": 90, "ranks": 4, "metrics": {}}
    run = RunFolder(project.runs / "works")
    make(project, "works", job, **status)
    for step in (10, 20, 30):
        append_record(run.metrics_file, {"kind": "train", "step": step, "loss": 1 / step, "time": NOW + step})
    with run.lease():
        return view(read_run(run), Answer({"8": job}))


@pytest.mark.parametrize("columns", [20, 47, 80, 200])
def test_no_line_is_wider_than_the_terminal(project: Project, columns: int) -> None:
    views = [queued(project), working(project)]
    usage = {"works": Usage(3.0, 8.0, 2e9, 4e9, source="sstat")}
    curves = {"works": Curves([1.0, 0.5], [9.0, 9.5])}
    ranks = {"works": [Rank(n, f"gn{1 + n // 8}, process {n}") for n in range(16)]}
    for shown in (views, views[:1], views[1:]):
        lines = render(Screen(shown, usage, curves, ranks, ["a note"], NOW), columns, 30)
        assert len(lines) <= 30
        assert all(width(text) <= columns for text, _ in lines), lines
        assert len(render(Screen(shown, usage, curves, ranks, [], NOW), columns, 4)) <= 4


def test_what_the_picture_says(project: Project) -> None:
    waits, works = queued(project), working(project)

    def text(*views: RunView) -> str:
        usage = {"works": Usage(3.0, 8.0, 2e9, 4e9, source="sstat")}
        return "\n".join(line for line, _ in render(Screen(views, usage, now=NOW), 160, 40))

    assert "2 runs: 1 queued, 1 running" in text(waits, works)
    alone = text(waits)
    assert "other jobs are ahead of it" in alone
    assert "waiting for 5 min, start expected" in alone
    shown = text(works)
    assert "step 30 of 90" in shown
    assert "60 s left" in shown  # 60 steps, one a second
    assert "3.0 of 8 cores" in shown
    assert "38 %" in shown
    assert "2.00 GB of 4.00 GB" in shown


def test_a_damaged_run_hides_no_other(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    make(project, "done", state=State.COMPLETED)
    make(project, "broken")
    (project.runs / "broken" / "status.json").write_text("{")
    for command, code in (("watch", 0), ("status", 1)):
        assert cli([command, "--project", str(project.root)]) == code
        said = capsys.readouterr()
        assert "broken" in said.err
        assert "cannot be read" in said.err
        assert "no run is waiting" in said.out if command == "watch" else "done" in said.out
