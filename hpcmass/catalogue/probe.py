"""One thing that `catalogue doctor` looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Probe:
    """What was tried, and what came of it.

    Attributes:
        name: What it is about.
        state: `good`, `note` (it works otherwise than one may think), `bad`, or `unknown`.
        found: What was seen.
        advice: What to do about it, or empty.
    """

    name: str
    state: str
    found: str
    advice: str = ""
