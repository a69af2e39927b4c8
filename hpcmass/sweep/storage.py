"""A study as Optuna's own tools read it, also while its driver writes, and a copy of it in Optuna's storages.

optuna.load_study(study_name=None, storage=StudyStorage("studies/mnist"))
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import DuplicatedStudyError, OptunaError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages._in_memory import _StudyInfo
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpcmass.config.sweep import Constraint
from hpcmass.errors import AlreadyExists, ConfigError, NotFound, StorageError, SweepError
from hpcmass.sweep.columns import Raw
from hpcmass.sweep.log import StudyFollower
from hpcmass.sweep.trials import no_collection

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_OWN = {"state", "value", "values", "order", "at", "measured"}  # what an outcome has that is no attribute
READS = (
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
WRITES = (
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


class Followed(InMemoryStorage):
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

    def put_study(self, study_id: int, name: str, directions: Sequence[StudyDirection]) -> None:
        """As `create_new_study`, which would choose the number itself."""
        self._max_study_id = max(study_id, self._max_study_id)
        self._studies[study_id] = _StudyInfo(name, list(directions))
        self._study_name_to_id[name] = study_id
        self._prev_waiting_trial_number[study_id] = 0

    def put_trial(self, study_id: int, trial_id: int, trial: FrozenTrial) -> None:
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
    def read(self: Followed, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            self._refresh()
            return method(self, *arguments, **named)

    return read


for _name in READS:
    setattr(Followed, _name, _fresh(_name))


class StudyStorage(Followed):
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
                self.put_trial(0, record[1]["number"], self._trial(record[1], None))
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
            self.put_study(0, header["name"], directions)
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


for _name in WRITES:
    setattr(StudyStorage, _name, _refused(_name))


def export_study(study: Path, to: str, name: str | None = None) -> int:
    """Copy a study into a storage of Optuna's own, for tools that take no other; gives the number of trials.

    Args:
        study: The study's folder.
        to: A database (`sqlite:///FILE`), or the name of a file, for Optuna's journal.
        name: What the study is called there.

    Raises:
        NotFound: There is no study.
        AlreadyExists: There is one of that name where it is to go.
        ConfigError: `to` is none of these.
        StorageError: It could not be written; nothing of it stays there.
    """
    source = StudyStorage(study)
    (known,) = source.get_all_studies()
    name = name or known.study_name
    with _telling(to):
        target = _target(to)
        try:
            there = target.create_new_study(known.directions, name)
        except DuplicatedStudyError:
            hint = "give it another one: --name NAME"
            raise AlreadyExists(f"there is a study '{name}' already", where=to, hint=hint) from None
        try:
            for key, value in known.system_attrs.items():
                target.set_study_system_attr(there, key, value)
            trials = source.get_all_trials(known._study_id, deepcopy=False)
            for trial in trials:
                target.create_new_trial(there, trial)
        except BaseException:
            with contextlib.suppress(Exception):
                target.delete_study(there)
            raise
    return len(trials)


def _target(to: str) -> BaseStorage:
    if "://" in to:
        return RDBStorage(to)
    if not Path(to).parent.is_dir():
        raise ConfigError("there is no such folder", where=Path(to).parent)
    return JournalStorage(JournalFileBackend(to))


@contextlib.contextmanager
def _telling(to: str) -> Iterator[None]:
    """Say the errors of databases in one sentence."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise ConfigError(f"the database's driver is not installed ({error})", where=to) from error
    except (OptunaError, SQLAlchemyError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "write sqlite:///FILE for a database in a file, or a file's name for Optuna's journal"
        raise StorageError(f"Optuna cannot write the copy: {first}", where=to, hint=hint) from error


def _distribution(dimension: Raw) -> BaseDistribution:
    known = {key: value for key, value in dimension.items() if key != "when"}
    return json_to_distribution(json.dumps(known))


def _epoch(trial: FrozenTrial) -> float:
    return 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()
