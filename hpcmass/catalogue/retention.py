"""Which versions stay, by which rule, and which go: pure, so that a dry run says what a real one does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.catalogue.evaluations import Evaluations
from hpcmass.catalogue.survey import Survey, parents
from hpcmass.catalogue.version import FileEntry, Version


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is kept. Without a rule every version is; with one, a version stays where any rule holds for it.

    Versions that an alias has or had, their ancestors, and the newest version of each model always stay.

    Attributes:
        keep_last: So many newest versions of each model.
        keep_best: Metric, how many, whether less is better: of each model the best of them.
        newer_than_s: Versions registered within so many seconds.
        max_bytes: Only as many go, oldest first, as bring the content that versions use under this.
        max_files: The same of the files that the catalogue has.
        history: Keep what an alias had before too; off: only what it has now.
    """

    keep_last: int | None = None
    keep_best: tuple[tuple[str, int, bool], ...] = ()
    newer_than_s: float | None = None
    max_bytes: int | None = None
    max_files: int | None = None
    history: bool = True

    @property
    def any(self) -> bool:
        """Whether there is a rule by which versions may go."""
        said = (self.keep_last, self.newer_than_s, self.max_bytes, self.max_files)
        return bool(self.keep_best) or any(one is not None for one in said)

    def to_json(self) -> dict[str, Any]:
        """The rules as the record of a removal has them."""
        return {key: value for key, value in vars(self).items() if value not in (None, ())}


@dataclass(frozen=True)
class Decision:
    """What becomes of a version.

    Attributes:
        version: The version.
        goes: Whether it is removed.
        why: Each reason for which it stays; or why it goes.
        frees: Bytes of content that nothing uses when it and those before it are gone.
    """

    version: Version
    goes: bool
    why: tuple[str, ...]
    frees: int = 0


def decide(found: Survey, rules: Rules, now: float) -> list[Decision]:
    """What becomes of every version, sorted by name and number.

    Args:
        found: The catalogue's tree.
        rules: What is kept.
        now: Seconds since the epoch.
    """
    versions = sorted(found.versions, key=lambda version: (version.name, version.version))
    why = _kept(versions, found, rules, now)
    users: dict[FileEntry, int] = defaultdict(int)
    for version in versions:
        for entry in set(version.files.values()):
            users[entry] += 1
    # What stands where versions were removed does not count: it goes within the hour.
    claims = sum(1 for held in found.claims.values() if held)
    size, files = sum(entry.bytes for entry in users), _files_of(users) + claims
    goes: dict[str, int] = {}
    candidates = [version for version in versions if rules.any and not why[version.ref]]
    for version in sorted(candidates, key=lambda version: version.created):
        quotas = (rules.max_bytes, size), (rules.max_files, files)
        limits = [now_is > most for most, now_is in quotas if most is not None]
        if limits and not any(limits):
            why[version.ref].append("within the quota")
            continue
        freed = 0
        for entry in set(version.files.values()):
            users[entry] -= 1
            if not users[entry]:
                freed += entry.bytes
                files -= entry.pack is None
        size -= freed
        files -= 1
        goes[version.ref] = freed
    return [
        Decision(version, True, ("no rule keeps it",), goes[version.ref])
        if version.ref in goes
        else Decision(version, False, tuple(why[version.ref]) or ("no rule removes it",))
        for version in versions
    ]


def _files_of(entries: Iterable[FileEntry]) -> int:
    return len({entry.pack or entry.sha256 for entry in entries})


def _kept(versions: list[Version], found: Survey, rules: Rules, now: float) -> dict[str, list[str]]:
    """Every reason for which versions stay, by reference."""
    why: dict[str, list[str]] = {version.ref: [] for version in versions}
    for (name, alias), moves in sorted(found.aliases.items()):
        current = moves[-1].version
        why.get(f"{name}@{current}", []).append(f"alias {alias}")
        if rules.history:
            for number in sorted({move.version for move in moves} - {current}):
                why.get(f"{name}@{number}", []).append(f"alias {alias} had it")
    _ancestors(versions, why)
    for mine in _by_model(versions).values():
        why[mine[-1].ref].append("newest of its model")
        for version in mine[-rules.keep_last :] if rules.keep_last else []:
            why[version.ref].append(f"one of the last {rules.keep_last}")
        for metric, count, less in rules.keep_best:
            values = ((metric_of(_metrics(one, metric, found.root), metric), one) for one in mine)
            measured = [(value, one) for value, one in values if value is not None]
            measured.sort(key=lambda pair: (pair[0] if less else -pair[0], -pair[1].version))
            for place, (_, version) in enumerate(measured[:count], 1):
                why[version.ref].append(f"{metric}: best {place} of {len(measured)}")
    if rules.newer_than_s is not None:
        for version in versions:
            if now - version.created < rules.newer_than_s:
                why[version.ref].append("registered lately")
    return why


def _metrics(version: Version, name: str, root: Path) -> Mapping[str, Any]:
    """The metrics that a name is of: of the version's record, or `eval.test.accuracy` of its evaluations."""
    return Evaluations(root).searched(version) if name.startswith("eval.") else version.metrics


def _ancestors(versions: list[Version], why: dict[str, list[str]]) -> None:
    """Note every version that one with an alias was made from, over any number of generations."""
    known = {version.ref: version for version in versions}
    todo = [(ref, ref) for ref, reasons in why.items() if reasons]
    seen = {ref for ref, _ in todo}
    while todo:
        ref, child = todo.pop()
        for parent in parents(known[ref]):
            if parent in known and parent not in seen:
                seen.add(parent)
                why[parent].append(f"ancestor of {child}")
                todo.append((parent, child))


def _by_model(versions: list[Version]) -> dict[str, list[Version]]:
    found: dict[str, list[Version]] = defaultdict(list)
    for version in versions:
        found[version.name].append(version)
    return found


def metric_of(metrics: Mapping[str, Any], name: str) -> float | None:
    """A metric by its name, dots for what lies within another; None where it is missing or no number."""
    found: Any = metrics.get(name)
    if found is None:
        found = metrics
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None
