"""Optuna's storage interface: a study as Optuna's own tools read it, and a storage that its programs write.

    optuna.load_study(study_name=None, storage=StudyStorage("studies/mnist"))

`StudyStorage` reads a study of hpcmass, also while its driver writes; what came of a trial its driver alone
tells. `LogStorage` is for plain Optuna: the same kind of log, one process at a time writes it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpcmass.config.sweep import Constraint
from hpcmass.errors import HpcmassError, LeaseHeld, NotFound, SweepError
from hpcmass.files import Lease, LogReader, LogWriter, make_dir
from hpcmass.sweep.log import StudyFollower
from hpcmass.sweep.trials import Raw, no_collection

_LEAST = 2000  # records behind a snapshot before there is another one
_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_OWN = {"state", "value", "values", "order", "at", "measured"}  # what an outcome has that is no attribute
_READS = (
    "get_all_studies",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_number_from_id",
    "get_best_trial",
    "get_trial_param",
    "get_trial",
    "get_all_trials",
)
_WRITES = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "create_new_trial",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
)


class _Followed(InMemoryStorage):
    """A storage in memory that is brought up to date whenever it is asked."""

    _taking_in = False

    def _records(self) -> tuple[bool, list[Any]]:
        """What is new, and whether it is all told anew."""
        raise NotImplementedError

    def _take_in(self, record: Any) -> None:
        raise NotImplementedError

    def _refresh(self) -> None:
        if self._taking_in:
            return
        self._taking_in = True
        try:
            anew, records = self._records()
            if anew:
                self._empty()
            with no_collection():
                for record in records:
                    self._take_in(record)
        finally:
            self._taking_in = False

    def _empty(self) -> None:
        self._trial_id_to_study_id_and_number.clear()
        self._study_name_to_id.clear()
        self._studies.clear()
        self._prev_waiting_trial_number.clear()
        self._max_study_id = self._max_trial_id = -1

    def _put_study(self, study_id: int, name: str, directions: Sequence[StudyDirection]) -> None:
        self._max_study_id = study_id - 1
        InMemoryStorage.create_new_study(self, directions, name)

    def _put_trial(self, study_id: int, trial_id: int, trial: FrozenTrial) -> None:
        """As `create_new_trial`, which would copy it deeply."""
        study = self._studies[study_id]
        trial._trial_id, trial.number = trial_id, len(study.trials)
        self._max_trial_id = max(trial_id, self._max_trial_id)
        self._trial_id_to_study_id_and_number[trial_id] = (study_id, trial.number)
        study.trials.append(trial)
        for name, distribution in trial.distributions.items():
            study.param_distribution.setdefault(name, distribution)
        self._update_cache(trial_id, study_id)


def _fresh(name: str) -> Callable[..., Any]:
    method = getattr(InMemoryStorage, name)

    @functools.wraps(method)
    def read(self: _Followed, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            self._refresh()
            return method(self, *arguments, **named)

    return read


for _name in _READS:
    setattr(_Followed, _name, _fresh(_name))


class StudyStorage(_Followed):
    """A study of hpcmass, read only; `study_name=None` finds it, since it is the only one.

    Values, parameters and learning curves are where Optuna has them, constraints as Optuna's constraints. What
    else is known of a trial (names that were measured, reason, attempts, seconds) are user attributes.
    """

    def __init__(self, study: Path | str) -> None:
        """Read it.

        Raises:
            NotFound: There is no study.
            CorruptError: Its log is damaged.
        """
        super().__init__()
        self._study = Path(study)
        if not (self._study / "trials").is_dir():
            raise NotFound(
                "there is no study here", where=self._study, hint="begin one with: hpcmass sweep JOB"
            )
        self._follower = StudyFollower(self._study)
        self._distributions: dict[str, BaseDistribution] = {}
        self._header: Raw = {}
        self._constraints: list[tuple[str, Constraint]] = []
        self._refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        return StudyStorage, (self._study,)

    def _records(self) -> tuple[bool, list[Any]]:
        return self._follower.read()

    def _take_in(self, record: Any) -> None:
        kind = record[0]
        if kind == "study":
            self._begin(record[1])
        elif kind in ("drawn", "trial"):
            if record[1]["number"] == len(self._studies[0].trials):
                self._put_trial(0, record[1]["number"], self._trial(record[1], None))
            if kind == "trial" and record[2] is not None:
                self._end(record[1]["number"], record[2])
        elif kind == "ended":
            self._end(record[1], record[2])

    def _begin(self, header: Raw) -> None:
        self._header = header
        self._distributions = {name: _distribution(one) for name, one in header["space"].items()}
        self._constraints = [(text, Constraint.parse(text)) for text in header["constraints"]]
        if 0 not in self._studies:
            directions = [StudyDirection[direction.upper()] for _, direction in header["objectives"]]
            self._put_study(0, header["name"], directions)
            names = [name for name, _ in header["objectives"]]
            InMemoryStorage.set_study_system_attr(self, 0, "study:metric_names", names)

    def _end(self, number: int, ended: Raw) -> None:
        before = self._studies[0].trials[number]
        if not before.state.is_finished():
            trial = self._trial({"number": number, "params": before.params, "at": _epoch(before)}, ended)
            trial._system_attrs = {**before.system_attrs, **trial.system_attrs}
            self._set_trial(number, trial)
            self._update_cache(number, 0)

    def _trial(self, drawn: Raw, ended: Raw | None) -> FrozenTrial:
        state, values, curve = TrialState.RUNNING, None, {}
        user: Raw = {}
        system: Raw = {"hpcmass:told": drawn["told"]} if "told" in drawn else {}
        started, complete = datetime.fromtimestamp(drawn["at"]), None
        if ended is not None:
            state, values = _STATES[ended["state"]], self._values(ended)
            if state == TrialState.COMPLETE and values is None:
                state = TrialState.FAIL
            curve = {int(step): value for step, value in json.loads(ended["values"])}
            measured = ended.get("measured", {})
            user = {**measured, **{name: value for name, value in ended.items() if name not in _OWN}}
            if state != TrialState.FAIL:
                for text, limit in self._constraints:
                    if limit.name in measured:
                        system[f"constraints:{text}"] = limit.violation(measured[limit.name])
            system["hpcmass:order"] = ended["order"]
            complete = datetime.fromtimestamp(ended["at"])
            if ended.get("seconds") is not None:
                started = datetime.fromtimestamp(ended["at"] - ended["seconds"])
        return FrozenTrial(
            number=drawn["number"],
            trial_id=drawn["number"],
            state=state,
            value=None,
            values=values if state == TrialState.COMPLETE else None,
            datetime_start=started,
            datetime_complete=complete,
            params=drawn["params"],
            distributions={name: self._distributions[name] for name in drawn["params"]},
            user_attrs=user,
            system_attrs=system,
            intermediate_values=curve,
        )

    def _values(self, ended: Raw) -> list[float] | None:
        if not self._header["several"]:
            return None if ended["value"] is None else [ended["value"]]
        found = [ended.get("measured", {}).get(name) for name, _ in self._header["objectives"]]
        return None if None in found else found


def _refused(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(InMemoryStorage, name))
    def write(self: StudyStorage, *_: Any, **__: Any) -> Any:
        if self._taking_in:
            return getattr(InMemoryStorage, name)(self, *_, **__)
        raise SweepError(
            "a study of hpcmass is only read by Optuna: what comes of its trials its driver tells",
            where=self._study,
            hint="write to a copy: hpcmass sweep export STUDY --to sqlite:///FILE",
        )

    return write


for _name in _WRITES:
    setattr(StudyStorage, _name, _refused(_name))


class LogStorage(_Followed):
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
            self._put_study(rest[0], rest[1], [StudyDirection[name] for name in rest[2]])
        elif kind == "delete":
            memory.delete_study(self, rest[0])
        elif kind == "study-user":
            memory.set_study_user_attr(self, *rest)
        elif kind == "study-system":
            memory.set_study_system_attr(self, *rest)
        elif kind == "trial":
            self._put_trial(rest[0], rest[1], _trial_of(rest[2]))
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


def _distribution(dimension: Raw) -> BaseDistribution:
    known = {key: value for key, value in dimension.items() if key != "when"}
    return json_to_distribution(json.dumps(known))


def _epoch(trial: FrozenTrial) -> float:
    return 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
