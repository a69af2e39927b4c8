"""What the file system under a catalogue really does, and whether the catalogue's folders are as needed.

Everything is tried in a folder of its own within the catalogue, by two processes, of which the second may be on
another node. What was found about hard links is kept in `filesystem.json`, and used by every later writer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpcmass.catalogue import doctor_peer
from hpcmass.catalogue.claims import FILE_SYSTEM
from hpcmass.catalogue.doctor_room import mount_of, quota_probes, room_probes
from hpcmass.catalogue.doctor_tree import tree_probes
from hpcmass.catalogue.peer import Peer
from hpcmass.catalogue.probe import Probe
from hpcmass.errors import CorruptError, HpcmassError, NotFound
from hpcmass.files import (
    avoid_links,
    fsync_dir,
    make_dir_as_parent,
    replace_json,
    shared_mode,
    storage_errors,
    temporary_beside,
)

_NAMES = 100
_LINES = 300


@dataclass
class Diagnosis:
    """What was found.

    Attributes:
        folder: Where it was tried.
        probes: Each thing that was tried.
        links: Whether hard links do what publishing needs.
        recorded: Whether that was kept for later writers.
    """

    folder: Path
    probes: list[Probe] = field(default_factory=list)
    links: bool = False
    recorded: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not any(one.state == "bad" for one in self.probes)


def diagnose(root: Path, peer: Peer | None = None) -> Diagnosis:
    """Try everything that the catalogue relies on.

    Args:
        root: The catalogue's folder; where there is none yet, the folder that it will be made in is tried.
        peer: The other process; None for one on this machine.

    Raises:
        StorageError: Nothing can be written there at all.
    """
    base = root
    while not base.is_dir():
        base = base.parent
    found = Diagnosis(base)
    place = temporary_beside(base / "doctor")
    with storage_errors(base, "make a folder to try things in"):
        make_dir_as_parent(place, temporary_beside(place))
    try:
        found.probes += _alone(place, found)
        found.probes += _together(place, peer or Peer(), found.links)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    found.probes += room_probes(base)
    found.probes += quota_probes(base)
    found.probes += tree_probes(root)
    if base == root:
        _record(root, found)
    return found


def _record(root: Path, found: Diagnosis) -> None:
    mount = mount_of(root)
    said = {
        "format": 1,
        "links": found.links,
        "type": mount[1] if mount else None,
        "checked": time.time(),
        "host": socket.gethostname(),
        "probes": {one.name: one.state for one in found.probes},
    }
    with contextlib.suppress(HpcmassError):
        replace_json(root / FILE_SYSTEM, said)
        found.recorded = True
    if not found.links:
        avoid_links(root)


# -- one process -----------------------------------------------------------------------------------
def _alone(place: Path, found: Diagnosis) -> Iterator[Probe]:
    link = _tried("link", _link, place)
    found.links = link.state == "good"
    yield link
    yield _tried("O_EXCL", _exclusive, place)
    yield _tried("rename over", _rename, place)
    yield _tried("fsync", _fsync, place)
    yield _tried("modes", _modes, place)
    yield _tried("clock", _clock, place)


def _tried(name: str, probe: Callable[[Path], Probe], place: Path) -> Probe:
    try:
        return probe(place)
    except OSError as error:
        advice = "nothing can be registered here: put the catalogue on another file system"
        if name == "link":
            advice = "publishing uses O_EXCL and rename instead; of register_many each version is then a file"
            return Probe(name, "note", f"does not work: {error.strerror}", advice)
        return Probe(name, "bad", f"does not work: {error.strerror or error}", advice)


def _link(place: Path) -> Probe:
    (place / "a").write_text("a")
    os.link(place / "a", place / "b")
    count = os.stat(place / "a").st_nlink
    if count != 2 or (place / "b").read_text() != "a":
        told = f"a linked file says it has {count} names instead of 2"
        return Probe("link", "note", told, "publishing uses O_EXCL and rename instead")
    try:
        os.link(place / "a", place / "b")
    except FileExistsError:
        return Probe("link", "good", "a name appears with its content, and once")
    return Probe("link", "bad", "a name that was taken was given again", "two writers could get one number")


def _exclusive(place: Path) -> Probe:
    os.close(os.open(place / "once", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        os.close(os.open(place / "once", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return Probe("O_EXCL", "good", "a name is made once")
    return Probe("O_EXCL", "bad", "a name that was taken was given again", "two writers could get one number")


def _rename(place: Path) -> Probe:
    (place / "old").write_text("old")
    (place / "new").write_text("new")
    with open(place / "old") as reader:
        os.replace(place / "new", place / "old")
        held = reader.read()
    if (place / "old").read_text() != "new":
        return Probe("rename over", "bad", "the old content is still there", "use another file system")
    if held != "old":
        return Probe("rename over", "note", "who reads a file that is replaced does not see the old one")
    return Probe("rename over", "good", "a file is exchanged as a whole")


def _fsync(place: Path) -> Probe:
    took = []
    for number in range(9):
        handle = os.open(place / f"f{number}", os.O_WRONLY | os.O_CREAT)
        os.write(handle, b"x" * 4096)
        begun = time.perf_counter()
        os.fsync(handle)
        os.close(handle)
        fsync_dir(place)
        took.append((time.perf_counter() - begun) * 1000)
    median = sorted(took)[len(took) // 2]
    told = f"a file and its name in {median:.2f} ms"
    mount = mount_of(place)
    if mount is not None and mount[1] in ("tmpfs", "ramfs"):
        return Probe("fsync", "note", f"{told}: this is memory", "all of it is gone when the machine stops")
    return Probe("fsync", "good", told)


def _modes(place: Path) -> Probe:
    shared = shared_mode(place)
    (place / "file").write_text("x")
    os.chmod(place / "file", 0o440)
    (place / "below").mkdir()
    os.chmod(place / "below", 0o2775)
    has = [stat.S_IMODE((place / name).stat().st_mode) for name in ("file", "below")]
    if has != [0o440, 0o2775]:
        told = f"modes are not kept: {has[0]:04o} and {has[1]:04o} instead of 0440 and 2775"
        return Probe(
            "modes", "bad" if shared is not None else "note", told, "a group cannot share a catalogue here"
        )
    if shared is not None and (place / "below").stat().st_gid != place.stat().st_gid:
        return Probe("modes", "bad", "a new folder does not get the group of the one that it is in",
                     "ask the administrators for a file system that heeds the set-group-ID bit")  # fmt: skip
    return Probe("modes", "good", "modes are kept" + (", groups inherited" if shared is not None else ""))


def _clock(place: Path) -> Probe:
    (place / "clock").write_text("")
    apart = (place / "clock").stat().st_mtime - time.time()
    if abs(apart) > 60:
        told = f"the file system's clock is {apart:+.0f} s from this machine's"
        return Probe("clock", "note", told, "times of versions are those of the machines that registered them")
    return Probe("clock", "good", f"within {max(1, round(abs(apart)))} s of this machine's")


# -- two processes ---------------------------------------------------------------------------------
def _together(place: Path, peer: Peer, links: bool) -> Iterator[Probe]:
    try:
        with peer.started(place) as other:
            host = other.ask("host")
            here = host == socket.gethostname()
            both = "on this machine" if here else f"here and on {host}"
            yield _races(place, other, links, both)
            if here:  # on two machines each writer has a journal of its own
                yield _appends(place, other, both)
            yield _lag(place, other, "on this machine" if here else f"on {host}")
            yield _flock(place, other, both)
    except (NotFound, CorruptError, OSError) as error:
        advice = "see whether the command works by itself; the folder has to be seen there by the same path"
        yield Probe("second process", "bad", f"cannot be used: {error}", advice)


def _races(place: Path, other: Peer, links: bool, where: str) -> Probe:
    prefix = "race"
    other.tell("claim", prefix, _NAMES, "other", "link" if links else "excl")
    mine = doctor_peer.claim_all(str(place / prefix), _NAMES, "mine", links)
    text = other.answer()
    theirs = [int(one) for one in text.split(",") if one]
    if sorted(mine + theirs) != list(range(_NAMES)):
        twice = len(set(mine) & set(theirs))
        told = f"two processes {where} took {_NAMES} names: {twice} were given twice"
        return Probe("claims", "bad", told, "two writers would get one number: use another file system")
    return Probe("claims", "good", f"each of {_NAMES} names went to one of two processes {where}")


def _appends(place: Path, other: Peer, where: str) -> Probe:
    other.tell("append", "log", _LINES, "other")
    doctor_peer.append_all(str(place / "log"), _LINES, "mine")
    other.answer()
    lines = (place / "log").read_text().splitlines()
    whole = {f"{tag} {number} {'x' * 60}" for tag in ("mine", "other") for number in range(_LINES)}
    if set(lines) != whole or len(lines) != len(whole):
        told = f"two processes appended {len(whole)} lines, {len(set(lines) & whole)} are whole"
        return Probe("appending", "bad", told, "versions may be missing from searches: `catalogue reindex`")
    return Probe("appending", "good", f"{len(whole)} lines of two processes are whole")


def _lag(place: Path, other: Peer, where: str) -> Probe:
    slowest = 0.0
    for number in range(3):
        name = f"lag{number}"
        if other.ask("look", name) != "False":
            return Probe("name cache", "bad", f"the other process {where} sees what is not there")
        (place / name).write_text("x" * 100)
        other.tell("await", name, 100)
        seen = float(other.answer())
        with open(place / name, "a") as file:
            file.write("y" * 100)
            file.flush()
            os.fsync(file.fileno())
        grown = float(other.ask("await", name, 200))
        if min(seen, grown) < 0:
            told = f"the other process {where} did not see a new file within {doctor_peer.WAIT_S:.0f} s"
            return Probe("name cache", "bad", told, "is it the same file system there? see its mount options")
        slowest = max(slowest, seen, grown)
    told = f"a new file is seen {where} after {slowest * 1000:.0f} ms"
    if slowest > 2:
        advice = (
            "searches there find a version so much later; give `catalogue gc` a --grace of at least"
            f" {max(60, round(slowest * 10))} s (the default is a day)"
        )
        return Probe("name cache", "note", told, advice)
    return Probe("name cache", "good", told)


def _flock(place: Path, other: Peer, where: str) -> Probe:
    import fcntl

    with open(place / "lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Probe("flock", "good", f"not there ({error.strerror}), and not needed")
        seen = other.ask("flock", "lock")
    works = "works" if seen == "held" else f"does nothing {where} ({seen})"
    return Probe("flock", "good", f"{works}, and is not needed")
