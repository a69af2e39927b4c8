"""Versions taken out of their claims, and put back.

A claim whose versions all go is moved to the trash. Of a claim of several the others stay, and in the place of
each that goes stands who removed it, when and why: numbers keep their meaning, and none is given twice. So the
last claim of a model is never taken away either, and none that is younger than an hour: a writer that looked
for the next number before it was claimed, and has not tried it yet, would get it. After an hour such a writer
is held for dead, and `gc` takes what stands there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmass.catalogue.aside import QUARANTINE, TRASH, Aside, log_removal, runs
from hpcmass.catalogue.claims import listdir, numbered
from hpcmass.catalogue.leftovers import age_s, file_system_now
from hpcmass.catalogue.moved import blob_place, pack_place
from hpcmass.catalogue.ranges import VersionClaims, removed
from hpcmass.catalogue.version import MOST, REMOVED_FORMAT, Version
from hpcmass.errors import CatalogueError, CorruptError, HpcmassError
from hpcmass.files import read_json, replace, settle

_TRIES = 20
STALLED_S = 3600.0
"""A writer between looking for a number, or announcing it, and claiming it is held for dead after so long."""

_FEW_INODES = 1000


def claims_of(root: Path, name: str) -> VersionClaims:
    """The claims of a model, read anew."""
    return VersionClaims(root / "models" / name / "versions", name, {}, wait_s=0)


def gravestone(name: str, number: int, by: str, created: float, why: str) -> dict[str, Any]:
    """What stands in the place of a version that was removed."""
    return {
        "format": REMOVED_FORMAT,
        "name": name,
        "version": number,
        "removed": {"by": by, "created": created, "why": why},
    }


def take_out(aside: Aside, name: str, start: int, stones: Mapping[int, dict[str, Any]]) -> bool:
    """Remove some versions of a claim; False where the claim may not be touched.

    Args:
        aside: Where the claim, or a copy of it, goes.
        name: The model.
        start: The claim's number.
        stones: What stands in the place of each version that goes, by number.

    Raises:
        StorageError: The file system refused.
    """
    claims = claims_of(aside.root, name)
    path = numbered(claims.folder, start)
    raw = claims.content(start)
    if raw is None:
        return True
    found = list(raw.get("versions", [raw]))
    left = [
        start + place for place, one in enumerate(found) if not removed(one) and start + place not in stones
    ]
    whole = not left and start != claims.starts()[-1]
    if whole and (_crowded(claims.folder) or passed(path, file_system_now(aside.root / "care"))):
        if not aside.take(path):
            return False
    else:
        aside.keep_copy(path)
        _rewrite(path, raw, dict(stones))
    for number in stones:
        _take_evaluations(aside, name, number)
    return True


def _crowded(folder: Path) -> bool:
    """Whether inodes are short: then `gc` is there to free some, and leaves no stones, which take one each."""
    found = os.statvfs(folder)
    return found.f_files > 0 and found.f_favail < _FEW_INODES


def passed(path: Path, now: float) -> bool:
    """Whether nobody can be about to claim a number that is taken, by the time of the file system."""
    return age_s(path, now) > STALLED_S


def gravestones(root: Path) -> list[Path]:
    """Claims in which only who removed their versions stands, that nobody can be about to claim any more."""
    found, now = [], file_system_now(root / "care")
    for name in listdir(root / "models"):
        claims = VersionClaims(root / "models" / name / "versions", name, {}, wait_s=0)
        for start in claims.starts()[:-1]:
            path = numbered(claims.folder, start)
            raw = claims.content(start) if passed(path, now) else None
            if raw is not None and all(map(removed, raw.get("versions", [raw]))):
                found.append(path)
    return found


def _evaluations(root: Path, name: str, number: int) -> Path:
    return root / "models" / name / "evaluations" / f"{number:06d}"


def _take_evaluations(aside: Aside, name: str, number: int) -> None:
    """What was measured of a version goes, and comes back, with it."""
    folder = _evaluations(aside.root, name, number)
    for one in listdir(folder):
        aside.take(folder / one)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _rewrite(path: Path, raw: dict[str, Any], changes: Mapping[int, dict[str, Any]]) -> None:
    start = int(path.stem)
    if "versions" not in raw:
        said = dict(changes[start])
    else:
        found = [changes.get(start + place, one) for place, one in enumerate(raw["versions"])]
        said = {**raw, "format": REMOVED_FORMAT, "versions": found}
    replace(path, json.dumps(said, sort_keys=True, allow_nan=False) + "\n")
    with contextlib.suppress(OSError):
        settle(path, 0o444)


def stand_in(root: Path, name: str, start: int, stone: dict[str, Any]) -> None:
    """Put a gravestone in the place of a damaged claim that nothing follows, so that its number stays taken.

    How far it reached is lost, and none reaches further than `MOST`.

    Raises:
        StorageError: The file system refused.
    """
    path = numbered(claims_of(root, name).folder, start)
    replace(path, json.dumps({**stone, "reaches": MOST}, sort_keys=True) + "\n")
    with contextlib.suppress(OSError):
        settle(path, 0o444)


def revive(root: Path, name: str, number: int) -> bool:
    """See that a version which something points to since a moment is there; one that `gc` just took comes back.

    `gc` looks at the aliases before and after it takes a version away, and whoever moves an alias looks at the
    version before and after: whichever is later finds the other.

    Returns:
        Whether it had to be brought back.

    Raises:
        CatalogueError: It is gone.
    """
    claims = claims_of(root, name)
    brought = False
    for _ in range(_TRIES):  # two that put versions into one claim at once: until ours is in it
        with contextlib.suppress(CorruptError):
            version = claims.read(number)
            if version is not None:
                if brought:
                    _bring_content(root, version)
                    said = {"why": "an alias points at it", "brought_back": [version.ref]}
                    log_removal(root, said)
                return brought
        if not any(_put_back(aside, name, number) for aside in _newest_first(root)):
            break
        brought = True
        claims = claims_of(root, name)
    raise CatalogueError(
        f"{name}@{number} was removed meanwhile", where=root, hint="point the alias at another version"
    )


def _newest_first(root: Path) -> list[Aside]:
    """What is set aside; of a claim that lost versions one after the other the newest copy is the true one."""
    found = [*runs(root, TRASH), *runs(root, QUARANTINE)]
    return sorted(found, key=_when, reverse=True)


def _when(aside: Aside) -> tuple[str, float]:
    """When a run was: its name has whole seconds."""
    with contextlib.suppress(HpcmassError, TypeError, ValueError):
        return aside.run.partition("-")[0], float(aside.record.get("created", 0))
    return aside.run.partition("-")[0], 0.0


def _put_back(aside: Aside, name: str, number: int) -> bool:
    folder = aside.root / "models" / name / "versions"
    for path, original in aside.files():
        if original.parent != folder or not original.stem.isdigit():
            continue
        start = int(original.stem)
        if not start <= number < start + MOST:
            continue
        with contextlib.suppress(HpcmassError):
            raw = read_json(path)
            found = raw.get("versions", [raw])
            if number - start >= len(found) or removed(found[number - start]):
                continue
            if not original.exists() and "versions" in raw:  # the others that went with it stay away
                _rewrite(original, raw, _still_gone(aside, name, start, number, len(found)))
                return True
            if aside.bring_back(path, original):
                return True
            now = read_json(original)
            if "versions" not in now:
                replace(original, json.dumps(raw, sort_keys=True) + "\n")
            else:
                _rewrite(original, now, {number: found[number - start]})
            with contextlib.suppress(OSError):
                settle(original, 0o444)
            return True
    return False


def _still_gone(aside: Aside, name: str, start: int, number: int, count: int) -> dict[int, dict[str, Any]]:
    """What stands in the place of the versions of a claim that went in a run, but for one that comes back."""
    record = aside.record
    gone = set(record.get("versions", []))
    facts = str(record.get("by", "")), float(record.get("created", 0)), str(record.get("why", ""))
    return {
        one: gravestone(name, one, *facts)
        for one in range(start, start + count)
        if one != number and f"{name}@{one}" in gone
    }


def _bring_content(root: Path, version: Version) -> None:
    store = root / "cas"
    wanted = {blob_place(store, entry.sha256) for entry in version.files.values()}
    wanted |= {pack_place(store, entry.pack) for entry in version.files.values() if entry.pack}
    for aside in runs(root, TRASH):
        for path, original in aside.files():
            measured = original.parent == _evaluations(root, version.name, version.version)
            if (measured or original in wanted) and not original.exists():
                aside.bring_back(path, original)
