"""Commands that several ranks run together: `mpiexec -n 4 hpcmass evaluate …`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from hpcmass.errors import HpcmassError
from hpcmass.evaluate.scores import Ranks
from hpcmass.launch import detect_ranks


@contextmanager
def all_ranks() -> Iterator[Ranks | None]:
    """The ranks that a launcher started, or None where this process is alone.

    An error that only this rank has ends all of them at once: the others would wait for it for ever.

    Raises:
        LaunchError: Not all of them found each other.
        MissingDependency: What they would talk by is not installed.
    """
    place = detect_ranks(os.environ)
    if place.size == 1:
        yield None
        return
    from hpcmass.train.comm import open_communicator
    from hpcmass.train.comm.agree import is_agreed

    by_mpi = place.source in ("openmpi", "pmi", "pmix") and find_spec("mpi4py") is not None
    comm = open_communicator("mpi" if by_mpi else "auto", place)
    try:
        yield comm
    except Exception as error:
        if not is_agreed(error):
            if isinstance(error, HpcmassError):
                sys.stderr.write(f"error: {error}\n")
            else:
                traceback.print_exc()
            sys.stderr.flush()
            comm.abort(f"rank {place.rank}: {error}")
        comm.close()
        raise
    comm.close()
