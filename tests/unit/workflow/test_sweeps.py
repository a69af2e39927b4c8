"""Whole studies through `sweep`: real recipes and scripts, real ranks, real Parsl."""

import pytest
from study_jobs import RECIPE, RECIPE_JOB, SCRIPT_JOB, job_of

from hpcmass.config import Site, load_job, load_site
from hpcmass.errors import ConfigError, NotFound, SweepError
from hpcmass.runs import RunFolder, State
from hpcmass.sweep.records import TrialSpec, read_trials, trial_path
from hpcmass.workflow.models import keep_run, register_run
from hpcmass.workflow.registry import open_catalogue
from hpcmass.workflow.sweeps import lay_down_run, sweep


def test_a_recipe_is_searched_and_each_trial_is_a_run_like_any_other(project):
    result = sweep(job_of(project, RECIPE_JOB), project, Site.local())
    assert result.counts == {"complete": 2, "pruned": 0, "failed": 0, "unfinished": 0}
    assert 0.0 <= result.best.value <= 1.0
    for spec, outcome in read_trials(result.folder):
        trial = load_job(spec.run.job_file)
        assert trial.params["width"] == spec.params["width"]
        assert trial.train.lr == spec.params["train.lr"]
        assert spec.run.status().state is State.COMPLETED
        assert (spec.run.model / "model.json").is_file()
        assert len(outcome.values) == 2
    job = job_of(project, RECIPE_JOB, trials=3)
    again = sweep(job, project, Site.local(), resume=True)
    assert (again.ran, again.counts["complete"]) == (1, 3)
    # In the catalogue it is called as the study's job, and knows which trial it was.
    version = register_run("toy/1", project)
    assert (version.ref, version.lineage["sweep"]) == ("toy@1", {"study": "toy", "trial": 1})
    assert keep_run(RunFolder(project.studies / "toy" / "trials" / "000002"), project).ref == "toy@2"
    found = open_catalogue(project).search("recipe == 'toy' and params.lr > 0 and lineage.sweep.trial == 1")
    assert [one.ref for one in found] == ["toy@1"]


def test_own_scripts_run_on_several_ranks_each(project):
    result = sweep(job_of(project, SCRIPT_JOB), project, Site.local())
    assert (result.best.number, result.best.value, result.best.params) == (1, 0.5, {"x": 1.0})
    log = read_trials(result.folder)[0][0].run.log_file(1, 1).read_text()
    assert "rank 1 of 2" in log


def test_recipes_run_on_several_ranks_each(project):
    result = sweep(job_of(project, RECIPE_JOB, trials=1, ranks=2), project, Site.local())
    assert result.counts["complete"] == 1
    assert read_trials(result.folder)[0][0].run.status().ranks == 2


def test_a_changed_job_is_refused_with_the_keys_that_differ(project):
    sweep(job_of(project, RECIPE_JOB, trials=1), project, Site.local())
    before = sorted(project.studies.rglob("*"))
    with pytest.raises(ConfigError, match=r"train\.epochs was 2, is 3") as caught:
        sweep(job_of(project, RECIPE_JOB.replace("epochs = 2", "epochs = 3")), project, Site.local())
    assert caught.value.data["keys"] == ["train.epochs"]
    (project.root.parent / "recipe.py").write_text(RECIPE + "\n# changed\n")
    with pytest.raises(ConfigError, match="the recipe has changed"):
        sweep(job_of(project, RECIPE_JOB, trials=2), project, Site.local())
    assert [p for p in sorted(project.studies.rglob("*")) if "lease" not in p.name] == [
        p for p in before if "lease" not in p.name
    ]


def test_an_impossible_grid_and_a_missing_study_leave_nothing(project):
    with pytest.raises(ConfigError, match="step"):
        sweep(job_of(project, RECIPE_JOB, sampler="grid"), project, Site.local())
    with pytest.raises(NotFound, match="no study here"):
        sweep(job_of(project, RECIPE_JOB), project, Site.local(), resume=True)
    assert list(project.studies.iterdir()) == []


def test_a_repaired_recipe_reaches_the_trials_that_have_not_begun(project):
    text = RECIPE_JOB.replace(
        "[sweep.space]", '[sweep.space]\nbroken = { type = "categorical", choices = [true] }'
    )
    job, events = job_of(project, text, trials=4, parallel=1), []
    with pytest.raises(SweepError, match="the first 3 trials failed the same way"):
        sweep(job, project, Site.local())
    folder = project.study_path(job.name)
    # The third failed too, but its driver was killed before it could count it.
    (folder / "trials/000002/outcome.json").unlink()
    (project.root.parent / "recipe.py").write_text(RECIPE.replace('"broken"', '"no longer"'))
    result = sweep(job, project, Site.local(), on_event=events.append)
    assert result.counts == {"complete": 2, "pruned": 0, "failed": 2, "unfinished": 0}
    assert events[0].message == (
        "2 unfinished; the recipe was repaired; "  # one of them drawn ahead
        "2 that failed with the old one still count (raise sweep.trials to have more)"
    )
    copies = [(spec.run.path / "recipe.py").read_text() for spec, _ in read_trials(folder)]
    assert ["no longer" in copy for copy in copies] == [False, False, True, True]


def test_a_trial_that_has_begun_to_train_keeps_its_recipe_and_this_is_said(project):
    job = job_of(project, RECIPE_JOB, trials=1)
    sweep(job, project, Site.local())
    ((spec, _),) = read_trials(project.study_path(job.name))
    (spec.path / "outcome.json").unlink()
    (project.root.parent / "recipe.py").write_text(RECIPE + "# repaired\n")
    events = []
    assert sweep(job, project, Site.local(), on_event=events.append).counts["complete"] == 1
    assert "1 had begun to train, and go on with the old one" in events[0].message
    assert "repaired" not in (spec.path / "recipe.py").read_text()


def test_a_recipe_that_raises_fails_its_trial_with_its_line(project):
    text = RECIPE_JOB.replace(
        "[sweep.space]", '[sweep.space]\nbroken = { type = "categorical", choices = [true] }'
    )
    result = sweep(job_of(project, text), project, Site.local())
    assert result.counts["failed"] == 2
    spec, outcome = read_trials(result.folder)[0]
    assert "no such model" in outcome.reason
    assert spec.run.status().state is State.FAILED
    assert spec.run.errors()


def test_rungs_of_a_recipe_go_on_from_its_checkpoint(project):
    text = RECIPE_JOB.replace("epochs = 2", "epochs = 4")
    result = sweep(job_of(project, text, trials=4, parallel=1, pruner="halving"), project, Site.local())
    assert result.counts["complete"] >= 1
    assert result.counts["complete"] + result.counts["pruned"] == 4
    for spec, outcome in read_trials(result.folder):
        epochs = [record["epoch"] for record in spec.run.records("valid")]
        assert len(epochs) == len(set(epochs)) == {"complete": 4}.get(outcome.state, len(epochs))
        resumed = [record["from_step"] for record in spec.run.records("resume")]
        assert all(step > 0 for step in resumed)
        assert spec.run.status().attempt == 1 + len(resumed)
        assert len(epochs) in (1, 3, 4)


def test_a_trial_goes_on_with_the_site_of_today(project):
    job, old = job_of(project, RECIPE_JOB, trials=1, parallel=1), Site.local()
    folder = sweep(job, project, old).folder
    job = job_of(project, RECIPE_JOB, trials=2, parallel=1)
    # As a driver leaves it that drew a trial ahead and was killed; then the site's file was edited.
    spec = TrialSpec(1, {"width": 8, "train.lr": 0.1}, {}, 1, trial_path(folder, 1))
    spec.publish()
    lay_down_run(job, old, spec.path, ranks=1, recipe=folder / "recipe.py")
    new = Site.model_validate(
        {"name": "new", "targets": {"here": {"kind": "local", "cores": 2}}, "default_target": "here"}
    )
    result = sweep(job, project, new)
    assert result.counts["complete"] == 2
    assert load_site(spec.path / "site.toml").targets == load_site(folder / "site.toml").targets == new.targets
