"""What has to be installed, and where it lies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from hpcmass.errors import MissingDependency

# Program -> its Debian package.
SLURM = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sinfo": "slurm-client",
    "srun": "slurm-client",
    "munged": "munge",
}
ACCOUNTING = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "mariadb": "mariadb-client",
}
NETWORK = {"ip": "iproute2", "unshare": "util-linux"}

_PLUGIN_FOLDERS = (
    "/usr/lib/*-linux-gnu/slurm-wlm",
    "/usr/lib/*-linux-gnu/slurm",
    "/usr/lib64/slurm",
    "/usr/lib/slurm",
)


def search_path() -> str:
    """PATH with the folders of daemons, which an ordinary user's PATH often lacks."""
    parts = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*parts, "/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]))


def program(name: str) -> str | None:
    """Full path of a program, or None."""
    return shutil.which(name, path=search_path())


def missing_packages(programs: Iterable[dict[str, str]] = (SLURM,)) -> list[str]:
    """Debian packages to install for what is missing, in order; empty when all is there."""
    return list(
        dict.fromkeys(package for each in programs for name, package in each.items() if not program(name))
    )


def require(*programs: dict[str, str], what: str) -> None:
    """Refuse to go on where a program is missing.

    Raises:
        MissingDependency: Names every missing Debian package in one command.
    """
    missing = missing_packages(programs)
    if missing:
        raise MissingDependency(
            f"{what} needs programs that are not installed here",
            hint=f"Debian, Ubuntu, as root: apt-get install {' '.join(missing)} (no service has to run)",
            packages=missing,
        )


def slurm_version() -> tuple[int, int]:
    """Slurm's version here, such as (22, 5).

    Raises:
        MissingDependency: slurmctld does not say its version.
    """
    said = subprocess.run(
        [program("slurmctld") or "slurmctld", "-V"], capture_output=True, text=True, check=False
    )
    match = re.search(r"(\d+)\.(\d+)", said.stdout)
    if not match:
        raise MissingDependency(f"slurmctld -V says no version: {(said.stdout + said.stderr).strip()[:200]!r}")
    return int(match[1]), int(match[2])


def plugin_folder() -> Path | None:
    """Where Slurm's plugins lie, or None where they are in no known place (slurmd then knows by itself)."""
    for pattern in _PLUGIN_FOLDERS:
        for folder in sorted(Path("/").glob(pattern[1:])):
            if (folder / "select_cons_tres.so").exists():
                return folder
    return None
