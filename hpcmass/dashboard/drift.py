"""What the monitor of a deployment has found, as its files say: verdicts of drift, and alerts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcmass.dashboard.plain import UNREADABLE, number, said, text
from hpcmass.files import read_last_records

_BYTES = 1 << 18
_MOST = 20


def drift_of(folder: Path) -> dict[str, Any]:
    """`{"drift": …, "alerts": […]}`; nothing where the deployment is not monitored."""
    try:
        verdicts = read_last_records(folder / "drift.jsonl", _BYTES)
        alerts = read_last_records(folder / "alerts.jsonl", _BYTES)
    except UNREADABLE as error:
        return {"drift": {"error": f"what the monitor found cannot be read: {said(error)}"}}
    timed = [one for one in verdicts if number(one.get("time")) is not None and text(one.get("state"))]
    found: dict[str, Any] = {"alerts": _alerts(alerts)}
    return {**found, "drift": _verdict(timed[-1])} if timed else found


def _verdict(last: dict[str, Any]) -> dict[str, Any]:
    listed = last.get("findings")
    findings = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return {
        "state": text(last.get("state")),
        "drifted": last.get("state") == "drift",
        "when": number(last.get("time")),
        "version": str(last.get("version")),
        "requests": number(last.get("requests")),
        "why": text(last.get("why")),
        "features": [
            {
                "name": str(one.get("feature")),
                "test": text(one.get("test")),
                "drifted": one.get("drift") is True,
                **{key: number(one.get(key)) for key in ("p", "effect", "floor")},
            }
            for one in findings[:_MOST]
        ],
    }


def _alerts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last word on each event, of what still lasts."""
    last = {
        (str(one.get("kind")), str(one.get("key"))): one for one in records if isinstance(one.get("on"), bool)
    }
    return [
        {"kind": kind, "text": text(one.get("text")) or kind, "when": number(one.get("time", one.get("told")))}
        for (kind, _), one in last.items()
        if one["on"]
    ]
