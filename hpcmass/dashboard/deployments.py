"""Deployments: what their gateways, replicas and monitors leave in files, of which nothing is believed."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcmass.dashboard.drift import drift_of
from hpcmass.dashboard.looks import Paced
from hpcmass.dashboard.plain import UNREADABLE, number, said, text
from hpcmass.dashboard.runs import folders
from hpcmass.errors import CorruptError, NotFound
from hpcmass.files import check_name, read_json, read_last_records

FORMAT = 1
MOST = 200
_MOST_REPLICAS = 200
_MOST_EVENTS = 40
_STALE_S = 15.0  # since the gateway's last word, which it says every second
_KEPT = 400  # moments of rate and latency
_NUMBERS = ("rate", "p50_ms", "p99_ms", "errors", "queue")


class DeploymentsReader:
    """The folder of deployments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._kept: dict[str, _One] = {}
        self._names = Paced(lambda: folders(folder)[:MOST])

    def page(self) -> dict[str, Any]:
        """All deployments, without their replicas' details."""
        rows = []
        for name in self._names():
            found = self._read(name)
            if found is not None:
                rows.append({key: found[key] for key in _LISTED if key in found})
        rows.sort(key=lambda row: (row["state"] == "ENDED", row["name"]))
        return {"deployments": rows}

    def one(self, name: str) -> dict[str, Any]:
        """All of one.

        Raises:
            NotFound: There is none.
        """
        check_name(name, "deployment name")
        found = self._read(name)
        if found is None:
            raise NotFound(f"there is no deployment {name!r}")
        return found

    def served(self) -> dict[str, str]:
        """The reference that each deployment serves, by its name."""
        rows = [row for row in self.page()["deployments"] if row["state"] != "ENDED"]
        return {row["name"]: ref for row in rows if (ref := row["follow"] or row["model"])}

    def _read(self, name: str) -> dict[str, Any] | None:
        with self._lock:
            kept = self._kept.setdefault(name, _One(self.folder / name))
        found: dict[str, Any] | None = kept.look()
        return found


_LISTED = (
    "name", "state", "reason", "model", "follow", "url", "wanted", "ready", "replicas_count", "split", "heard",
    "slo_p99_ms", "drift", *_NUMBERS,
)  # fmt: skip


class _One:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.look = Paced(self._look)
        self._course: deque[list[float | None]] = deque(maxlen=_KEPT)

    def _look(self) -> dict[str, Any] | None:
        folder, problems = self.folder, list[str]()

        def read(file: str) -> dict[str, Any] | None:
            try:
                return read_object(folder / file)
            except NotFound:
                return None
            except UNREADABLE as error:
                problems.append(f"{file}: {said(error)}")
                return {}

        asked = read("deployment.json")
        endpoint, status = read("endpoint.json"), read("gateway/status.json")
        if asked is None and endpoint is None and status is None:
            return None
        asked, endpoint = asked or {}, endpoint or {}
        heard = number((status or {}).get("time"))
        state, reason = _state(asked, endpoint, status, heard)
        replicas = self._replicas(status or {}, problems)
        if heard is not None and (not self._course or self._course[-1][0] != heard):
            self._course.append(
                [heard, *(number((status or {}).get(key)) for key in ("rate", "p50_ms", "p99_ms"))]
            )
        told = status or {}
        return {
            "name": folder.name,
            "state": "UNKNOWN" if problems and state != "ENDED" else state,
            "reason": "; ".join(problems) or reason,
            "model": text(told.get("model")) or text(asked.get("stable")) or text(asked.get("model")),
            "previous": text(asked.get("previous")),
            "site": text(asked.get("site")),
            "targets": _words(asked.get("targets")),
            "follow": text(asked.get("follow")),
            "bounds": _numbers(asked.get("replicas")),
            "slo_p99_ms": number(asked.get("slo_p99_ms")),
            "created": number(asked.get("created")),
            "by": text(asked.get("by")),
            "url": text(endpoint.get("url")),
            "generation": number(endpoint.get("generation")),
            "heard": heard,
            **{key: number(told.get(key)) for key in _NUMBERS},
            "wanted": number(told.get("wanted")),
            "mind": text(told.get("reason")),
            "note": text(told.get("note")),
            "canary": _canary(told.get("canary")),
            "split": _split(replicas),
            "ready": sum(one["state"] == "ready" for one in replicas),
            "replicas_count": len(replicas),
            "replicas": replicas,
            "course": list(self._course),
            "events": _events(folder / "events.jsonl"),
            **drift_of(folder / "monitor"),
        }

    def _replicas(self, status: dict[str, Any], problems: list[str]) -> list[dict[str, Any]]:
        """As the gateway says; those of which it says nothing as their folders do."""
        told = status.get("replicas")
        rows = [_replica(one) for one in told if isinstance(one, dict)] if isinstance(told, list) else []
        known = {row["id"] for row in rows}
        names = [name for name in folders(self.folder / "replicas") if name not in known]
        for name in names[-_MOST_REPLICAS:]:
            place = self.folder / "replicas" / name
            try:
                laid, job, end = (
                    _maybe(place / file) for file in ("replica.json", "job.json", "endpoint.json")
                )
            except UNREADABLE as error:
                problems.append(f"replicas/{name}: {said(error)}")
                continue
            state = text(end.get("state")) or "laid down"
            if state == "ended" or not laid or (place / "ended.json").exists():
                continue  # What has ended is told by the events.
            told = {"id": name, "state": state, "job": job.get("id"), "model": laid.get("model")}
            rows.append(_replica({**laid, **end, **told}))
        return sorted(rows, key=lambda row: row["id"])[:_MOST_REPLICAS]


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object of a format that is known.

    Raises:
        NotFound: There is no such file.
        CorruptError: It holds something else.
    """
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise CorruptError("is no JSON object", where=file)
    found = raw.get("format", FORMAT)
    if type(found) is not int or found > FORMAT:
        raise CorruptError(f"is of format {found!r}, and this hpcmass knows {FORMAT}", where=file)
    return raw


def _maybe(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except NotFound:
        return {}


def _state(
    asked: dict[str, Any], endpoint: dict[str, Any], status: dict[str, Any] | None, heard: float | None
) -> tuple[str, str | None]:
    word = text(endpoint.get("state"))
    fresh = heard is not None and time.time() - heard < _STALE_S
    wanted = asked.get("state")
    if (word == "ended" and (fresh or wanted != "running")) or (wanted == "ended" and not fresh):
        return "ENDED", None
    if status is None or word == "ended":  # ended once, and asked for again
        return "STARTING", "its gateway has not said anything yet"
    if not fresh:
        return "UNKNOWN", "its gateway is silent"
    if asked.get("state") == "ended":
        return "DRAINING", None
    return {"ready": "READY", "draining": "DRAINING"}.get(word or "", "STARTING"), None


def _replica(raw: dict[str, Any]) -> dict[str, Any]:
    words = {key: text(raw.get(key)) for key in ("state", "url", "node", "target", "model", "track", "told")}
    job, version = raw.get("job", raw.get("job_id")), raw.get("version")
    return {
        **words,
        "id": str(raw.get("id")),
        "version": str(version) if isinstance(version, (str, int)) else None,
        "job": str(job) if isinstance(job, (str, int)) else None,
        **{key: number(raw.get(key)) for key in ("weight", "in_flight", "rate", "p99_ms", "busy", "queue")},
    }


def _split(replicas: list[dict[str, Any]]) -> list[list[Any]]:
    """What each version answers now: `[[version, share, replicas]]`, the larger share first."""
    rates: dict[str, list[float]] = {}
    for one in replicas:
        if one["state"] in ("ready", "leaving"):
            rates.setdefault(one["model"] or one["version"] or "?", []).append(one["rate"] or 0.0)
    total = sum(map(sum, rates.values()))
    shares = [[name, sum(found) / total if total else None, len(found)] for name, found in rates.items()]
    return sorted(shares, key=lambda share: (-(share[1] or 0.0), share[0]))


def _canary(raw: Any) -> dict[str, Any] | None:
    if not isinstance(raw, dict):
        return None
    return {"model": text(raw.get("model")), "share": number(raw.get("share"))}


def _words(raw: Any) -> list[str]:
    return [str(one) for one in raw][:50] if isinstance(raw, list) else []


def _numbers(raw: Any) -> list[float | None]:
    return [number(one) for one in raw][:2] if isinstance(raw, list) else []


def _events(file: Path) -> list[dict[str, Any]]:
    read: Callable[[Path], list[dict[str, Any]]] = read_last_records
    try:
        records = read(file)
    except UNREADABLE:
        return []
    return [
        {
            "time": number(one.get("time")),
            "kind": str(one.get("kind")),
            "facts": {key: value for key, value in one.items() if key not in ("time", "kind", "format")},
        }
        for one in reversed(records[-_MOST_EVENTS:])
    ]
