"""Whether a catalogue's folders are as its group needs them, and what lies aside."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hpcmass.catalogue.aside import QUARANTINE, TRASH, runs
from hpcmass.catalogue.journal import journals
from hpcmass.catalogue.modes import wrong_modes
from hpcmass.catalogue.probe import Probe
from hpcmass.files import shared_mode

_SHOWN = 3
_MOST = 100_000


def tree_probes(root: Path) -> Iterator[Probe]:
    """What is seen of the catalogue's own folders."""
    if not root.is_dir():
        yield Probe("catalogue", "note", f"{root} is not there yet", "it is made at the first registration")
        return
    yield _sharing(root)
    if shared_mode(root) is not None:
        yield _modes(root)
    yield _journals(root)
    yield from _aside(root)


def _sharing(root: Path) -> Probe:
    found = root.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        told = f"mode {mode:04o}: anybody on this machine may change everything"
        return Probe("sharing", "bad", told, f"chmod o-w {root}")
    if shared_mode(root) is not None:
        who = "only whom a file is of" if mode & stat.S_ISVTX else "any of them"
        told = f"mode {mode:04o}: for group {_group(found.st_gid)}; {who} may remove a file"
        advice = "" if _member(found.st_gid) else "you are not in this group: you can read, and not register"
        return Probe("sharing", "good" if not advice else "note", told, advice)
    if mode & stat.S_IWGRP:
        told = f"mode {mode:04o}: group-writable, without the set-group-ID bit"
        advice = (
            f"for a group to share it: chmod 2775 {root} (3775: none may remove another's), then fsck --repair"
        )
        owners = {path.stat().st_uid for path in [root, *_folders(root)]}
        return Probe("sharing", "bad" if len(owners) > 1 else "note", told, advice)
    return Probe("sharing", "good", f"mode {mode:04o}: for its owner alone to register")


def _folders(root: Path) -> list[Path]:
    return [Path(one.path) for one in os.scandir(root) if one.is_dir(follow_symlinks=False)]


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _member(gid: int) -> bool:
    return os.geteuid() == 0 or gid in {os.getegid(), *os.getgroups()}


def _modes(root: Path) -> Probe:
    wrong = list(itertools.islice(wrong_modes(root), _MOST))
    if not wrong:
        return Probe("modes below", "good", "every folder and file follows the catalogue's folder")
    mine = sum(one.uid == os.geteuid() for one in wrong)
    some = "; ".join(f"{one.path} (of user {one.uid}) {one.told()}" for one in wrong[:_SHOWN])
    told = f"{len(wrong)} do not follow the catalogue's folder: {some}"
    advice = "`hpcmass catalogue fsck --repair` mends your own" + (
        "" if mine == len(wrong) else "; whoever owns the others, or root, has to run it too"
    )
    return Probe("modes below", "bad", told, advice)


def _journals(root: Path) -> Probe:
    names = journals(root / "journals")
    closed = [name for name in names if not os.access(root / "journals" / name, os.R_OK)]
    if closed:
        told = f"{len(closed)} journals cannot be read, such as {closed[0]}: searches fail"
        return Probe("journals", "bad", told, f"their owner says: chmod g+r {root / 'journals' / closed[0]}")
    return Probe("journals", "good", f"{len(names)}, all readable")


def _aside(root: Path) -> Iterator[Probe]:
    for kind, advice in (
        (TRASH, "`hpcmass catalogue gc` deletes what lay there for its grace"),
        (QUARANTINE, "look at what `fsck` set aside, and remove the folder when it is of no use any more"),
    ):
        files = [path for aside in runs(root, kind) for path, _ in aside.files()]
        if files:
            size = sum(path.stat().st_size for path in files)
            yield Probe(kind, "note", f"{len(files)} files, {size / 1e6:.1f} MB", advice)
