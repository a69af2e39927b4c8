"""Which of two runners of one model serves: held against each other, and measured, when a replica warms up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from hpcmass.errors import HpcmassError
from hpcmass.serve.interfaces import ANY, Array, Interface, Limits, Runner
from hpcmass.serve.pace import Pace

RELATIVE, ABSOLUTE = 1e-3, 1e-4  # as an export is held against its parent
_COMPARED = 64
_ANY_LENGTH = 16
_WORTH = 0.95  # another runtime than the model's own has to be quicker by more than noise


@dataclass(frozen=True)
class Offer:
    """What could compute a model.

    Attributes:
        runners: The model's own first, unless only another one was asked for.
        note: Why there is no other.
        forced: Take the last, however quick; that it computes the same is measured all the same.
    """

    runners: tuple[Runner, ...]
    note: str = ""
    forced: bool = False


@dataclass(frozen=True)
class Choice:
    """What serves, and why.

    Attributes:
        runner: It.
        pace: Its batches' times.
        paces: Of all that were measured, by platform.
        difference: The largest difference between two runners' outputs; None where there was one runner.
        why: In words.
    """

    runner: Runner
    pace: Pace
    paces: dict[str, Pace]
    difference: float | None
    why: str

    def to_json(self) -> dict[str, Any]:
        """As `/v2/models/NAME` has it."""
        measured = {
            platform: {"alone_ms": 1e3 * pace.seconds[1], "batch": pace.limit, "rows_per_s": _rows(pace)}
            for platform, pace in self.paces.items()
        }
        return {
            "chosen": self.runner.platform,
            "why": self.why,
            "measured": measured,
            "largest_difference": self.difference,
        }

    def gauges(self) -> dict[str, float]:
        """As `/metrics` has it."""
        found: dict[str, float] = {}
        for platform, pace in self.paces.items():
            found[f'runtime_alone_seconds{{runtime="{platform}"}}'] = pace.seconds[1]
        for platform, pace in self.paces.items():
            found[f'runtime_rows_per_second{{runtime="{platform}"}}'] = _rows(pace)
        if self.difference is not None:
            found["runtime_largest_difference"] = self.difference
        return found


def choose(offer: Offer, limits: Limits, threads: int) -> Choice:
    """Warm all runners up, hold the last against the first, and take the quicker of those that agree.

    Args:
        offer: One or two runners.
        limits: Of the replica.
        threads: Cores of one computation.

    Raises:
        HpcmassError: A model fails at zeros.
    """
    own, other = offer.runners[0], offer.runners[-1]
    paces = {one.platform: Pace(limits.latency_s / 2, limits.batch_rows) for one in offer.runners}
    _measure(own, paces[own.platform], threads)
    if own is other:
        return Choice(own, paces[own.platform], paces, None, offer.note or "it runs in no other way")
    try:
        _measure(other, paces[other.platform], threads)
        largest, close = difference(own, other)
        for runner in offer.runners:  # in turns: what disturbs the machine disturbs both
            _measure(runner, paces[runner.platform], threads)
    except HpcmassError as error:
        if offer.forced:
            raise
        only = {own.platform: paces[own.platform]}
        return Choice(own, only[own.platform], only, None, f"{other.platform} fails: {error.message}")
    ratio = _ratio(paces[own.platform], paces[other.platform])
    said = f"{other.platform} takes {ratio:.2f} of the time of {own.platform}"
    if not close:
        said += f", outputs differ by up to {largest:.2g}"
    if offer.forced:
        said += "; it was asked for"
    taken = other if offer.forced or (close and ratio < _WORTH) else own
    return Choice(taken, paces[taken.platform], paces, largest, said)


def samples(interface: Interface, rows: int, seed: int = 0) -> dict[str, Array]:
    """Made-up inputs of a model, (rows, *shape) by name.

    Whole numbers wider than bytes are 0 or 1, which are tokens and categories of any vocabulary.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for one in interface.inputs:
        shape = (rows, *(_ANY_LENGTH if n == ANY else n for n in one.shape))
        dtype = np.dtype(one.dtype)
        if dtype.kind == "f":
            found[one.name] = rng.normal(size=shape).astype(dtype)
        else:
            found[one.name] = rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)
    return found


def difference(own: Runner, other: Runner) -> tuple[float, bool]:
    """How far apart two runners' outputs are at made-up inputs, one by itself and many at once.

    Returns:
        The largest difference, and whether all are within 1e-4 and a thousandth of their size.
    """
    largest, close = 0.0, True
    for rows in (1, _COMPARED):
        given = samples(own.interface, rows)
        try:
            before = own.run({name: value.copy() for name, value in given.items()})
        except HpcmassError:  # it asks for more than its signature says; zeros have been computed before
            given = {name: np.zeros_like(value) for name, value in given.items()}
            before = own.run({name: value.copy() for name, value in given.items()})
        after = other.run(given)
        for one in own.interface.outputs:
            one_largest, one_close = _apart(before[one.name], after.get(one.name))
            largest, close = max(largest, one_largest), close and one_close
    return largest, close


def _apart(before: Array, after: Array | None) -> tuple[float, bool]:
    if after is None or before.shape != after.shape or before.dtype != after.dtype:
        return math.inf, False
    one, two = np.asarray(before, np.float64), np.asarray(after, np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))  # infinities too
    with np.errstate(invalid="ignore"):
        differ = np.where(same, 0.0, np.abs(one - two))
        close = differ <= ABSOLUTE + RELATIVE * np.abs(one)
    return float(np.nan_to_num(differ, nan=math.inf).max(initial=0.0)), bool(close.all())


def _measure(runner: Runner, pace: Pace, threads: int) -> None:
    """Compute batches of zeros until all is loaded, compiled and allocated, and measure how long they take."""
    runner.enter(threads)

    def run(rows: int) -> float:
        inputs = _zeros(runner.interface, rows)
        begun = perf_counter()
        runner.run(inputs)
        return perf_counter() - begun

    try:
        pace.measure(run)
    except HpcmassError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise HpcmassError(f"the model fails at zeros ({text})", hint="try it: hpcmass predict") from error


def _zeros(interface: Interface, rows: int) -> Mapping[str, Array]:
    return {
        one.name: np.zeros((rows, *(_ANY_LENGTH if n == ANY else n for n in one.shape)), one.dtype)
        for one in interface.inputs
    }


def _ratio(own: Pace, other: Pace) -> float:
    """How the other's times stand to the own ones: the geometric mean over sizes that both have."""
    sizes = [size for size in own.seconds if size in other.seconds]
    logs = [math.log(max(other.seconds[n], 1e-9) / max(own.seconds[n], 1e-9)) for n in sizes]
    return math.exp(sum(logs) / len(logs))


def _rows(pace: Pace) -> float:
    return 1.0 / max(pace.row_s, 1e-9)
