import json

import pytest
from study_jobs import RECIPE_JOB, job_of

from hpcmass.config import Site
from hpcmass.errors import ConfigError
from hpcmass.runs import RunFolder, State
from hpcmass.workflow.models import register_run
from hpcmass.workflow.per_shard import train_per_shard

JOB = RECIPE_JOB.partition("[sweep]")[0].replace("train = { epochs", 'train = { mode = "per-shard", epochs')


def run_of(project):
    return RunFolder(project.run_path("parts"))


def test_parts_are_trained_on_their_shards_combined_and_compared(project):
    table = '[per_shard]\ngroups = 2\ncombine = ["vote", "average", "stack"]\n'
    job, run = job_of(project, JOB + table), run_of(project)
    status = train_per_shard(job, run, project, Site.local())
    assert status.state is State.COMPLETED
    shards = [json.loads((run.path / f"parts/0{g}/shards.json").read_text())["train"] for g in (0, 1)]
    assert shards == [[0, 2], [1, 3]]
    report = json.loads((run.path / "report.json").read_text())
    names = ["part 00", "part 01", "vote", "average", "stack", "data-parallel"]
    assert ([row["name"] for row in report["rows"]], report["split"]) == (names, "test")
    assert all((run.path / row["model"] / "model.json").is_file() for row in report["rows"])
    assert (run.model / "model.json").is_file()
    # 144 samples to train on, 72 a part: two epochs of batches of 32.
    assert RunFolder(run.path / "parts/00").status().step == 6
    assert RunFolder(run.path / "parts/whole").status().step == 10

    metrics = register_run(run, project).metrics
    assert metrics["test_accuracy"] == status.metrics["test_accuracy"]
    assert not [name for name in metrics if name.startswith("valid_")]

    again = train_per_shard(job, run, project, Site.local())
    assert again.state is State.COMPLETED
    assert RunFolder(run.path / "parts/00").status().attempt == 1

    # Trained parts are not trained further, so it must not look as if they were.
    more = job.model_copy(update={"train": job.train.model_copy(update={"epochs": 3})})
    with pytest.raises(ConfigError, match=r"train\.epochs: 2 then, 3 now"):
        train_per_shard(more, run, project, Site.local())
    assert run.status().state is State.COMPLETED


def test_a_second_interrupt_stops_the_run(project, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hpcmass.workflow.per_shard._until_completed", interrupted)
    run = run_of(project)
    with pytest.raises(KeyboardInterrupt):
        train_per_shard(job_of(project, JOB + "[per_shard]\ngroups = 2\n"), run, project, Site.local())
    status = run.status()
    assert (status.state, status.reason) == (State.STOPPED, "ended at once by Ctrl-C")
    assert run.errors() == []
    assert run.lease().owner() is None


def test_too_few_shards_are_refused_before_anything_is_written(project):
    job = job_of(project, JOB + "[per_shard]\ngroups = 5\n")
    with pytest.raises(ConfigError, match="4 shards of training data for 5 groups"):
        train_per_shard(job, run_of(project), project, Site.local())
    assert list(project.runs.iterdir()) == []
