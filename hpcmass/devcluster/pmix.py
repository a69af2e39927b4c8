"""`srun --mpi=pmix` where only Debian's run-time library is installed.

Slurm's plugin opens `FOLDER/libpmix.so`, a name that only the development package brings: libpmix2 has
`libpmix.so.2` alone. Rather than change a system folder, the cluster gets a copy of the plugin in which that
one path is replaced by `$ORIGIN`, the loader's word for the folder that the plugin itself lies in, and the link
lies beside the copy.
"""

from __future__ import annotations

import re
from pathlib import Path

_FOLDER = re.compile(rb"(?<=\0)/[\x21-\x7e]{6,200}(?=\0)")
_HERE = b"$ORIGIN"


def plugin_path(system: Path | None, own: Path) -> str:
    """What slurm.conf's `PluginDir` has to be.

    Args:
        system: Slurm's plugin folder, or None where it is not known.
        own: The folder of the cluster for the copy; made where one is needed.

    Returns:
        One folder, two with the cluster's first, or nothing where Slurm is to use its own.
    """
    if system is None:
        return ""
    for plugin in sorted(system.glob("mpi_pmix_v*.so")):
        data = plugin.read_bytes()
        folder = _folder_without_link(data)
        if folder is None:
            continue
        text = str(folder).encode()
        own.mkdir(parents=True, exist_ok=True)
        link = own / "libpmix.so"
        if not link.is_symlink():
            link.symlink_to(folder / "libpmix.so.2")
        copy = data.replace(b"\0" + text + b"\0", b"\0" + _HERE.ljust(len(text), b"\0") + b"\0")
        for name in (plugin.name, "mpi_pmix.so"):
            (own / name).write_bytes(copy)
        return f"{own}:{system}"
    return str(system)


def _folder_without_link(plugin: bytes) -> Path | None:
    """The folder that a plugin looks for libpmix.so in, if only libpmix.so.2 is there."""
    for match in _FOLDER.finditer(plugin):
        folder = Path(match[0].decode("ascii"))
        if (folder / "libpmix.so.2").exists():
            return None if (folder / "libpmix.so").exists() else folder
    return None
