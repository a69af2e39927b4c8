"""Which mpiexec there is, and whose it is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class MpiFlavour:
    """An mpiexec.

    Attributes:
        path: Where it is.
        kind: `openmpi` or `mpich` (MPICH and what is built from it and starts ranks by Hydra).
        version: What it calls its version, such as `5.0.11`.
    """

    path: str
    kind: Literal["openmpi", "mpich"]
    version: str


def find_mpiexec(env: Mapping[str, str] | None = None) -> MpiFlavour | None:
    """The mpiexec beside this interpreter (a wheel's), else the first of `PATH`; None when there is none.

    The one beside the interpreter goes first because its library is the one that mpi4py and Horovod of
    the same environment load: ranks started by another MPI's mpiexec are N worlds of one rank.
    """
    env = os.environ if env is None else env
    beside = Path(sys.executable).with_name("mpiexec")
    candidates = [str(beside)] if os.access(beside, os.X_OK) else []
    if on_path := shutil.which("mpiexec", path=env.get("PATH")):
        candidates.append(on_path)
    for path in candidates:
        try:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if flavour := parse_version(path, done.stdout + done.stderr):
            return flavour
    return None


def parse_version(path: str, text: str) -> MpiFlavour | None:
    """The flavour by the text of `mpiexec --version`; None for one that is neither of the two. Pure."""
    if found := re.search(r"\((?:Open MPI|OpenRTE)\)\s+(\S+)", text):
        return MpiFlavour(path, "openmpi", found[1])
    if "HYDRA build details" in text or "Intel(R) MPI Library" in text:
        version = re.search(r"Version:?\s+(\S+)", text)
        return MpiFlavour(path, "mpich", version[1] if version else "")
    return None
