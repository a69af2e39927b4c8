import json
import os
import shutil
import subprocess
import sys
import time

import optuna
import pytest
from test_driver import drive
from toy_trials import toy_job, toy_trial

from hpcmass.errors import (
    AlreadyExists,
    ConfigError,
    CorruptError,
    LeaseHeld,
    NotFound,
    StorageError,
    SweepError,
)
from hpcmass.sweep import log as log_module
from hpcmass.sweep.history import RecordHistory, TrialHistory, record_of
from hpcmass.sweep.log import StudyLog, study_trials
from hpcmass.sweep.records import Outcome, read_outcome, read_trials
from hpcmass.sweep.storage import StudyStorage, export_study

SPACE = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "family": {"type": "categorical", "choices": ["a", "b"]},
    "n": {"type": "int", "low": 1, "high": 64, "log": True, "when": {"family": "b"}},
}


def studied(folder, **sweep):
    job = toy_job(**{"space": SPACE, "trials": 6, "parallel": 1, **sweep})
    drive(job, folder)
    return job


def test_the_log_says_what_the_folders_say(tmp_path):
    job = studied(tmp_path, space={**SPACE, "fails": {"type": "categorical", "choices": [0, 1]}}, seed=1)
    told = study_trials(tmp_path)
    assert told.pairs() == read_trials(tmp_path)
    assert {"failed", "complete"} == {o.state for o in told.outcomes.values()}
    files = [json.loads(line[9:]) for line in (tmp_path / "log/000001.log").read_bytes().splitlines()]
    assert [f[0] for f in files[1:]] == ["study", *["drawn"] * 2, *["ended", "drawn"] * 4, *["ended"] * 2]
    plain = RecordHistory([record_of(job.sweep, *pair) for pair in read_trials(tmp_path)])
    lazy = TrialHistory(job.sweep, told)
    assert [lazy.record(n) for n in range(6)] == [plain.record(n) for n in range(6)]
    order = plain.in_order()
    assert (lazy.in_order(), list(lazy.curves(order))) == (order, list(plain.curves(order)))
    assert list(lazy.standings(order)) == list(plain.standings(order))


@pytest.mark.parametrize("loses", ["all", "head", "tail", "middle", "torn"])
def test_what_a_log_has_lost_comes_from_the_folders(tmp_path, loses):
    job = studied(tmp_path)
    before, file = read_trials(tmp_path), tmp_path / "log/000001.log"
    lines = file.read_bytes().splitlines(keepends=True)
    if loses == "all":  # as of an earlier hpcmass
        shutil.rmtree(tmp_path / "log")
    else:
        kept = {"head": lines[4:], "tail": lines[:5], "middle": [*lines[:5], b"?", *lines[5:]]}
        file.write_bytes(b"".join(kept.get(loses) or [*lines[:-1], lines[-1][:-4]]))
    assert study_trials(tmp_path).pairs() == before
    log = StudyLog(tmp_path, job.name, job.sweep)
    assert log.trials.pairs() == before
    damaged = loses in ("head", "middle")
    assert ("000001.log" in log.note, (tmp_path / "log.damaged-1").exists()) == (damaged, damaged)
    log.close()
    os.rename(tmp_path / "trials/000000", tmp_path / "away")
    for folder in (tmp_path / "trials").iterdir():
        os.truncate(folder / "trial.json", 0)  # the log is whole again: nobody looks there
    os.rename(tmp_path / "away", tmp_path / "trials/000000")
    assert study_trials(tmp_path).pairs() == before


def test_an_outcome_that_was_taken_away_is_counted_anew(tmp_path):
    job = studied(tmp_path)
    before = read_trials(tmp_path)
    (tmp_path / "trials/000005/outcome.json").unlink()
    assert study_trials(tmp_path).unfinished() == [5]
    log = StudyLog(tmp_path, job.name, job.sweep)
    assert (log.trials.unfinished(), log.note) == ([5], "")
    log.close()
    again, _ = drive(job, tmp_path)
    assert (again.ran, again.counts["complete"]) == (1, 6)
    assert study_trials(tmp_path).pairs() == read_trials(tmp_path) == before


def test_a_trial_whose_folder_was_removed_is_missed(tmp_path):
    job = studied(tmp_path)
    shutil.rmtree(tmp_path / "trials/000003")
    for opens in (lambda: study_trials(tmp_path), lambda: StudyLog(tmp_path, job.name, job.sweep)):
        with pytest.raises(CorruptError, match="trial 3 is missing"):
            opens()


def test_what_another_driver_counted_stays_in_the_log_too(tmp_path, monkeypatch):
    publish = Outcome.publish

    def second(outcome, folder):
        publish(Outcome("failed", None, [], 1, 0, reason="so said the other one"), folder)
        return publish(outcome, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Outcome, "publish", second)
        with pytest.raises(LeaseHeld, match="has taken this study over"):
            drive(toy_job(trials=1), tmp_path)
    drive(toy_job(trials=1), tmp_path)
    assert study_trials(tmp_path).outcome(0) == read_outcome(tmp_path / "trials/000000")


def test_a_log_stays_where_it_is_when_the_folders_are_at_fault(tmp_path):
    drive(toy_job(trials=4), tmp_path / "study")
    before = study_trials(tmp_path / "study").pairs()
    shutil.move(tmp_path / "study/trials/000001", tmp_path / "away")
    for _ in range(2):  # also when it is tried again
        with pytest.raises(CorruptError, match="trial 1 is missing"):
            drive(toy_job(trials=4), tmp_path / "study")
    assert not list((tmp_path / "study").glob("log.damaged-*"))
    shutil.move(tmp_path / "away", tmp_path / "study/trials/000001")
    drive(toy_job(trials=4), tmp_path / "study")
    assert study_trials(tmp_path / "study").pairs() == before


def test_snapshots_come_while_the_driver_runs_and_say_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "_LEAST", 3)
    monkeypatch.setattr("hpcmass.sweep.trials.CHUNK", 2)
    seen = []

    class Looks(list):
        def append(self, event):
            if event[0] in ("started", "complete", "failed"):
                assert study_trials(tmp_path).pairs() == read_trials(tmp_path)
                seen.append(max((path.name for path in (tmp_path / "log").glob("*.snapshot")), default=""))

    space = {**SPACE, "fails": {"type": "categorical", "choices": [0, 1]}}
    for trials in (9, 17):  # the second driver goes on from the first one's snapshots
        drive(toy_job(space=space, trials=trials, parallel=3, sampler="tpe", seed=1), tmp_path, events=Looks())
    assert len(set(seen)) > 4
    told = study_trials(tmp_path)
    assert told.counts()["failed"] > 0 < told.counts()["complete"]
    assert (told.unfinished(), told.counted, len(told)) == ([], 17, 17)
    plain = RecordHistory([record_of(toy_job(space=space).sweep, *pair) for pair in read_trials(tmp_path)])
    lazy = TrialHistory(toy_job(space=space).sweep, told)
    assert [list(point.items()) for point in lazy.points()] == [list(point.items()) for point in plain.points()]
    order = plain.in_order()
    assert (lazy.in_order(), list(lazy.curves(order))) == (order, list(plain.curves(order)))
    assert list(lazy.standings(order)) == list(plain.standings(order))
    assert (
        optuna.load_study(study_name=None, storage=StudyStorage(tmp_path)).trials[16].params
        == told.points()[16]
    )


def test_plain_optuna_reads_a_study_while_its_driver_writes(tmp_path):
    storages, seen = [], []

    class Looks(list):
        def append(self, event):
            if event[0] != "opened":
                storages[:] = storages or [StudyStorage(tmp_path)]
                study = optuna.load_study(study_name="toy", storage=storages[0])
                seen.append([trial.state.name for trial in study.trials])

    drive(toy_job(space=SPACE, trials=4, parallel=1), tmp_path, events=Looks())
    assert ["COMPLETE", "RUNNING"] in seen
    assert seen[-1] == ["COMPLETE"] * 4


def test_what_optuna_sees_of_a_study(tmp_path):
    studied(tmp_path, pruner="asha", direction="maximize", constraints=["loss <= 0.8"])
    storage = StudyStorage(tmp_path)
    study = optuna.load_study(study_name="toy", storage=storage)
    told = read_trials(tmp_path)
    for trial, (spec, outcome) in zip(study.trials, told, strict=True):
        assert trial.params == spec.params
        assert set(trial.distributions) == set(spec.params)
        assert trial.state.name.lower() == outcome.state
        assert list(trial.intermediate_values.items()) == [tuple(pair) for pair in outcome.values]
        assert trial.user_attrs["attempts"] == 1
        if outcome.state == "complete":
            assert trial.value == outcome.value
            assert trial.constraints == {"loss <= 0.8": pytest.approx(max(outcome.value - 0.8, 0))}
    assert study.direction.name == "MAXIMIZE"
    assert study.metric_names == ["loss"]
    assert len(study.trials_dataframe()) == 6
    with pytest.raises(SweepError, match="only read"):
        study.ask()
    with pytest.raises(NotFound):
        StudyStorage(tmp_path / "nowhere")


def test_several_objectives_are_seen(tmp_path):
    studied(tmp_path, metrics=["loss", "train_s"], directions=["minimize", "maximize"])
    study = optuna.load_study(study_name=None, storage=StudyStorage(tmp_path))
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    measured = [[o.measured["loss"], o.measured["train_s"]] for _, o in read_trials(tmp_path)]
    assert [trial.values for trial in study.trials] == measured


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_an_export_is_opened_by_plain_optuna(tmp_path, kind):
    studied(tmp_path / "s", pruner="asha")
    to = f"sqlite:///{tmp_path}/x.db" if kind == "sqlite" else str(tmp_path / "x.log")
    assert export_study(tmp_path / "s", to) == 6
    # In a process that knows nothing of hpcmass.
    program = f"""
import json, optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
storage = {to!r} if {kind == "sqlite"} else JournalStorage(JournalFileBackend({to!r}))
study = optuna.load_study(study_name="toy", storage=storage)
print(json.dumps([[t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs] for t in study.trials]))
"""
    said = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    ours = optuna.load_study(study_name=None, storage=StudyStorage(tmp_path / "s")).trials
    wanted = [[t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs] for t in ours]
    assert json.loads(said.stdout) == json.loads(json.dumps(wanted))
    with pytest.raises(AlreadyExists, match="'toy'"):
        export_study(tmp_path / "s", to)
    assert export_study(tmp_path / "s", to, "another") == 6


def test_where_an_export_cannot_go_is_said(tmp_path):
    studied(tmp_path, trials=1)
    with pytest.raises(StorageError, match="cannot write the copy"):
        export_study(tmp_path, "sqlite:////nowhere/x.db")
    with pytest.raises(ConfigError, match="no such folder"):
        export_study(tmp_path, "/nowhere/x.log")
    with pytest.raises(ConfigError, match="not installed"):
        export_study(tmp_path, "oracle+oracledb://host/x")


def test_a_space_with_unlike_things_that_python_holds_for_equal():
    from hpcmass.sweep.points import keyer
    from hpcmass.sweep.space import Space

    def key(choices):
        space = {"c": {"type": "categorical", "choices": choices}, "y": SPACE["x"]}
        return keyer(Space(toy_job(space=space).sweep.space))

    mixed = key([1, True, 1.0, "1"])
    assert len({mixed({"c": c, "y": 0.5}) for c in (1, True, 1.0, "1")}) == 4
    assert mixed({"c": 1, "y": 0.5}) == mixed({"y": 0.5, "c": 1})
    plain = key(["a", "b"])
    assert plain({"c": "a", "y": 0.5}) == plain({"y": 0.5, "c": "a"}) != plain({"c": "b", "y": 0.5})


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_next_trial_is_drawn_while_others_run(tmp_path, sampler):
    def patient(path):
        deadline = time.monotonic() + 120
        while not (tmp_path / "trials/000002/trial.json").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return toy_trial(path)

    events = []
    drive(toy_job(space=SPACE, trials=6, parallel=2, sampler=sampler), tmp_path, patient, events)
    # Two begin, and a third is there before anything has been counted.
    assert [spec.told for spec, _ in read_trials(tmp_path)][:3] == [0, 0, 0]
    # A worker that is free has its next trial before what it did is counted.
    ended = next(place for place, event in enumerate(events) if event[0] == "complete")
    assert ("started", 2) in events[:ended]


def test_one_at_a_time_a_sampler_that_learns_knows_every_outcome(tmp_path):
    drive(toy_job(space=SPACE, trials=5, parallel=1, sampler="tpe"), tmp_path)
    assert [spec.told for spec, _ in read_trials(tmp_path)] == [0, 1, 2, 3, 4]
