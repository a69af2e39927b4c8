"""The log of a study, `STUDY/log/`: what the trials' own files say, in one place that is read at once.

The run folders stay the truth. A trial's `trial.json` and `outcome.json` are written first, then the log; so
whatever a log lacks when its driver ends is found in the folders, and a log that is lost or damaged is made of
them anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcmass.config import load_job
from hpcmass.config.sweep import SweepTable
from hpcmass.errors import CorruptError, NotFound
from hpcmass.files import LogReader, LogWriter, set_log_aside
from hpcmass.sweep.columns import Raw
from hpcmass.sweep.records import (
    Outcome,
    TrialSpec,
    missing,
    read_outcome,
    read_spec,
    read_trials,
    trial_names,
    trial_path,
)
from hpcmass.sweep.space import overrides_of
from hpcmass.sweep.trials import Trials, no_collection

_LEAST = 2000  # records behind a snapshot before there is another one
_LOOKED_UP = 200  # outcomes, the newest, that are looked up in the folders although the log has them


def log_folder(study: Path) -> Path:
    """Where a study's log lies."""
    return study / "log"


class StudyLog:
    """The log as its study's driver has it: the one that writes.

    Attributes:
        trials: What is known of the trials.
        note: What was made good when it was opened, for people; or nothing.
    """

    def __init__(self, study: Path, name: str, table: SweepTable) -> None:
        """Read the log, and bring it to where the run folders are; the caller holds the study's lease.

        Raises:
            CorruptError: A trial's folder is missing, or a trial's own record damaged.
            StorageError: The file system refused.
        """
        self._study, self.note = study, ""
        reader = LogReader(log_folder(study))
        try:
            self.trials, found, anew = _read(study, reader)
        except CorruptError as error:
            for _ in _of_folders(study):
                pass  # Where the folders are at fault, this says so, and the log stays what and where it is.
            aside = set_log_aside(log_folder(study))
            self.note = (
                f"the log was damaged ({error.where}: {error.message}), lies in {aside.name} now, and was "
            )
            self.note += "made anew of the trials' folders"
            reader = LogReader(log_folder(study))
            self.trials, found, anew = _read(study, reader)
        self._writer = LogWriter(reader, durable=False)
        header = header_of(name, table)
        if anew or len(found) > _LEAST or (self.trials.header != header and len(self.trials)):
            self.trials.header = header
            self._writer.snapshot(self.trials.records())
        else:
            if self.trials.header != header:
                self.trials.header = header
                found.insert(0, ["study", header])
            if found:
                self._writer.append(*found)
            self._tidy()

    def drawn(self, spec: TrialSpec) -> None:
        """Note a trial that was published."""
        self._note(["drawn", _drawn(spec, time.time())])

    def ended(self, number: int, outcome: Outcome) -> None:
        """Note an outcome that was published."""
        self._note(["ended", number, _ended(outcome, time.time())])

    def close(self) -> None:
        """End it; it can be read on."""
        self._writer.close()

    def _note(self, record: list[Any]) -> None:
        self.trials.apply([record])
        self._writer.append(record)
        self._tidy()

    def _tidy(self) -> None:
        if self._writer.tail > max(_LEAST, len(self.trials) // 2):
            self._writer.snapshot(self.trials.records())


class StudyFollower:
    """A study as anybody reads it, while its driver writes or long after; nothing is written."""

    def __init__(self, study: Path) -> None:
        self._study = study
        self._reader: LogReader | None = None

    def read(self) -> tuple[bool, list[Any]]:
        """The records since the last call, and whether they tell the study anew.

        A trial or an outcome may come a second time; the first word stays.

        Raises:
            CorruptError: The log is damaged; the study's driver makes it anew when it is started next.
        """
        if self._reader is not None:
            with no_collection():
                anew, found = self._reader.read()
            if not anew:
                return False, found
        self._reader = LogReader(log_folder(self._study))
        trials, _, _ = _read(self._study, self._reader)
        if not trials.header:
            job = load_job(self._study / "job.toml")
            assert job.sweep is not None
            trials.header = header_of(job.name, job.sweep)
        return True, list(trials.rows())


def study_trials(study: Path) -> Trials:
    """The trials of a study: of its log, and where that lacks something or is damaged, of the folders.

    Raises:
        CorruptError: A trial's folder is missing, or a trial's own record damaged.
    """
    try:
        return _read(study, LogReader(log_folder(study)))[0]
    except CorruptError:
        trials = Trials(study)
        trials.apply(_of_folders(study))
        return trials


def header_of(name: str, table: SweepTable) -> Raw:
    """What the log says of the study itself: enough to show it without its job."""
    space = {
        key: one.model_dump(exclude_defaults=True) | {"type": one.type} for key, one in table.space.items()
    }
    return {
        "name": name,
        "objectives": [[one.name, one.direction] for one in table.objectives],
        "several": table.metrics is not None,
        "constraints": list(table.constraints),
        "space": space,
    }


def _read(study: Path, reader: LogReader) -> tuple[Trials, list[list[Any]], bool]:
    """The trials, the records that the log lacks, and whether it has to be told anew.

    Trials that are not counted in the log, those behind its end, and the newest that are counted are looked up.
    Where an outcome was taken away, all is what the folders say. Older ones are believed.
    """
    trials = Trials(study)
    with no_collection():
        trials.apply(reader.read()[1])
        if not trials.header:
            found = list(_of_folders(study))
            trials.apply(found)
            return trials, found, False
        newest = trials.in_order()[-_LOOKED_UP:]
        if not all((trial_path(study, number) / "outcome.json").exists() for number in newest):
            header, trials = trials.header, Trials(study)
            trials.apply([["study", header], *_of_folders(study)])
            return trials, [], True
        found = []
        for number in trials.unfinished():
            path = trial_path(study, number)
            if (outcome := read_outcome(path)) is not None:
                found.append(["ended", number, _ended(outcome, _modified(path / "outcome.json"))])
        names, known = set(trial_names(study)), {f"{number:06d}" for number in range(len(trials))}
        if lost := known - names:
            raise missing(study, min(map(int, lost)))
        found += _of_folders(study, len(known), sorted(names - known, key=int))
        trials.apply(found)
    return trials, found, False


def _of_folders(study: Path, first: int = 0, names: list[str] | None = None) -> Iterator[list[Any]]:
    """The trials from a number on as their own files tell them."""
    number = first
    for name in sorted(trial_names(study), key=int) if names is None else names:
        path = study / "trials" / name
        if (spec := read_spec(path)) is None:
            continue  # The driver ended before the trial was drawn; the number is drawn again.
        if spec.number != number:
            raise missing(study, number)
        outcome = read_outcome(path)
        ended = None if outcome is None else _ended(outcome, _modified(path / "outcome.json"))
        yield ["trial", _drawn(spec, _modified(path / "trial.json")), ended]
        number += 1


def _drawn(spec: TrialSpec, at: float) -> Raw:
    raw = {**spec.raw(), "at": round(at, 3)}
    if raw["overrides"] == overrides_of(spec.params):
        del raw["overrides"]
    return raw


_PLAIN = vars(Outcome("", None, [], 1, -1))


def _ended(outcome: Outcome, at: float) -> Raw:
    raw = {name: value for name, value in vars(outcome).items() if name == "value" or value != _PLAIN[name]}
    # As text, which is read where it is wanted: a hundred thousand learning curves are not, at once.
    values = json.dumps(outcome.values, separators=(",", ":"))
    return {**raw, "attempts": outcome.attempts, "values": values, "at": round(at, 3)}


def _modified(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError as error:
        raise NotFound("was removed just now", where=file) from error


__all__ = ["StudyFollower", "StudyLog", "header_of", "log_folder", "read_trials", "study_trials"]
