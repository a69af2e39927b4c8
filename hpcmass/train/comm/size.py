"""As many ranks as promised, or none: the check that precedes everything else."""

from __future__ import annotations

import os

from hpcmass.errors import LaunchError
from hpcmass.launch.advice import size_hint


def check_size(promised: int, found: int, name: str, *, asked: bool = False, library: str = "") -> None:
    """Refuse ranks that did not all find each other.

    Args:
        promised: By `HPCMASS_RANKS`, or by the launcher's variables.
        found: The communicator's real size.
        name: The backend.
        asked: Whether the user named the backend.
        library: How the MPI library calls itself, where there is one.

    Raises:
        LaunchError: The numbers differ.
    """
    if promised == found:
        return
    if name == "single" and asked:
        hint = 'train.backend = "single" is for one rank: leave it out, or start one rank'
    elif library:
        hint = size_hint(library, os.environ)
    else:
        hint = (
            "the mpiexec (or srun --mpi=...) is not the one of this Python's MPI library: use the mpiexec "
            "beside this Python, or 'hpcmass train JOB --ranks N'; unset HPCMASS_RANKS if it was set by hand"
        )
    raise LaunchError(
        f"{promised} rank{'s' * (promised != 1)} promised, but {found} found each other (backend {name!r})",
        where="launch",
        hint=hint,
        promised=promised,
        found=found,
        lasting=True,
    )
