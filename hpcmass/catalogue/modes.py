"""Whether a catalogue's folders and files have the modes that its own folder asks for, see `files.shared`."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcmass.files import shared_mode

_ASIDE = {"trash", "quarantine"}


@dataclass(frozen=True)
class WrongMode:
    """A folder or file that others of the group cannot use as they should.

    Attributes:
        path: The folder or file.
        has: Its mode.
        wants: The mode it should have.
        uid: Whose it is.
        gid: Its group.
        group: The group of the catalogue's folder.
    """

    path: Path
    has: int
    wants: int
    uid: int
    gid: int
    group: int

    def told(self) -> str:
        """What is wrong, in words."""
        group = f", and its group is {self.gid} instead of {self.group}" if self.gid != self.group else ""
        return f"has mode {self.has:04o} instead of {self.wants:04o}{group}"

    def mend(self) -> bool:
        """Give it its mode and group; False where that is not ours to do."""
        try:
            if self.gid != self.group:
                os.chown(self.path, -1, self.group)
            os.chmod(self.path, self.wants)
            # Without being asked, a system may leave out the set-group-ID bit.
            return stat.S_IMODE(self.path.stat().st_mode) == self.wants
        except OSError:
            return False


def wrong_modes(root: Path, *, files: bool = True) -> Iterator[WrongMode]:
    """Every folder, and file, that does not follow the catalogue's folder; none where that is not shared.

    Args:
        root: The catalogue's folder.
        files: Look at each file too, not at the folders alone.
    """
    wants = shared_mode(root)
    if wants is None:
        return
    group = root.stat().st_gid
    for folder, below, names in os.walk(root):
        if Path(folder) == root:
            below[:] = [name for name in below if name not in _ASIDE]
        looked = [(name, wants) for name in below]
        if files:
            looked += [(name, 0) for name in names if not name.endswith(".tmp")]
        for name, mode in looked:
            path = Path(folder) / name
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                has = stat.S_IMODE(found.st_mode)
                # A file has to be readable by whom the folder is, and writable by nobody else.
                should = mode or (has & 0o700) | (0o044 & wants)
                if has != should or found.st_gid != group:
                    yield WrongMode(path, has, should, found.st_uid, found.st_gid, group)
