"""Answers that carry an id, labels that come later for them, and the accuracy that both give.

`answers-REPLICA-000001.jsonl` and `labels-WRITER-000001.jsonl`: numbered pieces, of which the oldest goes
when there are more than `_PIECES`. A label may be posted to any replica, or before its answer is written:
they meet when they are read.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.errors import DataError
from hpcmass.files import append_record, read_records

_PIECES = 8
_WAITING = 50_000
_VALUES = 64
LABELS = 1_000_000
Label = int | float | str | list[int | float | str]


class Pieces:
    """An append-only log of batches of records, of which the newest are kept.

    Args:
        folder: Where.
        name: The beginning of the files' names.
        limit: Records that are kept at least, and little more.
    """

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        self.folder, self.name = folder, name
        self._each = max(1, math.ceil(limit / _PIECES))
        self._number = max(self._numbers(), default=0)
        self._have = self._each  # an earlier process's piece is not gone on with

    def _numbers(self) -> list[int]:
        found = (path.stem.rpartition("-")[2] for path in self.folder.glob(f"{self.name}-*.jsonl"))
        return sorted(int(one) for one in found if one.isdigit())

    def append(self, entries: list[Any]) -> None:
        """Add entries as one record."""
        if self._have >= self._each:
            self._number, self._have = self._number + 1, 0
            for old in self._numbers()[:-_PIECES]:
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / f"{self.name}-{old:06d}.jsonl").unlink()
        append_record(self.folder / f"{self.name}-{self._number:06d}.jsonl", {"e": entries})
        self._have += len(entries)


class Answers:
    """One replica's answers and the labels it was given.

    Args:
        folder: The monitor's.
        replica: Whose.
        version: Of the model.
        limit: Answers that are kept; 0: none.
    """

    def __init__(self, folder: Path, replica: str, version: str, limit: int) -> None:
        self.limit, self.version = limit, version
        self._answers = Pieces(folder, f"answers-{replica}", limit)
        self._labels = Pieces(folder, f"labels-{replica}", LABELS)
        self._new: list[Any] = []
        self._new_labels: list[Any] = []
        self._lock = threading.Lock()
        self.lost = 0

    @property
    def waiting(self) -> bool:
        """Whether there is something to be written."""
        return bool(self._new or self._new_labels)

    def add(self, identity: str, output: Any, classes: int | None) -> None:
        """Keep what was answered, (rows, ...): of a classification the class numbers."""
        if not self.limit:
            return
        if len(self._new) >= _WAITING:
            self.lost += 1
            return
        if classes is not None:
            said = output.argmax(axis=-1).tolist()
        else:
            said = np.asarray(output).reshape(-1)[:_VALUES].tolist()
        self._new.append([identity, round(time.time(), 3), self.version, said])

    def label(self, identity: str, label: Label) -> None:
        """Keep a label."""
        if len(self._new_labels) >= _WAITING:
            raise DataError("too many labels wait to be written")
        self._new_labels.append([identity, round(time.time(), 3), label])

    def write(self) -> None:
        """Write what has come.

        Raises:
            StorageError: The file system refused.
        """
        with self._lock:
            answers, self._new = self._new, []
            labels, self._new_labels = self._new_labels, []
            try:
                if labels:  # first: whoever posted them was told that they are here
                    self._labels.append(labels)
                    labels = []
                if answers:
                    self._answers.append(answers)
                    answers = []
            finally:  # what a full disk did not take is written when it does; `_WAITING` bounds it
                self._new[:0] = answers[: max(0, _WAITING - len(self._new))]
                self._new_labels[:0] = labels


def check_label(identity: Any, label: Any) -> tuple[str, Label]:
    """An id and a label that may be kept.

    Raises:
        DataError: They may not.
    """
    if not isinstance(identity, str) or not 1 <= len(identity) <= 200:
        raise DataError("'id' is not a text of 1 to 200 characters")
    values = label if isinstance(label, list) else [label]
    if not 1 <= len(values) <= 1024 or not all(map(_may_be, values)):
        raise DataError("'label' is not a class's name, a finite number, or a list of them")
    return identity, label


def _may_be(one: Any) -> bool:
    if isinstance(one, str):
        return len(one) <= 200
    try:
        return isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one)
    except OverflowError:  # a whole number beyond what is a float
        return False


def add_labels(folder: Path, writer: str, labels: list[tuple[str, Label]]) -> None:
    """Write labels from a file, by a process that is no replica."""
    pieces = Pieces(folder, f"labels-{writer}", LABELS)
    now = round(time.time(), 3)
    for start in range(0, len(labels), 1000):
        pieces.append([[identity, now, label] for identity, label in labels[start : start + 1000]])


def _entries(folder: Path, kind: str) -> Iterator[list[Any]]:
    for path in sorted(folder.glob(f"{kind}-*.jsonl")):
        for record in read_records(path):
            entries = record.get("e")
            yield from (one for one in entries if isinstance(one, list)) if isinstance(entries, list) else ()


def read_labels(folder: Path) -> dict[str, Label]:
    """Labels by id; of several the one that came last."""
    found: dict[str, tuple[float, Label]] = {}
    for entry in _entries(folder, "labels"):
        with contextlib.suppress(ValueError, TypeError):
            identity, at, label = entry
            if identity not in found or found[identity][0] <= float(at):
                found[identity] = (float(at), label)
    return {identity: label for identity, (_, label) in found.items()}


@dataclass
class Live:
    """How well a version does by the labels that came.

    Attributes:
        n: Samples with answer and label.
        right: Of a classification: those answered right.
        errors: Else: absolute differences.
        unknown: Labels that are no class of the model, or do not fit the answer.
    """

    version: str
    n: int = 0
    right: int = 0
    errors: list[float] = field(default_factory=list)
    unknown: int = 0

    def to_json(self) -> dict[str, Any]:
        """Metric, value and 95 % interval: Wilson's of an accuracy, Student's of a mean absolute error."""
        said: dict[str, Any] = {"version": self.version, "n": self.n, "unknown": self.unknown}
        if self.errors:
            wide = np.array(self.errors)
            half = 1.96 * float(wide.std(ddof=1)) / math.sqrt(wide.size) if wide.size > 1 else math.inf
            mean = float(wide.mean())
            ends = (max(0.0, mean - half), mean + half) if math.isfinite(half) else (None, None)
            return {**said, "metric": "mae", "value": mean, "low": ends[0], "high": ends[1]}
        if not self.n:
            return {**said, "metric": "accuracy", "value": None, "low": None, "high": None}
        low, high = wilson(self.right, self.n)
        return {**said, "metric": "accuracy", "value": self.right / self.n, "low": low, "high": high}


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share."""
    share, scale = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def live(
    folder: Path, names: dict[str, tuple[str, ...]], since: float = -math.inf, until: float = math.inf
) -> list[Live]:
    """Join answers with labels, by version.

    Args:
        folder: The monitor's.
        names: Class names by version; empty of what is no classification.
        since: Answers given before do not count (seconds since the epoch).
        until: Nor those after.
    """
    labels = read_labels(folder)
    latest: dict[str, tuple[float, str, list[Any]]] = {}
    for entry in _entries(folder, "answers"):
        with contextlib.suppress(ValueError, TypeError):
            identity, at, version, said = entry
            wanted = identity in labels and since <= float(at) <= until
            if wanted and (identity not in latest or latest[identity][0] <= float(at)):
                latest[identity] = (float(at), str(version), said)
    found: dict[str, Live] = {}
    for identity, (_, version, said) in latest.items():
        _judge(found.setdefault(version, Live(version)), said, labels[identity], names.get(version, ()))
    return [found[version] for version in sorted(found)]


def _judge(live: Live, said: list[Any], label: Label, names: tuple[str, ...]) -> None:
    values = label if isinstance(label, list) else [label]
    if len(values) != len(said):
        live.unknown += 1
        return
    for answer, value in zip(said, values, strict=True):
        if names:
            number = class_number(value, names)
            if number is None:
                live.unknown += 1
                continue
            live.right += int(number == answer)
        elif isinstance(value, str) or not isinstance(answer, (int, float)):
            live.unknown += 1
            continue
        else:
            live.errors.append(abs(float(answer) - float(value)))
        live.n += 1


def class_number(value: Any, names: tuple[str, ...]) -> int | None:
    """A class's number by its name or number; a name comes first."""
    if str(value) in names:
        return names.index(str(value))
    with contextlib.suppress(ValueError, TypeError):
        if float(value) == int(value) and 0 <= int(value) < len(names):
            return int(value)
    return None
