"""Optuna's own contract tests of a storage, on ours: as it is written, and as it is read back before every call."""

import math
from datetime import datetime

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

from hpcmass.sweep.optunalog import LogStorage
from hpcmass.sweep.storage import READS, WRITES


def reopening(folder, reads_from):
    """A storage that forgets everything before every call: what is not in the log does not exist."""

    def call(name):
        def method(self, *arguments, **named):
            self.kept.close()
            self.kept = LogStorage(folder, write=True)
            asked = reads_from(folder) if name in READS else self.kept
            return getattr(asked or self.kept, name)(*arguments, **named)

        return method

    names = {name: call(name) for name in (*READS, *WRITES)}
    made = type("Reopening", (BaseStorage,), names)()
    made.kept = LogStorage(folder, write=True)
    return made


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Contract, not endurance: nothing here ends a machine."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("os.fdatasync", lambda handle: None)


class TestAsWritten(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path):
        made = LogStorage(tmp_path / "storage", write=True)
        yield made
        made.close()


class TestReadBack(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path):
        made = reopening(tmp_path / "storage", lambda folder: None)
        yield made
        made.kept.close()

    test_pickle_storage = None  # its class is this test's own


class TestReadByAnother(StorageTestCase):
    """Written by one object, read by another one that has it open all the while."""

    @pytest.fixture
    def storage(self, tmp_path):
        written = LogStorage(tmp_path / "storage", write=True)
        seen = LogStorage(tmp_path / "storage")
        names = {name: lambda _, *a, name=name, **k: getattr(seen, name)(*a, **k) for name in READS}
        names |= {name: lambda _, *a, name=name, **k: getattr(written, name)(*a, **k) for name in WRITES}
        yield type("Two", (BaseStorage,), names)()
        written.close()

    test_pickle_storage = None  # its class is this test's own


def test_snapshots_in_between_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcmass.sweep.optunalog._LEAST", 7)
    storage = LogStorage(tmp_path, write=True)
    study = optuna.create_study(storage=storage, study_name="s", sampler=optuna.samplers.RandomSampler(seed=1))
    gone = storage.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "gone")
    storage.create_new_trial(gone)
    storage.delete_study(gone)

    def objective(trial):
        trial.suggest_categorical("c", ("a", None, 1.5, math.inf))
        trial.set_user_attr("note", {"a": [1, None]})
        for step in range(3):
            trial.report(step / 7, step)
        if trial.number % 5 == 4:
            raise optuna.TrialPruned
        return trial.suggest_float("x", 1e-3, 1.0, log=True) + trial.suggest_int("n", 1, 9)

    study.optimize(objective, n_trials=25)
    study.enqueue_trial({"x": 0.5})
    trials = study.get_trials()
    storage.close()
    assert sum(path.suffix == ".snapshot" for path in (tmp_path / "log").iterdir()) == 1
    again = LogStorage(tmp_path, write=True)
    assert again.get_all_trials(study._study_id) == trials
    assert again.create_new_study([optuna.study.StudyDirection.MINIMIZE]) == gone + 1
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.WAITING}
    assert all(isinstance(trial.datetime_start, datetime) for trial in trials[:25])
    again.close()
