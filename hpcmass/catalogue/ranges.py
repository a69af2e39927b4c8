"""The versions of one model as claims: a claim `000101.json` holds version 101, or versions 101 to 100 + count.

A claim of several versions holds the numbers from its own on, so the next claim's number is the one after
its last: whoever finds a name taken reads there how far it reaches, and tries after that. Of two claims
neither can lie within the other, as long as every writer knows of claims of several versions (format 2).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcmass.catalogue.claims import claim_json, numbered, numbers, read_claim
from hpcmass.catalogue.version import MOST, PACKED_FORMAT, Version, check_format, parse_version
from hpcmass.errors import CorruptError, HpcmassError

_KEPT = 8


class VersionClaims:
    """The claims in a model's folder of versions.

    Args:
        folder: `models/NAME/versions`.
        name: The model.
        kept: Contents of claims of several versions by path, kept between calls for as long as the file is the
            same one: `gc` puts another in its place.
        wait_s: How long to wait for the content of a claim that has none, see `read_claim`.
    """

    def __init__(self, folder: Path, name: str, kept: dict[Path, Any], wait_s: float = 1.0) -> None:
        self.folder = folder
        self.name = name
        self._kept = kept
        self._wait_s = wait_s

    def starts(self) -> list[int]:
        """The numbers of the claims, ascending."""
        return numbers(self.folder)

    def versions(self, start: int) -> list[Version]:
        """All versions of the claim of a number; none where it has no content, or there is none.

        Raises:
            CorruptError: The claim is damaged.
        """
        raw = self._raw(start)
        if raw is None:
            return []
        path = numbered(self.folder, start)
        return [
            parse_version(one, self.name, start + place, path)
            for place, one in enumerate(raw.get("versions", [raw]))
            if not removed(one)
        ]

    def each(self) -> Iterator[tuple[int, list[Version] | HpcmassError]]:
        """Every claim's number with its versions, or with what is wrong with it."""
        for start in self.starts():
            try:
                yield start, self.versions(start)
            except HpcmassError as error:
                yield start, error

    def read(self, number: int) -> Version | None:
        """The version of a number, or None.

        Raises:
            CorruptError: Its claim is damaged.
        """
        start, raw = number, self._raw(number)
        if raw is None:
            known = self.starts()
            place = bisect.bisect_left(known, number)
            if place == 0 or number - known[place - 1] >= MOST:
                return None
            start = known[place - 1]
            raw = self._raw(start)
        if raw is None:
            return None
        found = raw.get("versions", [raw])
        if number - start >= len(found) or removed(found[number - start]):
            return None
        return parse_version(found[number - start], self.name, number, numbered(self.folder, start))

    def latest(self) -> Version | None:
        """The version with the highest number, or None.

        Raises:
            CorruptError: Its claim is damaged.
        """
        for start in reversed(self.starts()):
            found = [] if (raw := self._raw(start)) is None else raw.get("versions", [raw])
            for place in reversed(range(len(found))):
                if not removed(found[place]):
                    return self.read(start + place)
        return None

    def claim(self, make: Callable[[int], Sequence[Version]], announce: Callable[[int], None]) -> list[Version]:
        """Claim the next number for some versions, which appear all or none.

        Args:
            make: The versions, when the first has a number.
            announce: Called before each attempt with its number.

        Raises:
            NoLinks: There are several, and the file system could show their claim before its content.
            StorageError: The file system refused.
        """
        known = self.starts()
        number = self._after(known[-1]) if known else 1
        while True:
            path = numbered(self.folder, number)
            if not path.exists():  # a look costs less than an announcement in vain
                versions = list(make(number))
                announce(number)
                if claim_json(path, self._content(versions), whole=len(versions) > 1):
                    return versions
            number = self._after(number)  # another writer was faster

    def _content(self, versions: list[Version]) -> dict[str, Any]:
        if len(versions) == 1:
            return versions[0].to_json()
        return {
            "format": PACKED_FORMAT,
            "name": self.name,
            "version": versions[0].version,
            "count": len(versions),
            "versions": [version.to_json() for version in versions],
        }

    def _after(self, number: int) -> int:
        try:
            raw = self._raw(number)
        except CorruptError:
            return number + MOST  # how far it reached is lost, and none reaches further
        if raw is None or "versions" not in raw:
            return number + (int(raw.get("reaches", 1)) if raw is not None and removed(raw) else 1)
        return number + len(raw["versions"])

    def content(self, number: int) -> dict[str, Any] | None:
        """The JSON of a claim as it is, or None.

        Raises:
            CorruptError: The claim is damaged.
        """
        found: dict[str, Any] | None = self._raw(number)
        return found

    def _raw(self, number: int) -> Any:
        path = numbered(self.folder, number)
        seen = _which(path)  # before it is read: a newer content under an older key is read once more
        if path in self._kept:
            known, raw = self._kept[path]
            if known == seen:
                return raw
            del self._kept[path]
        raw = read_claim(path, self._wait_s)
        if raw is None:
            return None
        if not isinstance(raw, dict):
            raise CorruptError(f"is not a version of {self.name!r}: it is no JSON object", where=path)
        if "versions" not in raw:
            return raw
        check_format(raw, path)
        found = raw["versions"]
        if not isinstance(found, list) or raw.get("count") != len(found) or not 1 <= len(found) <= MOST:
            raise CorruptError("does not hold as many versions as it says", where=path)
        if raw.get("name") != self.name or raw.get("version") != number:
            raise CorruptError(f"is not of {self.name!r} from {number} on", where=path)
        while len(self._kept) >= _KEPT:
            self._kept.pop(next(iter(self._kept)))
        self._kept[path] = seen, raw
        return raw


def _which(path: Path) -> tuple[int, int, int] | None:
    """By what a file that took another's place is told from it; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def removed(raw: Any) -> bool:
    """Whether what stands in the place of a version says that it was removed."""
    return isinstance(raw, dict) and isinstance(raw.get("removed"), dict)
