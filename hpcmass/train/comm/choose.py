"""Choose and open a communicator, and hold its size against what was promised."""

from __future__ import annotations

import os
import time
from importlib import import_module
from importlib.util import find_spec

from hpcmass.errors import ConfigError, LaunchError, MissingDependency
from hpcmass.launch import RankEnv, promised_ranks
from hpcmass.train.comm.base import Communicator, gpu_index
from hpcmass.train.comm.single import SingleCommunicator
from hpcmass.train.comm.size import check_size

_RANK_0_SPEAKS_S = 15.0
_NEEDS = {"mpi": "mpi4py", "horovod": "horovod"}
# Under one of these an MPI library finds its other ranks.
_MPI_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "PMIX_RANK")
_MODULES = {
    "mpi": ("hpcmass.train.comm.mpi", "MpiCommunicator"),
    "torch": ("hpcmass.train.comm.torch_dist", "TorchCommunicator"),
    "horovod": ("hpcmass.train.comm.horovod", "HorovodCommunicator"),
}


def choose_backend(name: str, ranks: RankEnv) -> str:
    """The backend that `auto` stands for; any other name is returned as it is.

    One rank: `single`. GPUs enough for the ranks of the node: `torch` (NCCL). Else the first of `horovod`,
    `mpi`, `torch` that is installed; outside an MPI launcher (torchrun, plain processes) `torch`.
    """
    if name != "auto":
        return name
    if ranks.size == 1:
        return "single"
    if gpu_index(ranks.local_rank, ranks.local_size) is not None:
        return "torch"
    if not any(name in os.environ for name in _MPI_LAUNCHED):
        return "torch"
    for other in ("horovod", "mpi"):
        if find_spec(_NEEDS[other]) is not None:
            return other
    return "torch"


def open_communicator(name: str, ranks: RankEnv) -> Communicator:
    """Join the other ranks, all of them, or refuse.

    Args:
        name: `auto`, `single`, `mpi`, `torch` or `horovod`.
        ranks: This process's place, as the launcher says.

    Raises:
        LaunchError: Not as many ranks found each other as were promised (by `HPCMASS_RANKS`, else by the
            launcher); nothing was touched on disk.
        MissingDependency: The backend is not installed.
    """
    promised = promised_ranks(os.environ) or ranks.size
    chosen = choose_backend(name, ranks)
    if chosen == "single":
        check_size(promised, 1, "single", asked=name != "auto")
        return SingleCommunicator()
    if chosen not in _MODULES:
        raise ConfigError(f"{chosen!r} is not a backend", where="train.backend")
    # A torch process group waits for all its ranks; ranks that each think they are alone would not wait.
    if chosen == "torch":
        check_size(promised, ranks.size, chosen)
    return _open(chosen, ranks, promised)


def _open(name: str, ranks: RankEnv, promised: int) -> Communicator:
    needed = _NEEDS.get(name)
    if needed is not None and find_spec(needed) is None:
        raise MissingDependency(
            f"the backend {name!r} needs {needed}, which is not installed",
            where="train.backend",
            hint=f"pip install 'hpcmass[{name}]'",
        )
    module, kind = _MODULES[name]
    try:
        comm: Communicator = getattr(import_module(module), kind)(ranks)
    except (ImportError, OSError) as error:
        raise MissingDependency(
            f"the backend {name!r} cannot be loaded: {error}",
            where="train.backend",
            hint='it was built for another MPI library or torch: install it again, or train.backend = "torch"',
        ) from error
    try:
        library = import_module("hpcmass.train.comm.mpi_start").mpi_library() if needed else ""
        check_size(promised, comm.size, name, library=library)
    except LaunchError as error:
        # Each thinks that it is alone, and one of them is to say it. Above ranks of the user's own srun, which
        # ends all at the first bad exit, there is nobody to collect their words: rank 0 is to come first.
        if comm.size == 1 and ranks.rank != 0 and "HPCMASS_KEEPER" not in os.environ:
            error.data["told"] = True
            time.sleep(_RANK_0_SPEAKS_S)
        comm.close()
        raise
    return comm
