"""Files set aside: `trash/RUN/` for what `gc` took away, `quarantine/RUN/` for what `fsck` found damaged.

A file keeps its place in the catalogue as its name there (`cas=ab=<sha256>`), in one flat folder a run, so that
it can be brought back, and costs no folders where inodes are what is short.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcmass.catalogue.blobs import make_durable_dir
from hpcmass.catalogue.claims import claim_json, listdir, numbered, numbers
from hpcmass.catalogue.moved import set_aside_name
from hpcmass.catalogue.version import who
from hpcmass.errors import CatalogueError, HpcmassError
from hpcmass.files import Lease, fsync_dir, read_json, storage_errors

TRASH = "trash"
QUARANTINE = "quarantine"
RECORD = "record.json"
DONE = "done.json"

_RUN = re.compile(r"([0-9]{10,12})-[0-9a-f]{8}")


class Aside:
    """One run's folder of files set aside.

    Args:
        root: The catalogue's folder.
        kind: `trash` or `quarantine`.
        run: The name of an earlier run; None for a new one, whose folder is made with its first file.
    """

    def __init__(self, root: Path, kind: str, run: str | None = None) -> None:
        self.root = root
        self.run = run or f"{int(time.time()):010d}-{secrets.token_hex(4)}"
        self.folder = root / kind / self.run
        self.refused: dict[str, str] = {}  # what could not be taken, and why
        self._touched: set[Path] = set()

    @property
    def age_s(self) -> float:
        """Seconds since the run began, by the clock of the machine that it ran on."""
        match = _RUN.fullmatch(self.run)
        return time.time() - int(match[1]) if match else 0.0

    def begin(self, record: dict[str, Any]) -> None:
        """Make the folder, with a record of who sets aside what, and why.

        Raises:
            StorageError: The file system refused.
        """
        make_durable_dir(self.folder)
        claim_json(self.folder / RECORD, {"format": 1, "by": who(), "created": time.time(), **record})

    @property
    def record(self) -> dict[str, Any]:
        """Who set aside what, and why; empty where that cannot be read."""
        with contextlib.suppress(HpcmassError):
            raw = read_json(self.folder / RECORD)
            return raw if isinstance(raw, dict) else {}
        return {}

    def take(self, path: Path, *, note: str = "") -> bool:
        """Move a file of the catalogue here; False where it is gone already, or may not be taken.

        Args:
            path: The file.
            note: Put behind its name here, where several of one name may come.

        Raises:
            StorageError: The file system refused, for another reason than the file's permissions.
        """
        make_durable_dir(self.folder)
        name = set_aside_name(str(path.relative_to(self.root))) + note
        with storage_errors(path, "set the file aside"):
            try:
                os.rename(path, self.folder / name)
            except FileNotFoundError:
                return False
            except PermissionError as error:
                self.refused[str(path)] = f"{error.strerror}: it is of {_owner(path)}"
                return False
        self._touched.add(path.parent)
        return True

    def keep_copy(self, path: Path) -> None:
        """Put a copy of a file here, under a second name where the file system has hard links.

        Raises:
            StorageError: The file system refused.
        """
        make_durable_dir(self.folder)
        target = self.folder / set_aside_name(str(path.relative_to(self.root)))
        with storage_errors(path, "set the file aside"), contextlib.suppress(FileExistsError):
            try:
                os.link(path, target)
            except OSError:
                if not target.exists():
                    try:
                        target.write_bytes(path.read_bytes())
                    except OSError:
                        target.unlink(missing_ok=True)  # half a copy would pass for one when this is done again
                        raise

    def settle(self) -> None:
        """Make durable what was moved, before anything is deleted for good.

        Raises:
            StorageError: The file system refused.
        """
        for folder in [*self._touched, *([self.folder] if self._touched else [])]:
            if not folder.is_dir():  # of the evaluations of a version, and empty now
                continue
            with storage_errors(folder, "write the folder"):
                fsync_dir(folder)
        self._touched.clear()

    def files(self) -> Iterator[tuple[Path, Path]]:
        """The files here, and where in the catalogue each was."""
        for name in listdir(self.folder):
            parts = name.removeprefix("=").split("=")
            if "=" in name and all(part not in ("", ".", "..") for part in parts):
                yield self.folder / name, self.root.joinpath(*parts)

    def bring_back(self, path: Path, original: Path) -> bool:
        """Put a file back where it was; False where that name is taken, or it is gone from here.

        Raises:
            StorageError: The file system refused.
        """
        make_durable_dir(original.parent)
        with storage_errors(original, "bring the file back"):
            try:
                os.link(path, original)
            except (FileExistsError, FileNotFoundError):
                return False
            except OSError:
                if original.exists():
                    return False
                os.rename(path, original)
            else:
                path.unlink()
            fsync_dir(original.parent)
        return True

    def remove(self) -> tuple[int, int]:
        """Delete what lies here, for good; gives files and bytes.

        Raises:
            StorageError: The file system refused.
        """
        count = size = 0
        with storage_errors(self.folder, "remove the files"):
            last = {RECORD: 1, DONE: 2}  # what has a record and is not done would be taken up again
            for name in sorted(os.listdir(self.folder), key=lambda name: last.get(name, 0)):
                path = self.folder / name
                try:
                    size += path.lstat().st_size
                    if path.is_dir() and not path.is_symlink():  # a folder that a killed writer left
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                    count += "=" in name
                except FileNotFoundError:
                    continue
                except PermissionError as error:
                    self.refused[str(path)] = f"{error.strerror}: it is of {_owner(path)}"
            with contextlib.suppress(OSError):
                self.folder.rmdir()
        return count, size


def runs(root: Path, kind: str) -> list[Aside]:
    """The runs of which something lies aside, oldest first."""
    return [Aside(root, kind, name) for name in listdir(root / kind) if _RUN.fullmatch(name)]


def lease(root: Path) -> Lease:
    """What `gc` and `fsck --repair` hold, so that one at a time changes what is there; writers do not need it.

    Raises:
        CatalogueError: There is no catalogue.
    """
    if not (root / "models").is_dir() and not (root / "cas").is_dir():
        raise CatalogueError("is no catalogue, or an empty one", where=root)
    make_durable_dir(root / "care")
    return Lease(root / "care" / "lease")


def log_removal(root: Path, what: dict[str, Any]) -> None:
    """Add to the log of what was removed or brought back, `removals/000001.json` …; nothing of it ever goes.

    An index that was made before is made anew.

    Raises:
        StorageError: The file system refused.
    """
    folder = root / "removals"
    make_durable_dir(folder)
    said = {"format": 1, "by": who(), "created": time.time(), **what}
    while not claim_json(numbered(folder, max(numbers(folder), default=0) + 1), said):
        pass


def removals(root: Path) -> list[dict[str, Any]]:
    """What was removed, oldest first; a record that cannot be read is passed over."""
    found = []
    for number in numbers(root / "removals"):
        with contextlib.suppress(HpcmassError):
            raw = read_json(numbered(root / "removals", number))
            if isinstance(raw, dict):
                found.append(raw)
    return found


def removal_told(root: Path, ref: str) -> str | None:
    """Who removed a version, when and why, in words; None where nobody did."""
    for raw in reversed(removals(root)):
        if ref in raw.get("brought_back", ()):
            return None
        if ref in raw.get("versions", ()):
            when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(float(raw.get("created", 0))))
            return f"{raw.get('by')} removed it on {when} UTC ({raw.get('why') or 'no reason given'})"
    return None


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        try:
            return f"user {path.lstat().st_uid}"
        except OSError:
            return "somebody else"
