"""How much memory this process may still take."""

from __future__ import annotations

import contextlib
from pathlib import Path


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes that are free, or freed at need (page cache), within the limits of this process's control groups.

    Args:
        root: Where `proc` and `sys` lie.

    Returns:
        None where the system does not say.
    """
    found = [left for left in (_machine(root), *_groups(root)) if left is not None]
    return max(0, min(found)) if found else None


def _machine(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _groups(root: Path) -> list[int]:
    """What is left of the limits of the process's group and of those above it (cgroup v2 and v1)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, usage, caches = (
                "sys/fs/cgroup",
                "memory.max",
                "memory.current",
                ("active_file", "inactive_file"),
            )
        elif "memory" in controllers.split(","):
            base, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            caches = ("total_active_file", "total_inactive_file")
        else:
            continue
        folder = (root / base).joinpath(path.strip("/"))
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root / base):
                break
            with contextlib.suppress(OSError, ValueError):
                most = int((group / limit).read_text())  # "max" is no number: no limit here
                stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                found.append(most - int((group / usage).read_text()) + sum(int(stat.get(c, 0)) for c in caches))
    return found
