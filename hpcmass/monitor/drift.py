"""Whether what is asked and answered is still what the model was trained for.

The false-alarm rate is a promise over time, however many features there are and however often somebody
looks. A look ends at a whole hour (the 24th part of what is looked at), so that all looks of one hour are one;
it may spend the part of `alpha` that an hour is of a month, and that is divided by the number of tests
(Bonferroni). A difference must also be large enough to matter: with a million samples the smallest one is
significant.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.errors import NotFound
from hpcmass.files import append_record, read_last_records
from hpcmass.monitor.baseline import Baseline, read_baseline
from hpcmass.monitor.features import CLASS
from hpcmass.monitor.testing import Result, pool, run_tests
from hpcmass.monitor.windows import DAY_S, HOUR_S, Window, merge_windows, read_windows, served

MONTH_S = 30 * DAY_S
ALPHA = 0.01
FLOORS = {"ks": 0.1, "psi": 0.1, "mean": 0.25, "missing": 0.01, "class": 0.1}
SLOTS = 24  # looks in the time that one takes in
LEAST = 100.0  # effective samples
VERDICTS = "drift.jsonl"
_TOLD = 20
_RECENT_BYTES = 1 << 18


@dataclass(frozen=True)
class Finding:
    """A test of a feature that says drift, or came nearest to it."""

    feature: str
    result: Result
    floor: float
    level: float

    @property
    def drift(self) -> bool:
        """Whether it is significant and large enough."""
        return self.result.p <= self.level and self.result.effect >= self.floor

    def to_json(self) -> dict[str, Any]:
        """As in a verdict's record."""
        one = self.result
        return {
            "feature": self.feature, "test": one.test, "p": one.p, "effect": round(one.effect, 6),
            "floor": self.floor, "n": round(one.n, 1), "drift": self.drift,
        }  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What a look found.

    Attributes:
        state: `drift`, `clean`, or `too little`: not enough was seen to say.
        version: Of the model.
        since: The first moment looked at (seconds since the epoch).
        until: The last.
        requests: In that time.
        level: What a single test's p-value had to be below.
        tests: How many there were.
        findings: Those that say drift, then those that came nearest.
        why: Where too little was seen.
    """

    state: str
    version: str
    since: float
    until: float
    requests: int = 0
    level: float = 0.0
    alpha: float = ALPHA
    tests: int = 0
    findings: tuple[Finding, ...] = ()
    why: str = ""
    time: float = field(default_factory=time.time)

    def to_json(self) -> dict[str, Any]:
        """As a record."""
        return {**vars(self), "findings": [one.to_json() for one in self.findings]}


def compare(
    baseline: Baseline,
    blocks: Sequence[Window],
    level: float,
    floors: Mapping[str, float] = FLOORS,
) -> tuple[list[Finding], int]:
    """All tests of all features, the most telling first, and how many there were.

    Args:
        baseline: The training data's statistics.
        blocks: Equal spans of time, in order.
        level: The chance of a false alarm that all tests share.
        floors: Least effects by test.
    """
    found: list[tuple[str, Result]] = []
    for name, reference in baseline.sketches.items():
        seen = pool([(float(one.requests), one.features[name]) for one in blocks if name in one.features])
        if seen is not None and reference.count and seen.n / seen.deff >= LEAST / 2:
            results = run_tests(reference, seen, classes=name == f"out:{CLASS}")
            found += [(name, one) for one in results]
    each = level / max(len(found), 1)
    findings = [Finding(name, one, floors[one.test], each) for name, one in found]
    return sorted(findings, key=lambda one: (not one.drift, one.result.p, -one.result.effect)), len(findings)


def blocks_of(windows: Sequence[Window], since: float, until: float) -> list[Window]:
    """Windows of all replicas put into blocks: hours of a long time, else 24 equal parts of a short one."""
    long = max(one.end - one.start for one in windows)
    span_s = HOUR_S if until - since >= 12 * HOUR_S else max((until - since) / SLOTS, long)
    groups: dict[int, list[Window]] = {}
    for one in windows:
        groups.setdefault(math.floor((one.start + one.end - 2 * since) / 2 / span_s), []).append(one)
    return [merge_windows(groups[number]) for number in sorted(groups)]


def look(
    folder: Path,
    *,
    now: float | None = None,
    since: float | None = None,
    period_s: float = DAY_S,
    alpha: float = ALPHA,
    floors: Mapping[str, float] = FLOORS,
    record: bool = True,
) -> Verdict:
    """Look at what replicas wrote, and write down what is found.

    Args:
        folder: The monitor's.
        now: The last moment (default: now), of which the last whole 24th part of the period is taken.
        since: The first; default: `period_s` before, and then nothing is said before that much was seen.
        period_s: How long a time is looked at: a whole day has all that a day's rhythm brings.
        alpha: Chance of a false alarm in 30 days.
        floors: Least effects by test.
        record: Write the verdict down.

    Raises:
        NotFound: No replica has written anything, or the version has no reference.
    """
    end = time.time() if now is None else now
    slot_s = (period_s if since is None else max(end - since, 0.0)) / SLOTS
    if since is None:
        end = math.floor(end / slot_s + 1e-9) * slot_s
    begin = end - period_s if since is None else since
    windows = read_windows(folder, begin, end)
    if not windows:
        raise NotFound("no window of that time", where=folder, hint="hpcmass serve MODEL --monitor FOLDER")
    version = served(windows)
    windows = [one for one in windows if one.version == version]
    baseline = read_baseline(folder, version)
    if baseline is None:
        raise NotFound(
            f"version {version} has no reference to measure drift against",
            where=folder,
            hint="serve it with --training-data FOLDER",
        )
    level = min(1.0, slot_s / MONTH_S) * alpha
    verdict = _judged(baseline, windows, begin, end, since is None, level, floors)
    verdict = Verdict(**{**vars(verdict), "alpha": alpha, "time": time.time() if now is None else now})
    if record:
        told = verdict.to_json()
        append_record(folder / VERDICTS, {**told, "findings": told["findings"][:_TOLD]})
    return verdict


def _judged(
    baseline: Baseline,
    windows: list[Window],
    begin: float,
    end: float,
    whole: bool,
    level: float,
    floors: Mapping[str, float],
) -> Verdict:
    requests = sum(one.requests for one in windows)
    first = windows[0].start
    verdict = Verdict("too little", windows[0].version, begin, end, requests, level)
    # Of an hour's rest a window or two may be missing, when the period has begun within one.
    if whole and first > begin + 0.05 * (end - begin):
        seen_s = end - first
        text = f"{seen_s / HOUR_S:.1f} of {(end - begin) / HOUR_S:.1f} hours were seen"
        return Verdict(**{**vars(verdict), "why": text})
    findings, tests = compare(baseline, blocks_of(windows, max(begin, first), end), level, floors)
    if not tests or max(one.result.n for one in findings) < LEAST / 2:
        return Verdict(**{**vars(verdict), "why": f"{requests} requests are too few"})
    state = "drift" if findings[0].drift else "clean"
    each = level / tests
    return Verdict(state, verdict.version, begin, end, requests, each, tests=tests, findings=tuple(findings))


def verdicts(folder: Path) -> list[dict[str, Any]]:
    """The newest verdicts, oldest first."""
    found = read_last_records(folder / VERDICTS, _RECENT_BYTES)
    return [one for one in found if isinstance(one.get("time"), (int, float))]
