"""The job file: every fault is told with file, line, key, what was expected and the nearest name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hpcmass.config import Job, job_differences, job_from_values, job_to_toml, job_with, load_job
from hpcmass.errors import ConfigError, HpcmassError, NameNotAllowed, NotFound

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GOOD = """\
name = "digits"
recipe = "recipe.py"

[data]
train = "data/digits/train"

[params]
width = 32

[train]
lr = 0.01
optimizer = "AdamW"
schedule = { name = "CosineAnnealingLR", warmup_steps = 3 }

[sweep]
trials = 4

[sweep.space]
family = { type = "categorical", choices = ["cnn", "forest"] }
"train.lr" = { type = "float", low = 1e-4, high = 1e-1, log = true, when = { family = "cnn" } }
depth = { type = "int", low = 1, high = 5 }
"""


def write(folder: Path, text: str) -> Path:
    (folder / "recipe.py").write_text("def build_model(params): ...\n")
    file = folder / "job.toml"
    file.write_text(text)
    return file


def refused(folder: Path, text: str, sets: list[str] | None = None) -> HpcmassError:
    with pytest.raises(HpcmassError) as caught:
        load_job(write(folder, text), sets or [])
    return caught.value


def test_a_good_job_survives_being_written_and_read(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD))
    assert job.recipe == str(tmp_path / "recipe.py")
    assert job_from_values(tomllib.loads(job_to_toml(job))) == job


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("lr = 0.01", "lrr = 0.01", 11, ["unknown key 'train.lrr'", "did you mean 'lr'"]),
        ("lr = 0.01", 'lr = "0.01"', 11, ["'train.lr' is '0.01'", "a number"]),
        ("lr = 0.01", "lr = -1.0", 11, ["'train.lr' is -1.0", "greater than 0"]),
        ("lr = 0.01", "epochs = 2.5", 11, ["'train.epochs' is 2.5", "whole number"]),
        ("lr = 0.01", 'backend = "hovorod"', 11, ["'train.backend'", "did you mean 'horovod'"]),
        ("warmup_steps", "warmup_step", 13, ["train.schedule.warmup_step", "did you mean 'warmup_steps'"]),
        ("low = 1, high = 5", "low = 6, high = 5", 21, ["low (6) is above high (5)"]),
        ('type = "int"', 'type = "itn"', 21, ["'itn'", "categorical"]),
        ('"train.lr" =', '"train.lrate" =', 20, ["train.lrate", "did you mean 'train.lr"]),
        ('{ family = "cnn" }', '{ famly = "cnn" }', 20, ["famly", "no earlier dimension"]),
        ("[sweep]", "[sweeep]", 15, ["unknown key 'sweeep'", "did you mean 'sweep'"]),
        ('name = "digits"', 'name = "../digits"', 1, ["'../digits' is not allowed"]),
        ('name = "digits"', 'name = "$(touch x)"', 1, ["is not allowed"]),
        ('recipe = "recipe.py"', 'recipe = "nope.py"', 2, ["'nope.py' does not exist"]),
        ("[params]", "[params", 7, ["not valid TOML"]),
        ("trials = 4", 'sampler = "nsga"', 16, ["'sweep.sampler' is 'nsga'", "did you mean 'nsga2'"]),
        ("trials = 4", 'constraint = ["a < 1"]', 16, ["sweep.constraint", "did you mean 'constraints'"]),
        ("trials = 4", 'constraints = ["a == 1"]', 16, ["'a == 1' is none", "NAME <= NUMBER"]),
        ("trials = 4", 'directions = ["maximize"]', 16, ["'sweep.directions': is for sweep.metrics"]),
    ],
)
def test_a_fault_is_told_with_line_key_and_help(
    tmp_path: Path, old: str, new: str, line: int, words: list[str]
) -> None:
    assert old in GOOD
    error = refused(tmp_path, GOOD.replace(old, new, 1))
    assert error.where == f"{tmp_path / 'job.toml'}:{line}"
    for word in words:
        assert word in str(error)


SEVERAL = 'metrics = ["accuracy", "latency_ms"]\ndirections = ["maximize", "minimize"]\n'


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('metric = "accuracy"', ["'sweep.metric'", "keep one of the two"]),
        ('direction = "maximize"', ["'sweep.direction'", "keep one of the two"]),
        ('pruner = "asha"', ["'sweep.pruner'", "by one objective", 'set pruner = "none"']),
        ('sampler = "cmaes"', ["'sweep.sampler'", 'use "nsga2", "tpe" or "gp"']),
    ],
)
def test_several_objectives_refuse_what_is_for_one(tmp_path: Path, more: str, words: list[str]) -> None:
    error = refused(tmp_path, GOOD.replace("trials = 4", SEVERAL + more))
    assert error.where == f"{tmp_path / 'job.toml'}:18"
    for word in words:
        assert word in str(error)
    error = refused(tmp_path, GOOD.replace("trials = 4", SEVERAL.replace(', "minimize"', "")))
    assert "for each of the 2 sweep.metrics" in str(error)


def test_several_objectives_survive_being_written_and_read(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD.replace("trials = 4", SEVERAL + 'constraints = ["params < 1e6"]')))
    assert job.sweep is not None
    assert [(one.name, one.sign) for one in job.sweep.objectives] == [("accuracy", -1.0), ("latency_ms", 1.0)]
    assert job.sweep.names == ("accuracy", "latency_ms", "params")
    again = job_from_values(tomllib.loads(job_to_toml(job)))
    assert again == job
    assert "metric =" not in job_to_toml(job)
    assert [limit.violation(2e6) for limit in job.sweep.limits] == [1e6]
    assert job.sweep.limits[0].violation(1e6) > 0.0 == job.sweep.limits[0].violation(5.0)


def test_hyperband_has_to_know_a_whole_trial_s_evaluations(tmp_path: Path) -> None:
    text = GOOD.replace("trials = 4", 'pruner = "hyperband"')
    assert load_job(write(tmp_path, text)).evaluations == 1
    script = text.replace('recipe = "recipe.py"', 'command = "true"')
    assert "needs sweep.max_evaluations" in str(refused(tmp_path, script))


def test_all_faults_are_told_at_once_in_the_file_s_order(tmp_path: Path) -> None:
    error = refused(tmp_path, GOOD.replace("lr = 0.01", 'lr = "x"').replace("trials = 4", "trails = 4"))
    text = str(error)
    assert text.index("train.lr") < text.index("sweep.trails")


def test_recipe_or_command_is_needed(tmp_path: Path) -> None:
    assert "either 'recipe' or 'command'" in str(refused(tmp_path, 'name = "x"\n'))


def test_overrides(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD), ["train.lr=0.5", "params.act=relu", "train.epochs=7"])
    assert (job.train.lr, job.params["act"], job.train.epochs) == (0.5, "relu", 7)


@pytest.mark.parametrize("text", ["train.lr", "=3", "a..b=1", "trian.lr=1", "train.lr=abc", "name.x=1"])
def test_a_wrong_override_is_told_as_such(tmp_path: Path, text: str) -> None:
    error = refused(tmp_path, GOOD, [text])
    assert isinstance(error, ConfigError)
    assert str(error.where).startswith("--set")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"nope\.toml"):
        load_job(tmp_path / "nope.toml")


def test_names_are_held_to_safe_characters() -> None:
    with pytest.raises(NameNotAllowed):
        job_from_values({"name": "a b", "command": "true"})


def test_values_of_a_trial(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD))
    trial = job_with(job, {"width": 64, "train.lr": 0.02})
    assert trial.params == {"width": 64}
    assert job_differences(job, trial) == {"params.width": (32, 64), "train.lr": (0.01, 0.02)}
    assert job_differences(job, trial, ignore=["params", "train.lr"]) == {}
    with pytest.raises(ConfigError):
        job_with(job, {"train.nope": 1})


def test_job_is_frozen(tmp_path: Path) -> None:
    job: Job = load_job(write(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        job.name = "other"  # type: ignore[misc]


def test_words_of_a_command_that_name_a_file_beside_the_job_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    job = load_job(write(tmp_path, 'name = "x"\ncommand = "python train.py --lr {lr} --note \'a b\'"\n'))
    assert job.command == ["python", str(tmp_path / "train.py"), "--lr", "{lr}", "--note", "a b"]
    with pytest.raises(ConfigError, match="cut into words"):
        load_job(write(tmp_path, 'name = "x"\ncommand = "python \'train.py"\n'))
