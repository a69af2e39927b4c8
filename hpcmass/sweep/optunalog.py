"""A storage for plain Optuna programs, over the same kind of log as a study's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpcmass.errors import HpcmassError, LeaseHeld, SweepError
from hpcmass.files import Lease, LogReader, LogWriter, make_dir
from hpcmass.sweep.columns import Raw
from hpcmass.sweep.storage import Followed

_LEAST = 2000  # records behind a snapshot before there is another one


class LogStorage(Followed):
    """A storage for plain Optuna, in a folder of its own; every change is on disk when its method returns.

    One process writes, by a lease on the folder, from all its threads; others read. A writer that is killed
    leaves a log that the next one goes on with.
    """

    def __init__(self, folder: Path | str, *, write: bool = False) -> None:
        """Open it.

        Args:
            folder: Made if need be.
            write: Take the lease, to change something.

        Raises:
            LeaseHeld: Another process writes.
            CorruptError: The log is damaged; the error names file and byte.
            SweepError: This is the folder of one of hpcmass's own studies.
        """
        super().__init__()
        self._folder = Path(folder)
        if (self._folder / "trials").is_dir():
            raise SweepError("is a study of hpcmass", where=self._folder, hint="read it with StudyStorage")
        self._reader = LogReader(self._folder / "log")
        self._writer: LogWriter | None = None
        self._lease = Lease(self._folder / "lease")
        if write:
            make_dir(self._folder)
            self._lease.acquire()
        try:
            self._refresh()
            if write:
                self._writer = LogWriter(self._reader, durable=True)
        except BaseException:
            self._lease.release()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return LogStorage, (self._folder,)

    def close(self) -> None:
        """Give the lease back; from now on it is read only."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._lease.release()

    def _records(self) -> tuple[bool, list[Any]]:
        if self._writer is not None:
            return False, []  # All that there is was written from here.
        return self._reader.read()

    def _note(self, *record: Any) -> None:
        """Write a change down that memory has taken in; where that fails, memory is what the log says."""
        try:
            if self._writer is None:
                raise SweepError(
                    "this storage was opened to read", where=self._folder, hint="open it with write=True"
                )
            if self._lease.lost:
                raise LeaseHeld(
                    "another process has taken this storage over", where=self._folder, transient=True
                )
            self._writer.append(list(record))
            trials = sum(len(study.trials) for study in self._studies.values())
            if self._writer.tail > max(_LEAST, trials):
                self._writer.snapshot(self._all())
        except (HpcmassError, OSError, TypeError, ValueError):
            writer, self._writer = self._writer, None
            self._reader = LogReader(self._folder / "log")
            self._refresh()
            self._writer = writer
            raise

    # -- writing ----------------------------------------------------------------------------------------
    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """As Optuna's."""
        with self._lock:
            study_id = super().create_new_study(directions, study_name)
            self._note(*_study_record(study_id, self._studies[study_id]))
            return study_id

    def delete_study(self, study_id: int) -> None:
        """As Optuna's."""
        with self._lock:
            super().delete_study(study_id)
            self._note("delete", study_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._lock:
            super().set_study_user_attr(study_id, key, value)
            self._note("study-user", study_id, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._lock:
            super().set_study_system_attr(study_id, key, value)
            self._note("study-system", study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's."""
        with self._lock:
            trial_id = super().create_new_trial(study_id, template_trial)
            trial = self._get_trial(trial_id)
            for name, distribution in trial.distributions.items():
                self._studies[study_id].param_distribution.setdefault(name, distribution)
            self._note("trial", study_id, trial_id, _trial_json(trial))
            return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """As Optuna's."""
        with self._lock:
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
            text = distribution_to_json(distribution)
            self._note("param", trial_id, param_name, param_value_internal, text)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """As Optuna's."""
        with self._lock:
            changed = super().set_trial_state_values(trial_id, state, values)
            if changed:
                given = None if values is None else [float(value) for value in values]
                trial = self._get_trial(trial_id)
                times = [_iso(trial.datetime_start), _iso(trial.datetime_complete)]
                self._note("state", trial_id, state.name, given, *times)
            return changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's."""
        with self._lock:
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)
            self._note("value", trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._lock:
            super().set_trial_user_attr(trial_id, key, value)
            self._note("trial-user", trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._lock:
            super().set_trial_system_attr(trial_id, key, value)
            self._note("trial-system", trial_id, key, value)

    # -- reading ----------------------------------------------------------------------------------------
    def _take_in(self, record: Any) -> None:
        kind, *rest = record
        memory = InMemoryStorage
        if kind == "study":
            self.put_study(rest[0], rest[1], [StudyDirection[name] for name in rest[2]])
        elif kind == "delete":
            memory.delete_study(self, rest[0])
        elif kind == "study-user":
            memory.set_study_user_attr(self, *rest)
        elif kind == "study-system":
            memory.set_study_system_attr(self, *rest)
        elif kind == "trial":
            self.put_trial(rest[0], rest[1], _trial_of(rest[2]))
        elif kind == "param":
            memory.set_trial_param(self, rest[0], rest[1], rest[2], json_to_distribution(rest[3]))
        elif kind == "state":
            memory.set_trial_state_values(self, rest[0], TrialState[rest[1]], rest[2])
            trial = self._get_trial(rest[0])
            trial.datetime_start, trial.datetime_complete = _time(rest[3]), _time(rest[4])
        elif kind == "value":
            memory.set_trial_intermediate_value(self, *rest)
        elif kind == "trial-user":
            memory.set_trial_user_attr(self, *rest)
        elif kind == "trial-system":
            memory.set_trial_system_attr(self, *rest)
        elif kind == "ids":
            self._max_study_id, self._max_trial_id = rest

    def _all(self) -> Iterator[list[Any]]:
        """What a snapshot says."""
        for study_id, study in self._studies.items():
            yield _study_record(study_id, study)
            yield from (["study-user", study_id, *pair] for pair in study.user_attrs.items())
            yield from (["study-system", study_id, *pair] for pair in study.system_attrs.items())
            yield from (["trial", study_id, one._trial_id, _trial_json(one)] for one in study.trials)
        yield ["ids", self._max_study_id, self._max_trial_id]


def _study_record(study_id: int, study: Any) -> list[Any]:
    return ["study", study_id, study.name, [direction.name for direction in study.directions]]


def _trial_json(trial: FrozenTrial) -> Raw:
    kinds = trial.distributions
    return {
        "state": trial.state.name,
        "values": trial.values,
        "times": [_iso(trial.datetime_start), _iso(trial.datetime_complete)],
        "params": {name: kinds[name].to_internal_repr(value) for name, value in trial.params.items()},
        "distributions": {name: distribution_to_json(one) for name, one in kinds.items()},
        "curve": list(trial.intermediate_values.items()),
        "user": trial.user_attrs,
        "system": trial.system_attrs,
    }


def _trial_of(raw: Raw) -> FrozenTrial:
    kinds = {name: json_to_distribution(text) for name, text in raw["distributions"].items()}
    return FrozenTrial(
        number=-1,
        trial_id=-1,
        state=TrialState[raw["state"]],
        value=None,
        values=raw["values"],
        datetime_start=_time(raw["times"][0]),
        datetime_complete=_time(raw["times"][1]),
        params={name: kinds[name].to_external_repr(value) for name, value in raw["params"].items()},
        distributions=kinds,
        user_attrs=raw["user"],
        system_attrs=raw["system"],
        intermediate_values={int(step): value for step, value in raw["curve"]},
    )


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
