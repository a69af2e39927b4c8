"""Warm starts out of real studies and a real catalogue, and single trials run again."""

import json

import pytest
from study_jobs import RECIPE_JOB, job_of

from hpcmass.cli.sweep import command
from hpcmass.config import Site
from hpcmass.errors import ConfigError, NotFound
from hpcmass.sweep.records import read_trials
from hpcmass.sweep.warm import read_warm_start
from hpcmass.workflow.models import register_run
from hpcmass.workflow.sweeps import rerun_trial, sweep

REPRODUCIBLE = RECIPE_JOB.replace("lr = 0.01 }", "lr = 0.01, reproducible = true }")


def test_a_study_learns_from_an_earlier_one_and_from_the_catalogue_and_a_trial_is_run_again(project, capsys):
    job = job_of(project, REPRODUCIBLE, trials=3, parallel=1)
    earlier = sweep(job, project, Site.local(), folder=project.study_path("earlier"))
    trials = read_trials(earlier.folder)
    register_run(trials[0][0].run, project, name="kept")

    # The first trial's width is out of the narrower space, unless it is the only one.
    widths = sorted(spec.params["width"] for spec, _ in trials)
    narrow = REPRODUCIBLE.replace("low = 2, high = 16", f"low = 2, high = {widths[-1] - 1}")
    inside = [spec for spec, _ in trials if spec.params["width"] < widths[-1]]
    events = []
    later = job_of(
        project, narrow, sampler="tpe", trials=1, warm_start=["studies/earlier", "catalogue:kept"],
        constraints=["bytes > 0"],
    )  # fmt: skip
    folder = project.study_path("later")
    sweep(later, project, Site.local(), folder=folder, on_event=events.append)
    warm = read_warm_start(folder)
    from_catalogue = trials[0][0] in inside
    assert [known.params for known in warm.taken] == [
        spec.params for spec in [*inside, *([trials[0][0]] if from_catalogue else [])]
    ]
    known = {spec.number: outcome.value for spec, outcome in trials}
    assert [one.measured["accuracy"] for one in warm.taken][: len(inside)] == [known[s.number] for s in inside]
    assert all(one.measured["bytes"] > 0 for one in warm.taken)
    assert sum(warm.left_out.values()) == 4 - len(warm.taken)
    assert events[0].message.startswith(f"warm start: {len(warm.taken)} earlier result")
    assert len(read_trials(folder)) == 1

    # It is pinned: what the catalogue has afterwards is nothing to the study that goes on.
    register_run(inside[0].run, project, name="kept")
    sweep(later, project, Site.local(), folder=folder)
    assert read_warm_start(folder) == warm

    spec, outcome, run = rerun_trial(earlier.folder, 1, project)
    weights = [one / "model/weights.safetensors" for one in (spec.path, run.path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    words = ["rerun", "earlier", "1", "--json", "--project", str(project.root)]
    code = command.main(words, standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert (code, told["then"], told["now"]) == (0, outcome.measured, outcome.measured)
    assert told["run"] == str(earlier.folder / "reruns/000001-2")
    assert len(read_trials(earlier.folder)) == 3
    with pytest.raises(NotFound, match="no trial 7"):
        rerun_trial(earlier.folder, 7, project)


def test_sources_that_are_not_there_are_named(project):
    for source in ("earler", "catalogue:nothing"):
        job = job_of(project, RECIPE_JOB, sampler="tpe", warm_start=[source])
        with pytest.raises(NotFound, match=source) as caught:
            sweep(job, project, Site.local())
        assert caught.value.where == "sweep.warm_start"
        assert not project.study_path("toy").joinpath("job.toml").exists()
    with pytest.raises(ConfigError, match="learns nothing"):
        job_of(project, RECIPE_JOB, warm_start=["earlier"])
