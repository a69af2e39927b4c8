"""Evaluation of models by name: the right target, and the right run."""

import numpy as np
from study_jobs import RECIPE, RECIPE_JOB, job_of

from hpcmass.config import Project
from hpcmass.data import shard
from hpcmass.workflow.models import evaluate_model, register_run
from hpcmass.workflow.training import train


def test_a_model_is_held_against_the_target_of_its_job(tmp_path):
    project = Project.create(tmp_path / "project", "test")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 4)).astype(np.float32)
    good, other = (x[:, 0] > 0).astype(np.int64), rng.integers(0, 2, 240)
    np.savez(tmp_path / "raw.npz", x=x, label=other, side=good)
    shard(tmp_path / "raw.npz", project.data / "d", inputs=["x"], targets=["label"], meta=["side"], workers=1)
    (tmp_path / "recipe.py").write_text(RECIPE)
    text = RECIPE_JOB.partition("[sweep]")[0]
    text = text.replace("data/toy/train", "data/d").replace("data/toy/valid", "data/d")
    text = text.replace('test = "data/toy/test"', 'targets = ["side"]').replace("epochs = 2", "epochs = 15")
    run, status = train(job_of(project, text), project, console=False)
    assert status.metrics["accuracy"] > 0.85
    kept = evaluate_model("toy", "data/d", project)
    assert kept.metrics["accuracy"].value > 0.85
    assert len(list((run.path / "evaluations").iterdir())) == 1

    # A bundle's folder is a model too, though it is no name of a run.
    assert evaluate_model(str(run.model), "data/d", project).to_json() == kept.to_json()

    # Now the bare name is the catalogue's: its evaluation is not the run's.
    register_run("toy", project)
    (next((run.path / "evaluations").iterdir())).unlink()
    again = evaluate_model("toy", "data/d", project)
    assert again.metrics["accuracy"].value == kept.metrics["accuracy"].value
    assert list((run.path / "evaluations").iterdir()) == []
