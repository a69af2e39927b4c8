"""Failures by cause: alike ones together, each kind with one text in full."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hpcmass.errors import HpcmassError
from hpcmass.sweep.report.trials import Told

_MOST_KINDS = 60
_MOST_TEXT = 4000
_NUMBERS = re.compile(r"\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def failures(trials: Sequence[Told]) -> list[dict[str, Any]]:
    """Kinds of failure, the most frequent first: cause, text, trials, and what the first one's ranks said."""
    kinds: dict[tuple[str, str], list[Told]] = {}
    for trial in trials:
        if trial.state == "failed":
            alike = _NUMBERS.sub("#", _ADDRESS.sub("0x#", trial.reason or ""))
            kinds.setdefault((trial.cause or "other", alike), []).append(trial)
    found = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    listed = [
        {
            "cause": cause,
            "text": (group[0].reason or "no reason is on record")[:_MOST_TEXT],
            "trials": [one.number for one in group],
            **_said(group[0]),
        }
        for (cause, _), group in found[:_MOST_KINDS]
    ]
    rest = [one.number for _, group in found[_MOST_KINDS:] for one in group]
    if rest:
        listed.append({"cause": "others", "text": "further kinds, each rarer than those above", "trials": rest})
    return listed


def _said(trial: Told) -> dict[str, Any]:
    """Hint, host and traceback of the first rank that ended badly in the trial's last attempt."""
    try:
        errors = trial.spec.run.errors()
    except (HpcmassError, OSError):
        return {}
    if not errors:
        return {}
    last = max(error.attempt for error in errors)
    first = next(error for error in errors if error.attempt == last)
    said = {"hint": first.hint, "host": first.host, "traceback": first.traceback, "rank": first.rank}
    # Of a long traceback the end is what tells.
    return {name: value[-_MOST_TEXT:] if isinstance(value, str) else value for name, value in said.items()}
