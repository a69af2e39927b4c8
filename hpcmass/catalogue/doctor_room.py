"""How much room is left under a catalogue: bytes, inodes, quota."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from hpcmass.catalogue.probe import Probe

_LOW = 0.05
_LOW_BYTES = 5 << 30
_LOW_FILES = 20_000
_TIMEOUT_S = 20


def mount_of(path: Path) -> tuple[str, str, str] | None:
    """Mount point, type and source of the file system that a path lies on; None where that is not said."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    real, best = os.path.realpath(path), None
    for line in lines:
        words = line.split()
        point = words[4].encode().decode("unicode_escape")
        if "-" not in words or not (real == point or real.startswith(point.rstrip("/") + "/")):
            continue
        after = words[words.index("-") + 1 :]
        if best is None or len(point) >= len(best[0]):
            best = (point, after[0], after[1])
    return best


def room_probes(folder: Path) -> Iterator[Probe]:
    """Bytes and inodes that are left for the caller."""
    mount = mount_of(folder)
    if mount is not None:
        yield Probe("file system", "good", f"{mount[1]} at {mount[0]}")
    found = os.statvfs(folder)
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    told = f"{free / 1e9:.1f} GB of {size / 1e9:.1f} GB free"
    low = free < min(_LOW * size, _LOW_BYTES)
    advice = "make room: `hpcmass catalogue gc --dry-run` says what could go"
    yield Probe("space", "bad" if low else "good", told, advice if low else "")
    if found.f_files == 0:  # such as btrfs, which makes inodes as they are needed
        return
    told = f"{found.f_favail:,} of {found.f_files:,} inodes free"
    low = found.f_favail < min(_LOW * found.f_files, _LOW_FILES)
    more = "; register many models in one call: they are packed"
    yield Probe("inodes", "bad" if low else "good", told, advice + more if low else "")


def quota_probes(folder: Path) -> Iterator[Probe]:
    """The caller's quota, as `lfs quota` or `quota` say it."""
    mount = mount_of(folder)
    if mount is None:
        return
    point, kind, source = mount
    words = ["lfs", "quota", "-q", "-u", _user(), point] if kind == "lustre" else ["quota", "-u", "-w", "-p"]
    if shutil.which(words[0]) is None:
        yield Probe("quota", "unknown", f"there is no `{words[0]}` on this machine to say it")
        return
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Probe("quota", "unknown", f"`{' '.join(words)}` does not answer: {error}")
        return
    found = parse_quota(done.stdout, {point, source})
    if found is None:
        yield Probe("quota", "good", "none is set for you here")
        return
    for what, (used, limit) in found.items():
        if limit == 0:
            continue
        shown = (
            f"{used / 1e6:.1f} of {limit / 1e6:.1f} GB" if what == "space" else f"{used:,} of {limit:,} files"
        )
        low = used > (1 - _LOW) * limit
        advice = "make room: `hpcmass catalogue gc --dry-run` says what could go" if low else ""
        yield Probe(f"quota of {what}", "bad" if low else "good", f"{shown} used", advice)


def parse_quota(text: str, names: set[str]) -> dict[str, tuple[int, int]] | None:
    """Used and allowed of space (in kB) and files, from what `quota -w -p` or `lfs quota -q` print.

    Args:
        text: What was printed.
        names: Names of the file system: mount point and source.

    Returns:
        The stricter of soft and hard limit, 0 where there is none; None where the file system is not named.
    """
    for line in text.splitlines():
        words = line.replace("*", "").split()
        if len(words) < 8 or words[0] not in names:
            continue
        try:
            kb, soft, hard = (int(words[place]) for place in (1, 2, 3))
            files, soft_files, hard_files = (int(words[place]) for place in (5, 6, 7))
        except ValueError:
            continue
        return {
            "space": (kb, min([one for one in (soft, hard) if one], default=0)),
            "files": (files, min([one for one in (soft_files, hard_files) if one], default=0)),
        }
    return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
