"""Evaluations of a version: records beside it, since a version itself never changes.

`models/NAME/evaluations/000003/000001.json` is the first evaluation of version 3: a numbered claim like a
version, written once. What was measured is kept as `hpcmass.evaluate` gave it; here only what gates,
comparisons and cards ask of it is read, and nothing in it is believed.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.catalogue.blobs import make_durable_dir
from hpcmass.catalogue.claims import claim_json, numbered, numbers, read_claim
from hpcmass.catalogue.journal import Pointer, append
from hpcmass.catalogue.ranges import VersionClaims
from hpcmass.catalogue.version import Version, check_format, plain, who
from hpcmass.errors import CatalogueError, CorruptError
from hpcmass.files import check_name

FORMAT = 1
_TIMED = ("p50_ms", "p99_ms", "samples_per_s", "peak_rss_mb")
_SCORES = ("precision", "recall", "f1")
_SEARCHED = 100  # classes and slices of one evaluation


@dataclass(frozen=True)
class Measured:
    """A value with its 95 % interval, where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.4f}" + ("" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]")

    def to_json(self) -> dict[str, float | None]:
        """As in a JSON file."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class PairedMetric:
    """A metric minus that of another version on the same samples, and the probability of it by chance."""

    difference: Measured
    p: float


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation of a version on a data set.

    Attributes:
        name: The model.
        version: The version's number.
        number: 1 for the version's first evaluation.
        created: Seconds since the epoch.
        by: Who evaluated it, `user@host`.
        dataset: Id of the data set.
        data: The data set as it was named, such as `data/mnist/test`.
        why: What it was for.
        result: What was measured, as `hpcmass.evaluate` writes it.
    """

    name: str
    version: int
    number: int
    created: float
    by: str
    dataset: str
    data: str
    why: str
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Samples."""
        found = self.result.get("n")
        return found if type(found) is int else 0

    @property
    def ref(self) -> str:
        """`mnist@3/1`: the first evaluation of version 3."""
        return f"{self.name}@{self.version}/{self.number}"

    @property
    def metrics(self) -> dict[str, Measured]:
        """The metrics that are numbers, by name."""
        return _metrics(self.result.get("metrics"))

    @property
    def classes(self) -> dict[str, dict[str, Measured]]:
        """`precision`, `recall` and `f1` of each class that they are defined for."""
        listed = self.result.get("per_class")
        ones = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return {str(one.get("name")): _metrics({key: one.get(key) for key in _SCORES}) for one in ones}

    @property
    def slices(self) -> list[tuple[str, str, int, dict[str, Measured]]]:
        """Field, value, samples and metrics of each slice."""
        listed = self.result.get("slices")
        ones = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        return [
            (
                str(one.get("field")),
                str(one.get("value")),
                int(one["n"]) if type(one.get("n")) is int else 0,
                _metrics(one.get("metrics")),
            )
            for one in ones
        ]

    @property
    def latency(self) -> list[tuple[str, str, int, dict[str, Measured]]]:
        """`batch`, its size, calls, and what was timed: `p50_ms`, `p99_ms`, `samples_per_s`, `peak_rss_mb`."""
        listed = self.result.get("latency")
        made = []
        for one in listed if isinstance(listed, list) else []:
            if isinstance(one, dict) and type(one.get("batch")) is int:
                numbers = {name: _number(one.get(name)) for name in _TIMED}
                found = {name: Measured(value) for name, value in numbers.items() if value is not None}
                calls = one.get("calls")
                made.append(("batch", str(one["batch"]), calls if type(calls) is int else 0, found))
        return made

    @property
    def paired(self) -> dict[str, PairedMetric]:
        """The differences to another version, by metric; none where it was compared with none."""
        whole = self.result.get("paired")
        listed = whole.get("differences") if isinstance(whole, dict) else None
        made = {}
        for name, one in listed.items() if isinstance(listed, dict) else ():
            found, p = metric_of(one), _number(one.get("p")) if isinstance(one, dict) else None
            if found is not None and p is not None:
                made[str(name)] = PairedMetric(found, p)
        return made

    def to_json(self) -> dict[str, Any]:
        """The content of its file."""
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "by": self.by,
            "dataset": self.dataset,
            "data": self.data,
            "why": self.why,
            "result": self.result,
        }


class Evaluations:
    """The evaluations in a catalogue.

    Args:
        catalogue: The catalogue's folder.
    """

    def __init__(self, catalogue: Path | str) -> None:
        self._models = Path(catalogue) / "models"

    def add(
        self, version: Version, result: Mapping[str, Any], *, dataset: str, data: str, why: str = ""
    ) -> EvaluationRecord:
        """Publish an evaluation of a version; it is there whole or not at all, and never changes.

        Args:
            version: What was evaluated.
            result: What was measured.
            dataset: The data set's id.
            data: As it was named.
            why: What it was for.

        Raises:
            CatalogueError: The result is no JSON; or the version was removed, maybe meanwhile.
            StorageError: The file system refused.
        """
        folder = self._folder(version.name, version.version)
        made: dict[str, Any] = plain(result, "evaluation")
        words = str(dataset), str(data), str(why)
        self._need(version)
        make_durable_dir(folder)
        while True:
            number = max(numbers(folder), default=0) + 1
            now, by = time.time(), who()
            record = EvaluationRecord(version.name, version.version, number, now, by, *words, made)
            append(self._models.parent / "journals", [Pointer(version.name, version.version, None, number)])
            if claim_json(numbered(folder, number), record.to_json()):
                # `gc` takes the version first, then what was measured of it: the later one finds the other.
                try:
                    self._need(version)
                except CatalogueError:
                    with contextlib.suppress(OSError):
                        numbered(folder, number).unlink()
                        folder.rmdir()
                    raise
                return record

    def of(self, version: Version) -> list[EvaluationRecord]:
        """The evaluations of a version, oldest first.

        Raises:
            CorruptError: One of them is damaged.
        """
        found = (self.read(version, number) for number in self.numbers(version))
        return [record for record in found if record is not None]

    def numbers(self, version: Version) -> list[int]:
        """The numbers of a version's evaluations, ascending."""
        return numbers(self._folder(version.name, version.version))

    def path(self, version: Version, number: int) -> Path:
        """The file of an evaluation."""
        return numbered(self._folder(version.name, version.version), number)

    def read(self, version: Version, number: int) -> EvaluationRecord | None:
        """An evaluation of a version; None where it has no content, or there is none.

        Raises:
            CorruptError: It is damaged.
        """
        path = self.path(version, number)
        raw = read_claim(path, 0.0)
        return None if raw is None else parse_evaluation(raw, version.name, version.version, number, path)

    def latest(self, version: Version) -> dict[str, EvaluationRecord]:
        """The newest evaluation of a version on each data set, by the data set's id."""
        return {record.dataset: record for record in self.of(version)}

    def searched(self, version: Version) -> dict[str, float | int]:
        """What searches know of a version's evaluations, see `searched`; the newest on each data set counts.

        Raises:
            CorruptError: One of them is damaged.
        """
        said = version.lineage.get("datasets")
        datasets = {str(key): str(one) for key, one in said.items()} if isinstance(said, dict) else {}
        newest = {label_of(record, datasets): record for record in self.of(version)}
        return {
            key: value for label, record in newest.items() for key, value in searched(record, label).items()
        }

    def _need(self, version: Version) -> None:
        """Refuse a version that is not there: a record would take the number of one that went with it."""
        claims = VersionClaims(self._models / version.name / "versions", version.name, {}, wait_s=0)
        if claims.read(version.version) is None:
            raise CatalogueError(
                f"{version.ref} was removed, so what was measured of it is not kept", where=self._models.parent
            )

    def _folder(self, name: str, version: int) -> Path:
        return self._models / check_name(name, "model name") / "evaluations" / f"{version:06d}"


def metric_of(value: Any) -> Measured | None:
    """A value with its interval out of JSON, or None where it is no finite number."""
    if not isinstance(value, Mapping) or (middle := _number(value.get("value"))) is None:
        return None
    low, high = _number(value.get("low")), _number(value.get("high"))
    return Measured(middle, low, high) if low is not None and high is not None else Measured(middle)


def _metrics(raw: Any) -> dict[str, Measured]:
    found = raw if isinstance(raw, Mapping) else {}
    return {str(name): one for name, value in found.items() if (one := metric_of(value)) is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def label_of(record: EvaluationRecord, datasets: Mapping[str, str]) -> str:
    """What searches call an evaluation's data set: `test` where it is the version's own, or its folder's name.

    Args:
        record: The evaluation.
        datasets: Data set ids of the version by split. Another data set of which the folder is called like one
            of these gets the beginning of its id behind it.
    """
    for split in sorted(datasets, key=lambda split: (split != "test", split != "valid", split)):
        if datasets[split] == record.dataset and split != "evaluated":
            return split
    name = record.data.rstrip("/").rpartition("/")[2] or "data"
    return f"{name}-{record.dataset[:8]}" if name in datasets else name


def searched(record: EvaluationRecord, label: str) -> dict[str, float | int]:
    """What searches know of an evaluation: `eval.test.accuracy`, its `_low` and `_high`, `eval.test.n`.

    Of up to a hundred classes and slices also theirs, called as gates call them: `eval.test.recall['cat']`,
    `eval.test.accuracy['site == 3']`.
    """
    found: dict[str, float | int] = {f"eval.{label}.n": record.n}
    for name, one in record.metrics.items():
        ends = {"": one.value, "_low": one.low, "_high": one.high}
        found.update((f"eval.{label}.{name}{end}", v) for end, v in ends.items() if v is not None)
    # For each of 10^5 evaluations when an index is built, so without what `classes` and `slices` make of them.
    parts = [(str(one.get("name")), one, _SCORES) for one in _dicts(record.result.get("per_class"))]
    for part in _dicts(record.result.get("slices")):
        if type(scores := part.get("metrics")) is dict:
            parts.append((f"{part.get('field')} == {part.get('value')}", scores, tuple(scores)))
    for called, scores, names in parts if len(parts) <= _SEARCHED else ():
        for name in names:
            score = scores.get(name)
            if type(score) is dict and (value := _number(score.get("value"))) is not None:
                found[f"eval.{label}.{name}.{called}"] = value
    return found


def _dicts(listed: Any) -> list[dict[str, Any]]:
    return [one for one in listed if type(one) is dict] if type(listed) is list else []


def parse_evaluation(raw: Any, name: str, version: int, number: int, path: Path) -> EvaluationRecord:
    """An evaluation out of the JSON of its claim.

    Raises:
        CorruptError: It is none of this version.
    """
    try:
        check_format(raw, path)
        if raw["name"] != name or raw["version"] != version or not isinstance(raw["result"], dict):
            raise ValueError("its name, version or result is another one")
        by, dataset, data, why = (str(raw.get(key, "")) for key in ("by", "dataset", "data", "why"))
        created, result = float(raw["created"]), raw["result"]
        return EvaluationRecord(name, version, number, created, by, dataset, data, why, result)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptError(f"is not an evaluation of {name}@{version} ({error})", where=path) from error
