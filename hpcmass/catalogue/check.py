"""Hold blobs against their digests, and say which versions a damaged one hits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hpcmass.catalogue.blobs import BlobStore
from hpcmass.catalogue.version import FileEntry, Version


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        where: The file concerned.
        message: What is wrong with it; for blobs it starts with `missing` or `corrupt`.
        refs: References (`name@3`, `name@production`) that are hit by it.
    """

    where: str
    message: str
    refs: tuple[str, ...] = ()


@dataclass
class VerifyReport:
    """What was read, and what was found.

    Attributes:
        versions: Versions looked at.
        blobs: Blobs read, each once.
        bytes: Bytes that these blobs should have.
        problems: Everything that is wrong; empty when all is well.
        unlisted: References that no journal names, which searches by an index made before them do not find.
    """

    versions: int = 0
    blobs: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_blobs(blobs: BlobStore, versions: Iterable[Version], report: VerifyReport) -> None:
    """Read every blob of some versions once, and add to the report."""
    users: dict[FileEntry, list[str]] = {}
    for version in versions:
        report.versions += 1
        for entry in set(version.files.values()):
            users.setdefault(entry, []).append(version.ref)
    for entry, refs in users.items():
        report.blobs += 1
        report.bytes += entry.bytes
        wrong = blobs.check(entry)
        if wrong:
            report.problems.append(Problem(str(blobs.where(entry)), wrong, tuple(refs)))
