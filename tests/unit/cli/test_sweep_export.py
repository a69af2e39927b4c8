"""`hpcmass sweep export`, from the project to a database that plain Optuna opens."""

import os

import optuna
import pytest

from hpcmass.cli.root import run as run_command
from hpcmass.config import job_from_values, job_to_toml
from hpcmass.sweep.log import StudyLog
from hpcmass.sweep.records import Outcome, TrialSpec, trial_path


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "hpcmass.toml").write_text('name = "p"\n')
    study = tmp_path / "studies/s"
    study.mkdir(parents=True)
    space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    job = job_from_values({"name": "s", "command": ["true"], "sweep": {"space": space}})
    (study / "job.toml").write_text(job_to_toml(job))
    log = StudyLog(study, job.name, job.sweep)
    for number in range(3):
        spec = TrialSpec(number, {"x": number / 4}, {"params.x": number / 4}, number, trial_path(study, number))
        spec.publish()
        log.drawn(spec)
        outcome = Outcome("complete", number / 2, [[1, number / 2]], 1, number)
        outcome.publish(spec.path)
        log.ended(number, outcome)
    log.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_export(project, capsys):
    assert run_command(["sweep", "export", "s", "--to", "sqlite:///x.db"]) == 0
    assert "3 trials written to sqlite:///x.db" in capsys.readouterr().out
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{project}/x.db")
    assert [(trial.params["x"], trial.value) for trial in study.trials] == [(n / 4, n / 2) for n in range(3)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["s", "--to", "sqlite:////nowhere/x.db"], "cannot write the copy"),
        (["s", "--to", "nowhere/x.journal"], "there is no such folder"),
        (["s", "--to", "nothing://x"], "nothing"),
        (["t", "--to", "x.journal"], "there is no study 't'"),
    ],
)
def test_what_cannot_be_exported_is_said_without_a_traceback(project, capsys, words, said):
    assert run_command(["sweep", "export", *words]) != 0
    answer = capsys.readouterr().err
    assert said in answer
    assert "Traceback" not in answer
    assert "x.journal" not in os.listdir(project)
