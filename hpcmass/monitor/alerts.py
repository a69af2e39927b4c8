"""What a deployment's events do: a command is run, once an event.

An event has a kind and a key (`drift` of version 3). While it lasts it is told once; it is over when a check
finds it so, and one of the same kind and key that begins anew within the cool-down is not told again.
`alerts.jsonl` has what was told, and the last word on each is how any process knows whether it still lasts.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.errors import AlreadyExists
from hpcmass.files import append_record, publish, read_records
from hpcmass.monitor.answers import Live, wilson
from hpcmass.monitor.drift import Verdict
from hpcmass.monitor.windows import Window, served

ALERTS = "alerts.jsonl"
_TIMEOUT_S = 60.0
_SAID = 500


@dataclass(frozen=True)
class Event:
    """Something that lasts, or does not.

    Attributes:
        kind: `drift`, `errors` or `accuracy`.
        key: What it is about: a version.
        on: Whether it lasts; None: nobody can say now.
        text: What is the matter, in a line.
        data: The same for programs.
    """

    kind: str
    key: str
    on: bool | None
    text: str
    data: dict[str, Any]


def drift_event(verdict: Verdict) -> Event:
    """Whether a version's inputs and outputs have drifted."""
    told = verdict.to_json()
    drifted = [one for one in told["findings"] if one["drift"]]
    names = list(dict.fromkeys(one["feature"] for one in drifted))
    text = f"version {verdict.version} drifts: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
    on = None if verdict.state == "too little" else verdict.state == "drift"
    return Event("drift", verdict.version, on, text, {**told, "findings": drifted[:20]})


def error_event(windows: Sequence[Window], limit: float) -> Event:
    """Whether more answers are the replica's own errors (500, 503) than a limit, beyond chance."""
    version = served(windows) if windows else ""
    kept = [one for one in windows if one.version == version]
    errors = sum(n for one in kept for code, n in one.answers.items() if code in ("500", "503"))
    every = errors + sum(one.requests for one in kept)
    low = wilson(errors, every)[0] if every else 0.0
    text = f"version {version}: {errors} of {every} requests failed"
    return Event("errors", version, low > limit if every else None, text, {"errors": errors, "requests": every})


def accuracy_event(found: Live, least: float) -> Event:
    """Whether the accuracy by labels that came is below a bound, beyond chance."""
    said = found.to_json()
    on = None if said["metric"] != "accuracy" or said["value"] is None else bool(said["high"] < least)
    shown = f"{said['value']:.3f}" if said["value"] is not None else "unknown"
    text = f"version {found.version}: accuracy {shown} of {found.n} labelled answers, {least:g} is required"
    return Event("accuracy", found.version, on, text, said)


def tell(
    folder: Path,
    event: Event,
    command: Sequence[str],
    *,
    cooldown_s: float = 3600.0,
    now: float | None = None,
    name: str = "",
) -> bool:
    """Run the command if this is the beginning of an event.

    The command gets the event as JSON on its standard input, and `HPCMASS_ALERT` (its kind),
    `HPCMASS_ALERT_TEXT`, `HPCMASS_ALERT_VERSION`, `HPCMASS_MONITOR` and `HPCMASS_DEPLOYMENT` in its
    environment. No shell sees any of it.

    Args:
        folder: The monitor's.
        event: What was found.
        command: Program and arguments; empty: the event is written down alone.
        cooldown_s: An event that began anew within this time after it was told is not told again.
        now: The time.
        name: Of the deployment.

    Returns:
        Whether it was told.
    """
    at = time.time() if now is None else now
    before = _last(folder, event)
    lasts = before is not None and before.get("on") is True
    if event.on is None or event.on == lasts:
        return False
    record = {
        "time": at, "kind": event.kind, "key": event.key, "on": event.on, "text": event.text,
        "data": event.data,
    }  # fmt: skip
    told_at = before.get("told") if before else None
    if not event.on or (told_at is not None and at - float(told_at) < cooldown_s):
        append_record(folder / ALERTS, {**record, "told": told_at})
        return False
    # Two watchers may see it at once: one of them gets the name.
    number = int(before.get("number", 0)) + 1 if before else 1
    while _forsaken(mark := folder / "alerts" / f"{event.kind}-{event.key}-{number:06d}", at):
        number += 1
    with contextlib.suppress(AlreadyExists):
        publish(mark, f"{at}\n")
        done = _run(command, record, folder, name) if command else {}
        append_record(folder / ALERTS, {**record, "told": at, "number": number, **done})
        return True
    return False


def _forsaken(mark: Path, now: float) -> bool:
    """Whether whoever was to tell an event died first: its name must not keep others from it for ever."""
    try:
        return now - float(mark.read_text(encoding="ascii")) > 2 * _TIMEOUT_S
    except (OSError, ValueError):
        return False


def close_others(folder: Path, version: str, *, now: float | None = None) -> None:
    """Say of events of versions that are served no more that they are over."""
    at = time.time() if now is None else now
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for one in read_records(folder / ALERTS):
        last[str(one.get("kind")), str(one.get("key"))] = one
    for (kind, key), one in last.items():
        if one.get("on") is True and key != version:
            text = f"version {key} is not what is served now"
            record = {"time": at, "kind": kind, "key": key, "on": False, "text": text, "data": {}}
            append_record(folder / ALERTS, {**record, "told": one.get("told")})


def _last(folder: Path, event: Event) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None
    for one in read_records(folder / ALERTS):
        if (one.get("kind"), one.get("key")) == (event.kind, event.key):
            number = max(int(one.get("number", 0)), int(found.get("number", 0)) if found else 0)
            found = {**one, "number": number}
    return found


def _run(command: Sequence[str], record: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    env = {
        **os.environ,
        "HPCMASS_ALERT": record["kind"],
        "HPCMASS_ALERT_TEXT": record["text"],
        "HPCMASS_ALERT_VERSION": record["key"],
        "HPCMASS_MONITOR": str(folder),
        "HPCMASS_DEPLOYMENT": name,
    }
    text = json.dumps({**record, "deployment": name, "monitor": str(folder)}, default=str)
    try:
        done = subprocess.run(
            list(command), input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env, check=False
        )
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:_SAID]}"}
    return {"exit": done.returncode, "said": (done.stdout + done.stderr)[-_SAID:]}
