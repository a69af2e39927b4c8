"""What is known of the place where shards lie: kind of file system, memory at hand, page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcmass.data.mapping import PAGE, Extent, open_checked

# Magic numbers of statfs(2). What is not here is treated as shared: then nothing is mapped.
_LOCAL = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
}
_SHARED = {
    0x0BD00BD0: "lustre",
    0x6969: "nfs",
    0x47504653: "gpfs",
    0x19830326: "beegfs",
    0x00C36400: "ceph",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x65735546: "fuse",
    0x794C7630: "overlay",
    0x01021997: "9p",
    0x517B: "smb",
}
_SAMPLED_PAGES = 512


@dataclass(frozen=True)
class FileSystem:
    """Where a folder lies: the file system's name, and whether it belongs to this node alone."""

    name: str
    local: bool


def file_system(folder: Path) -> FileSystem:
    """The file system of a folder; one that is not known counts as shared."""
    buffer = ctypes.create_string_buffer(512)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        failed = libc.statfs(os.fsencode(folder), buffer)
    except AttributeError:  # no Linux
        failed = 1
    if failed:
        return FileSystem("unknown", False)
    magic = ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
    if magic in _LOCAL:
        return FileSystem(_LOCAL[magic], True)
    return FileSystem(_SHARED.get(magic, f"0x{magic:x}"), False)


def resident_share(extents: Sequence[Extent]) -> float | None:
    """Share of the rows' pages that the page cache holds, from a sample of them.

    Asked of mincore(2), which brings nothing in (reads that may not wait, RWF_NOWAIT, were seen to).

    Returns:
        0.0 … 1.0, or None where it is not known: the system tells only those who may write a file.
    """
    total = sum(extent.rows for extent in extents)
    hits = asked = 0
    libc = ctypes.CDLL(None, use_errno=True)
    cell = ctypes.create_string_buffer(1)
    for extent in extents:
        if not os.access(extent.path, os.W_OK):
            return None
        first = extent.offset // PAGE
        pages = -(-extent.file_bytes // PAGE) - first
        many = max(1, min(pages, round(_SAMPLED_PAGES * extent.rows / max(total, 1))))
        handle = open_checked(extent)
        try:
            with mmap.mmap(handle, 0, access=mmap.ACCESS_READ) as held:
                view = np.frombuffer(held, np.uint8)
                address = view.ctypes.data
                del view
                for number in range(many):
                    page = first + (2 * number + 1) * pages // (2 * many)
                    where = ctypes.c_void_p(address + page * PAGE)
                    if libc.mincore(where, ctypes.c_size_t(PAGE), cell):
                        return None
                    asked += 1
                    hits += cell.raw[0] & 1
        finally:
            os.close(handle)
    return hits / asked if asked else None
