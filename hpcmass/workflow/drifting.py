"""A deployment's monitor as people ask for it: drift, alerts, labels."""

from __future__ import annotations

import csv
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcmass.errors import DataError, HpcmassError, NotFound
from hpcmass.files import check_name, storage_errors
from hpcmass.monitor.alerts import accuracy_event, close_others, drift_event, error_event, tell
from hpcmass.monitor.answers import Label, Live, add_labels, check_label, live
from hpcmass.monitor.drift import ALPHA, Verdict, look
from hpcmass.monitor.facts import read_facts
from hpcmass.monitor.windows import DAY_S, read_windows, replicas_in
from hpcmass.workflow.projects import ProjectRef, maybe_project

_ERRORS_S = 600.0


@dataclass(frozen=True)
class Watched:
    """A monitor's folder, and the name of its deployment (empty where it has none)."""

    folder: Path
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is looked at, and what an event does.

    Attributes:
        period_s: How much time a look takes in.
        since_s: Instead: this many seconds before now, whatever has been seen.
        alpha: Chance of a false alarm of drift in 30 days.
        error_rate: More errors of replicas than this share is an event.
        min_accuracy: Less live accuracy than this is an event.
        command: What an event runs, as words.
        cooldown_s: See `monitor.alerts.tell`.
    """

    period_s: float = DAY_S
    since_s: float | None = None
    alpha: float = ALPHA
    error_rate: float = 0.01
    min_accuracy: float | None = None
    command: Sequence[str] = ()
    cooldown_s: float = 3600.0


def monitor_of(what: str, project: ProjectRef = None) -> Watched:
    """The monitor of a deployment, or of a folder that replicas write into.

    Raises:
        NotFound: Neither is there, or nothing has been written.
    """
    if os.sep in what or what in (".", ".."):
        folder, name = Path(what), ""
    else:
        found = maybe_project(project)
        named = check_name(what, "deployment")
        folder, name = Path(what), ""
        if found is not None and (found.deployments / named).is_dir():
            folder, name = found.deployments / named / "monitor", named
    inside = folder / "monitor"
    if not replicas_in(folder) and inside.is_dir():  # the deployment's own folder was named
        folder, name = inside, folder.absolute().name
    if not folder.is_dir():
        raise NotFound(
            f"there is no deployment or monitor's folder {what!r}",
            hint="hpcmass serve MODEL --monitor FOLDER writes one",
        )
    return Watched(folder, name)


def check(watched: Watched, asked: Watch, *, now: float | None = None) -> tuple[Verdict, list[str]]:
    """Look once: a verdict of drift, and what was told of events that have begun.

    Raises:
        NotFound: Nothing has been seen in that time, or there is no reference.
    """
    at = time.time() if now is None else now
    folder = watched.folder
    since = None if asked.since_s is None else at - asked.since_s
    verdict = look(folder, now=at, since=since, period_s=asked.period_s, alpha=asked.alpha)
    events = [drift_event(verdict), error_event(read_windows(folder, at - _ERRORS_S, at), asked.error_rate)]
    if asked.min_accuracy is not None:
        found = accuracy(watched, since=verdict.since)
        events += [accuracy_event(one, asked.min_accuracy) for one in found if one.version == verdict.version]
    close_others(folder, verdict.version, now=at)
    told = [
        one.text
        for one in events
        if tell(folder, one, asked.command, cooldown_s=asked.cooldown_s, now=at, name=watched.name)
    ]
    return verdict, told


def keep_checking(
    watched: Watched, asked: Watch, every_s: float, say: Callable[[Verdict | HpcmassError, list[str]], None]
) -> None:
    """Look again and again until interrupted; what cannot be read is said, and tried again."""
    while True:
        try:
            say(*check(watched, asked))
        except HpcmassError as error:
            say(error, [])
        time.sleep(every_s)


def accuracy(watched: Watched, since: float = 0.0) -> list[Live]:
    """How well each version does by the labels that came."""
    versions = [path.stem.removeprefix("model-") for path in watched.folder.glob("model-*.json")]
    facts = {version: read_facts(watched.folder, version) for version in versions}
    return live(watched.folder, {v: one.names for v, one in facts.items() if one is not None}, since)


def post_labels(watched: Watched, file: Path) -> int:
    """Take labels from a CSV file with the columns `id` and `label`; of an id that is there twice the last.

    Returns:
        How many.

    Raises:
        DataError: The file has no such columns, or a value that is no label.
    """
    labels: list[tuple[str, Label]] = []
    with storage_errors(file, "read the labels"), open(file, newline="", encoding="utf-8-sig") as opened:
        try:
            rows = csv.DictReader(opened)
            if not {"id", "label"} <= set(rows.fieldnames or ()):
                raise DataError("has no columns 'id' and 'label'", where=file)
            for number, row in enumerate(rows, 2):
                try:
                    labels.append(check_label(row["id"], _value(row["label"])))
                except DataError as error:
                    raise DataError(f"line {number}: {error.message}", where=file) from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"is no CSV ({error})", where=file) from None
    writer = check_name(f"posted-{int(time.time())}-{socket.gethostname()}-{os.getpid()}"[:100])
    add_labels(watched.folder, writer, labels)
    return len(labels)


def _value(text: str | None) -> Label | None:
    if text is None or text == "":
        return None
    try:
        return float(text) if any(mark in text for mark in ".eEn") else int(text)
    except ValueError:
        return text
