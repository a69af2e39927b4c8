"""The study's record of attempts (`attempts.jsonl`), where there is one: what they took and why they ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcmass.files import read_records
from hpcmass.sweep.watch import is_number

_GOOD = {"COMPLETED", "PRUNED", "PAUSED"}


def attempts(study: Path) -> dict[str, Any]:
    """What all ended attempts took, and those that ended early by cause.

    Returns:
        `{"ended": …, "node_s": … | None, "causes": [[cause, attempts, of them free, of them tried again]]}`;
        `ended` is 0 in studies without the record.
    """
    ended, node_s, causes = 0, None, dict[str, list[int]]()
    for record in read_records(study / "attempts.jsonl"):
        if record.get("kind") != "end":
            continue
        ended += 1
        if is_number(took := record.get("node_s")):
            node_s = (node_s or 0.0) + took
        cause = str(record.get("cause") or "not known")
        if cause not in _GOOD:
            counts = causes.setdefault(cause, [0, 0, 0])
            counts[0] += 1
            counts[1] += record.get("free") is True
            counts[2] += record.get("next") == "again"
    by_count = sorted(causes.items(), key=lambda item: (-item[1][0], item[0]))
    listed = [[cause, *counts] for cause, counts in by_count]
    return {"ended": ended, "node_s": node_s, "causes": listed}
