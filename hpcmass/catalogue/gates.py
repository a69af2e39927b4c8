"""What a promotion requires: `accuracy >= 0.97 on test`. Read and judged here; nothing of it is ever run."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmass.catalogue.evaluations import EvaluationRecord, Measured, PairedMetric
from hpcmass.catalogue.version import check_alias
from hpcmass.errors import CatalogueError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_REQUIREMENT = re.compile(
    rf"""\s*(?:(?P<end>low|high)\s*\(\s*)?
    (?P<metric>[A-Za-z_][A-Za-z0-9_.-]*)(?:\[(?P<quote>['"])(?P<inside>.*?)(?P=quote)\])?
    (?(end)\s*\))
    \s*(?P<op>>=|<=|>|<)\s*
    (?:(?P<number>{_NUMBER})|(?P<ref>[A-Za-z][A-Za-z0-9._-]*?)(?:\s+(?P<sign>[+-])\s*(?P<offset>[.\d]\S*))?)
    \s+on\s+(?P<data>\S(?:.*?\S)?)(?P<sure>\s+significantly)?\s*""",
    re.VERBOSE,
)
_SLICE = re.compile(r"\s*(?P<field>[A-Za-z0-9._-]+)\s*==\s*(?P<value>.*?)\s*")
_OPS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_HINT = (
    'write METRIC >= NUMBER on DATASET, such as "accuracy >= 0.97 on test", "recall[\'cat\'] >= 0.9 on test", '
    '"low(accuracy) > 0.95 on data/mnist/test", "accuracy >= production - 0.005 on test", '
    'or "accuracy > production on test significantly"'
)


@dataclass(frozen=True)
class Requirement:
    """One requirement.

    Attributes:
        text: As it was written.
        metric: The metric's name.
        of: A class (`recall['cat']`), or a slice (`accuracy['site == berlin']`); empty: of all samples.
        end: `low` or `high` for an end of the 95 % interval; empty for the value.
        op: One of `>=`, `<=`, `>`, `<`.
        number: The bound, or what is added to the value of `against`.
        against: The alias whose version sets the bound, or None.
        data: The data set, as written.
        significantly: Whether the 95 % interval of the paired difference to `against` has to be beyond it.
    """

    text: str
    metric: str
    of: str
    end: str
    op: str
    number: float
    against: str | None
    data: str
    significantly: bool = False

    @property
    def slice(self) -> tuple[str, str] | None:
        """Field and value where `of` is a slice."""
        match = _SLICE.fullmatch(self.of)
        return (match["field"], match["value"]) if match else None

    def found_in(self, record: EvaluationRecord) -> Measured:
        """What an evaluation says of the metric.

        Raises:
            CatalogueError: It does not say; the hint has what it says.
        """
        if self.significantly:
            return self._difference(record).difference
        metrics, where = record.metrics, ""
        if (cut := self.slice) is not None:
            where = f" of the slice {cut[0]} == {cut[1]}"
            by_slice = {(name, value): found for name, value, _, found in [*record.slices, *record.latency]}
            known = [value for name, value in by_slice if name == cut[0]]
            if cut not in by_slice:
                raise self._unknown(f"there is no slice {cut[0]} == {cut[1]}", known)
            metrics = by_slice[cut]
        elif self.of:
            where = f" of class {self.of}"
            if self.of not in record.classes:
                raise self._unknown(f"there is no class {self.of!r}", list(record.classes))
            metrics = record.classes[self.of]
        if self.metric not in metrics:
            raise self._unknown(f"{record.name}@{record.version} has no {self.metric}{where}", list(metrics))
        found = metrics[self.metric]
        if self.end and found.low is None:
            raise CatalogueError(f"{self.metric} has no interval", where=self.text, hint="require its value")
        return found

    def _difference(self, record: EvaluationRecord) -> PairedMetric:
        paired = record.paired
        if self.metric not in paired:
            raise self._unknown(f"{self.metric} was not compared on the same samples", list(paired))
        return paired[self.metric]

    def holds(self, found: Measured, bound: float) -> bool:
        """Whether what was found is beyond the bound; of a difference its whole interval."""
        if self.significantly:
            end = found.low if self.op in (">", ">=") else found.high
            return end is not None and _OPS[self.op](end, bound)
        return _OPS[self.op](self.value_in(found), bound)

    def _unknown(self, message: str, known: list[str]) -> CatalogueError:
        some = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
        return CatalogueError(message, where=self.text, hint=f"there are: {some}" if some else None)

    def value_in(self, found: Measured) -> float:
        """The number that is compared: the value, or the end that was asked for."""
        value = {"low": found.low, "high": found.high}.get(self.end, found.value)
        return math.nan if value is None else value


@dataclass(frozen=True)
class GateResult:
    """How a version did against a requirement.

    Attributes:
        requirement: What was required.
        held: Whether it held.
        found: What was measured of the version.
        bound: The number it was held against; None where `against` had no version yet.
        record: The evaluation it is from.
        base: The evaluation of the version that set the bound, or None.
    """

    requirement: Requirement
    held: bool
    found: Measured
    bound: float | None
    record: EvaluationRecord
    base: EvaluationRecord | None = None

    def told(self) -> str:
        """What was found, in a line."""
        one = self.requirement
        name = one.metric + (f"[{one.of}]" if one.of else "")
        line = f"{one.text}: found {name} {self.found} (n={self.record.n}, {self.record.data})"
        if one.significantly and self.base is not None:
            p = self.record.paired[one.metric].p
            return (
                f"{one.text}: found {name} to differ by {self.found} from {self.base.name}@{self.base.version} "
                f"(p={p:.2g}, n={self.record.n}, {self.record.data})"
            )
        if one.against is not None:
            if self.base is None:
                line += f"; there is no {one.against} yet"
            else:
                had = one.found_in(self.base)
                line += f"; {one.against} is {self.base.name}@{self.base.version} with {had}"
        return line

    def to_json(self) -> dict[str, Any]:
        """As the alias's history keeps it."""
        return {
            "require": self.requirement.text,
            "held": self.held,
            "found": self.found.to_json(),
            "bound": self.bound,
            "n": self.record.n,
            "dataset": self.record.dataset,
            "data": self.record.data,
            "evaluation": self.record.ref,
            "against": None if self.base is None else self.base.ref,
        }


def parse_requirement(text: str) -> Requirement:
    """Read a requirement.

    Raises:
        CatalogueError: It is none; the hint shows some.
    """
    match = _REQUIREMENT.fullmatch(text)
    if match is None:
        raise CatalogueError(f"{text!r} is no requirement", hint=_HINT)
    sign, offset, ref = match["sign"], match["offset"], match["ref"]
    number = _finite(match["number"] or offset or "0", text) * (-1.0 if sign == "-" else 1.0)
    if ref is not None:
        check_alias(ref)
    if match["sure"] and (ref is None or match["end"] or match["inside"] is not None):
        raise CatalogueError(
            f"{text!r}: 'significantly' is said of a metric of all samples, against an alias",
            hint='"accuracy > production on test significantly"; of a number: "low(accuracy) > 0.95 on test"',
        )
    return Requirement(
        text=" ".join(text.split()),
        metric=match["metric"],
        of=match["inside"] or "",
        end=match["end"] or "",
        op=match["op"],
        number=number,
        against=ref,
        data=match["data"],
        significantly=match["sure"] is not None,
    )


def _finite(text: str, whole: str) -> float:
    if not re.fullmatch(_NUMBER, text) or not math.isfinite(float(text)):
        raise CatalogueError(f"{text!r} is no number to require", where=whole, hint=_HINT)
    return float(text)


def judge(requirement: Requirement, record: EvaluationRecord, base: EvaluationRecord | None) -> GateResult:
    """Hold an evaluation against a requirement.

    A requirement against an alias that has no version yet holds: there is nothing to be worse than.

    Args:
        requirement: What is required.
        record: An evaluation of the version to be promoted.
        base: An evaluation, on the same data set, of the version that the requirement names.

    Raises:
        CatalogueError: The metric was not measured, or not on the same data set.
    """
    if requirement.against is not None and base is None:
        found = dataclasses.replace(requirement, significantly=False).found_in(record)
        return GateResult(requirement, True, found, None, record)
    found = requirement.found_in(record)
    bound = requirement.number
    if base is not None:
        if base.dataset != record.dataset:
            raise CatalogueError("the two versions were not evaluated on the same data", where=requirement.text)
        if not requirement.significantly:
            bound += requirement.found_in(base).value
    return GateResult(requirement, requirement.holds(found, bound), found, bound, record, base)


def refusal(results: Sequence[GateResult], ref: str, alias: str) -> CatalogueError:
    """The error that says which requirements did not hold, and by what was found."""
    failed = [one for one in results if not one.held]
    lines = [f"{ref} is not promoted to {alias}: {len(failed)} of {len(results)} requirements did not hold"]
    lines += [f"  {one.told()}" for one in failed]
    return CatalogueError(
        "\n".join(lines),
        hint=f"{alias} stays where it is; what was measured is kept: hpcmass catalogue card {ref}",
        gates=[one.to_json() for one in results],
    )
