"""What a calibration asks for, is kept by, and reads out of a run's records."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcmass.config import Job, Layout, Project, Site, Target, job_to_toml, job_with, layout_of, load_job
from hpcmass.data import shard
from hpcmass.errors import CorruptError
from hpcmass.files import append_record
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.commands import SEPARATOR
from hpcmass.slurm.placement import Speed
from hpcmass.workflow import calibrate
from hpcmass.workflow.plan import parse_pending

SITE = Site(
    name="lab", default_target="cpu", targets={"cpu": Target(kind="slurm", cores=4, price_per_node_hour=1.0)}
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    import numpy as np

    project = Project.create(tmp_path / "p")
    x = np.zeros((130, 3), dtype="float32")
    np.savez(tmp_path / "raw.npz", x=x, y=np.zeros(130, dtype="int64"))
    shard(tmp_path / "raw.npz", project.data / "tiny", inputs=["x"], targets=["y"], shards=2, workers=1)
    (project.root / "recipe.py").write_text("def build_model(params): ...\n")
    (project.root / "job.toml").write_text(
        'name = "j"\nrecipe = "recipe.py"\n[data]\ntrain = "data/tiny"\n[train]\nepochs = 3\nglobal_batch = 50\n'
    )
    return project


@pytest.fixture
def job(project: Project) -> Job:
    return load_job(project.root / "job.toml")


def layout(job: Job) -> Layout:
    return layout_of(job.resources, SITE.targets["cpu"])


def test_work_is_what_is_left(job: Job, project: Project) -> None:
    whole = calibrate.work_of(job, project)
    assert whole is not None
    assert (whole.samples, whole.evaluations) == (390, 3)
    cut = calibrate.work_of(job_with(job, {"train.max_steps": 3}), project)
    assert cut is not None
    assert (cut.samples, cut.evaluations) == (130, 1)
    run = RunFolder(project.runs / "j")
    run.create(job_to_toml(job), "")
    run.update(step=6)
    left = calibrate.work_of(job, project, run.path)
    assert left is not None
    assert (left.samples, left.evaluations) == (130, 1)


def test_a_job_without_steps_is_counted_by_its_time_or_not_at_all(project: Project) -> None:
    script = Job(name="s", command=["python", "x.py"])
    assert calibrate.work_of(script, project) is None
    assert calibrate.assumed_speed(script) is None
    assert not calibrate.can_measure(script)
    timed = job_with(script, {"resources.time": "2h"})
    work, speed = calibrate.work_of(timed, project), calibrate.assumed_speed(timed)
    assert work is not None
    assert speed is not None
    assert work.samples / speed.samples_per_s == 7200
    assert "resources.time" in speed.assumed


@pytest.mark.parametrize(
    "change",
    [{"train.global_batch": 25}, {"params.width": 9}, {"train.precision": "bf16"}, {"resources.ranks": 2}],
)
def test_a_measurement_holds_for_what_was_measured_only(
    job: Job, project: Project, change: dict[str, object]
) -> None:
    key = calibrate.key_of(job, project, SITE, "cpu", layout(job))
    other = job_with(job, change)
    assert calibrate.key_of(other, project, SITE, "cpu", layout(other)) != key


def test_a_measurement_does_not_depend_on_length_price_or_limits(job: Job, project: Project) -> None:
    key = calibrate.key_of(job, project, SITE, "cpu", layout(job))
    longer = job_with(job, {"train.epochs": 9, "train.lr": 0.5, "resources.time": "2h"})
    assert calibrate.key_of(longer, project, SITE, "cpu", layout(longer)) == key
    dearer = SITE.model_copy(
        update={"targets": {"cpu": SITE.targets["cpu"].model_copy(update={"price_per_node_hour": 9.0})}}
    )
    assert calibrate.key_of(job, project, dearer, "cpu", layout(job)) == key
    (project.root / "recipe.py").write_text("def build_model(params): return 1\n")
    assert calibrate.key_of(job, project, SITE, "cpu", layout(job)) != key


def records(run: RunFolder, times: list[float]) -> None:
    for number, time in enumerate(times):
        record = {"kind": "train", "step": 5 * (number + 1), "loss": 1.0, "samples_per_s": 1.0, "time": time}
        append_record(run.metrics_file, record)


def test_speed_is_read_from_the_steady_part(job: Job, tmp_path: Path) -> None:
    attempt = tmp_path / "attempt-0001"
    attempt.mkdir()
    (attempt / "began").write_text("1000.0\n")
    run = RunFolder(attempt / "run")
    run.create(job_to_toml(job), "")
    # Ten seconds of start-up, a slow beginning, then 5 steps of 50 samples a second.
    records(run, [1015.0, 1020.0, 1021.0, 1022.0, 1023.0, 1024.0, 1025.0, 1026.0])
    run.update(state=State.COMPLETED, ended=1030.0)
    speed = calibrate._measure(run, attempt)
    assert speed is not None
    assert speed.samples_per_s == pytest.approx(250.0)
    assert speed.startup_s == pytest.approx(14.0)
    assert speed.end_s == pytest.approx(4.0)


def test_too_little_to_measure_is_no_measurement(job: Job, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert calibrate._measure(run, tmp_path) is None
    run.create(job_to_toml(job), "")
    records(run, [1.0])
    (tmp_path / "began").write_text("0.0")
    assert calibrate._measure(run, tmp_path) is None


def test_a_kept_measurement_is_read_back_and_a_damaged_one_is_said(project: Project) -> None:
    folder = project.root / "calibrations" / "cpu-1"
    folder.mkdir(parents=True)
    assert calibrate.known_speed(project, "cpu-1") is None
    (folder / "speed.json").write_text('{"format": 1, "samples_per_s": 2.5, "startup_s": 1, "end_s": 0}')
    assert calibrate.known_speed(project, "cpu-1") == Speed(2.5, 1.0, 0.0)
    (folder / "speed.json").write_text('{"format": 1}')
    with pytest.raises(CorruptError):
        calibrate.known_speed(project, "cpu-1")


def test_only_jobs_that_wait_for_nodes_stand_before_ours() -> None:
    rows = [("cpu", "Resources"), ("cpu,gpu", "Priority"), ("cpu", "Dependency"), ("gpu", "None"), ("broken",)]
    text = "\n".join(SEPARATOR.join(row) for row in rows)
    assert parse_pending(text) == [{"cpu"}, {"cpu", "gpu"}, {"gpu"}]
