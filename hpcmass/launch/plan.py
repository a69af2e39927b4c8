"""From a command, a number of ranks and a target to the argument list and environment. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hpcmass.errors import LaunchError
from hpcmass.launch.mpi import MpiFlavour

if TYPE_CHECKING:  # pydantic is not there for launch.child
    from hpcmass.config.resources import Target

# What a launcher around us (a Slurm step, an mpiexec, torchrun) left for *its* ranks: an mpiexec started
# with it attaches to the outer job and fails, or hangs.
_LAUNCHER_PREFIXES = ("SLURM_", "PMI", "OMPI_", "PRTE_", "HYDI_", "TORCHELASTIC_")
_LAUNCHER_NAMES = {
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "HPCMASS_RANK",
    "HPCMASS_RANKS",
    "HPCMASS_SIZE",
    "HPCMASS_LOCAL_RANK",
    "HPCMASS_LOCAL_SIZE",
    "HPCMASS_KEEPER",
    "HPCMASS_SOURCE",
    "HPCMASS_TTY",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "NODE_RANK",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
}
_TUNING_PREFIXES = ("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_")


@dataclass(frozen=True)
class LaunchPlan:
    """How N ranks are started.

    Attributes:
        argv: The whole command: of mpiexec, or of one rank where the launcher is `spawn`.
        env: The environment of that command.
        launcher: `openmpi`, `mpich` or `spawn`.
        ranks: Processes, over all nodes.
    """

    argv: list[str]
    env: dict[str, str]
    launcher: Literal["openmpi", "mpich", "spawn"]
    ranks: int


def plan_ranks(
    argv: Sequence[str],
    ranks: int,
    target: Target,
    *,
    threads_per_rank: int | None,
    cores: int,
    launcher: Literal["auto", "mpiexec", "spawn"] = "auto",
    mpiexec: MpiFlavour | None,
    env: Mapping[str, str],
) -> LaunchPlan:
    """Plan the start of `argv` on `ranks` ranks of one machine.

    Every rank runs under `hpcmass.launch.child`, which sets torchrun's variables, keeps the rank's output
    and notes how it ended.

    Args:
        argv: The command of one rank; never read by a shell.
        ranks: Ranks to start.
        target: The site's target; its `launcher` counts where `launcher` is `auto`, its `cores` before `cores`.
        threads_per_rank: `OMP_NUM_THREADS` of a rank; None keeps the environment's own number, or shares
            the cores out evenly.
        cores: Cores of this machine that may be used.
        launcher: `mpiexec`, `spawn` (plain processes), or `auto`: mpiexec for two ranks or more, where
            there is one.
        mpiexec: What `find_mpiexec` found.
        env: The environment to start from; variables that an outer launcher left for its own ranks are
            taken out.

    Raises:
        LaunchError: Fewer than one rank, or mpiexec is asked for and there is none.
    """
    if ranks < 1:
        raise LaunchError(f"{ranks} ranks cannot be started", where="ranks", hint="give 1 or more")
    wanted = target.launcher if launcher == "auto" else launcher
    if wanted == "mpiexec" and mpiexec is None:
        raise LaunchError(
            "there is no mpiexec beside this Python or on PATH",
            hint="pip install 'hpcmass[mpi]', or load the site's MPI module, or use launcher = \"spawn\"",
        )
    clean = scrubbed(env)
    clean["HPCMASS_RANKS"] = str(ranks)
    if threads_per_rank is not None:
        clean["OMP_NUM_THREADS"] = str(threads_per_rank)
    else:
        clean.setdefault("OMP_NUM_THREADS", str(max(1, (target.cores or cores) // ranks)))
    # A rank that is killed loses nothing it has printed, and a crash in native code names the line.
    clean.setdefault("PYTHONUNBUFFERED", "1")
    clean.setdefault("PYTHONFAULTHANDLER", "1")
    command = [*keeper(), *argv]
    if mpiexec is None or wanted == "spawn" or (wanted == "auto" and ranks == 1):
        return LaunchPlan(command, clean, "spawn", ranks)
    if mpiexec.kind == "openmpi":
        # Containers and clusters' compute nodes run as root; Open MPI refuses that without these two.
        clean["OMPI_ALLOW_RUN_AS_ROOT"] = clean["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        # Bound, each rank would have one core, whatever its number of threads.
        options = ["-n", str(ranks), "--oversubscribe", "--bind-to", "none"]
    else:
        options = ["-n", str(ranks), "-launcher", "fork", "-bind-to", "none"]
    return LaunchPlan([mpiexec.path, *options, *command], clean, mpiexec.kind, ranks)


def keeper() -> list[str]:
    """The words in front of a rank's command: `child.py` in an interpreter without site-packages (fast)."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")), "rank"]


def scrubbed(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without what an outer launcher left for its ranks; a user's MPI tuning stays."""
    inside_mpi = "OMPI_COMM_WORLD_RANK" in env or "PMIX_RANK" in env
    return {name: value for name, value in env.items() if not _from_launcher(name, inside_mpi)}


def _from_launcher(name: str, inside_mpi: bool) -> bool:
    # Inside a job of Open MPI, its launcher's own settings cannot be told from the user's.
    if name.startswith(_TUNING_PREFIXES):
        return inside_mpi
    return name in _LAUNCHER_NAMES or name.startswith(_LAUNCHER_PREFIXES)
