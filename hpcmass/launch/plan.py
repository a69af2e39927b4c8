"""From a command, a number of ranks and a target to the argument list and environment. Pure."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hpcmass.errors import LaunchError
from hpcmass.launch.allocation import Allocation
from hpcmass.launch.mpi import MpiFlavour
from hpcmass.launch.nodes import hydra_words, openmpi_words, ranks_by_node, shield_agent, srun_words
from hpcmass.launch.scrub import OUR_THREADS, THREADS, outer_threads, scrubbed

if TYPE_CHECKING:  # pydantic is not there for launch.child
    from hpcmass.config.layout import Layout
    from hpcmass.config.resources import Target

Launcher = Literal["openmpi", "mpich", "spawn", "srun"]


@dataclass(frozen=True)
class LaunchPlan:
    """How N ranks are started.

    Attributes:
        argv: The whole command: of mpiexec or srun, or of one rank where the launcher is `spawn`.
        env: The environment of that command.
        launcher: `openmpi`, `mpich`, `srun` or `spawn`.
        ranks: Processes, over all nodes.
        nodes: The nodes of an allocation that they are started on, the first one's ranks first; () for
            this machine alone, whatever it is called.
        host: The node that plans, or "" where it is none of the allocation's.
        pmi: What `srun --mpi=` was given; None where another launcher starts the ranks.
        gpus_per_rank: GPUs that a rank is meant to have; 0 where nobody says.
        own_gpus: Whether a rank is to see its own GPUs only, out of those that Slurm gave the node.
        ignore_usr1: Whether a rank's command begins deaf to SIGUSR1, which ends one that knows nothing of it.
    """

    argv: list[str]
    env: dict[str, str]
    launcher: Launcher
    ranks: int
    nodes: tuple[str, ...] = ()
    host: str = ""
    pmi: str | None = None
    gpus_per_rank: int = 0
    own_gpus: bool = False
    ignore_usr1: bool = False


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
    layout: Layout | None = None,
    allocation: Allocation | None = None,
    container: Sequence[str] | None = None,
    own_gpus: bool = True,
) -> LaunchPlan:
    """Plan the start of `argv` on `ranks` ranks: of this machine, or of the nodes of an allocation.

    Every rank runs under `hpcmass.launch.child`, which sets torchrun's variables, keeps the rank's output
    and notes how it ended.

    Args:
        argv: The command of one rank; never read by a shell.
        ranks: Ranks to start.
        target: The site's target; its `launcher` counts where `launcher` is `auto`, its `cores` before
            `cores`, its `pmi` where srun starts MPI ranks.
        threads_per_rank: `OMP_NUM_THREADS` of a rank; None keeps the environment's own number (unless an
            outer start of hpcmass set it), or takes the layout's, or shares the cores out evenly; within an
            outer start, those that it gave this process.
        cores: Cores of this machine that may be used.
        launcher: `mpiexec` (the ranks need MPI), `spawn` (plain processes), or `auto`: MPI for two ranks or
            more, where there is one. Over several nodes srun starts plain processes, and MPI ranks where
            the target says so.
        mpiexec: What `find_mpiexec` found.
        env: The environment to start from; variables that an outer launcher left for its own ranks are
            taken out.
        layout: Nodes and ranks a node; needs `allocation`.
        allocation: The Slurm job that this process is the batch script of. None: this machine alone.
        container: Words put in front of the command of each rank, such as `apptainer exec IMAGE`.
        own_gpus: Under srun, show each rank its own GPUs only. False: those of the node, as torchrun does.

    Raises:
        LaunchError: Fewer than one rank, mpiexec is asked for and there is none, the allocation is too
            small, or its launcher cannot start such ranks.
    """
    if ranks < 1:
        raise LaunchError(f"{ranks} ranks cannot be started", where="ranks", hint="give 1 or more")
    nodes = _nodes(ranks, layout, allocation)
    how, pmi = _choose(target, launcher, mpiexec, ranks, nodes, allocation)
    local = how == "spawn" or (how == "mpiexec" and not nodes)
    clean = scrubbed(env, in_allocation=not local)
    clean["HPCMASS_RANKS"] = str(ranks)
    if threads_per_rank is not None or THREADS not in clean:
        threads = threads_per_rank or (layout.threads_per_rank if layout is not None else None)
        share = min(target.cores or cores, outer_threads(env) or sys.maxsize)
        clean[THREADS] = clean[OUR_THREADS] = str(threads or max(1, share // ranks))
    if allocation is not None:
        # Slurm's SIGTERM reaches a rank from Slurm and from us; the supervisor alone decides when it is ended.
        clean["HPCMASS_PATIENT"] = "1"
    # A rank that is killed loses nothing it has printed, and a crash in native code names the line.
    clean.setdefault("PYTHONUNBUFFERED", "1")
    clean.setdefault("PYTHONFAULTHANDLER", "1")
    command = _kept([*(container or ()), *argv])
    gpus = layout.gpus_per_node // layout.ranks_per_node if layout is not None else 0
    host = allocation.host if allocation is not None else ""
    if how == "spawn":
        return LaunchPlan(command, clean, "spawn", ranks, gpus_per_rank=gpus)
    if how == "srun":
        assert layout is not None
        assert allocation is not None
        words = srun_words(ranks, layout, allocation, nodes, pmi)
        sliced = own_gpus and gpus > 0
        return LaunchPlan(
            _in_groups(words, command), clean, "srun", ranks,
            nodes=nodes or allocation.nodes[:1], host=host, pmi=pmi, gpus_per_rank=gpus, own_gpus=sliced,
        )  # fmt: skip
    assert mpiexec is not None
    counts: dict[str, int] = {}
    if nodes:
        assert layout is not None
        assert allocation is not None
        counts = ranks_by_node(ranks, layout, nodes, allocation)
    if mpiexec.kind == "openmpi":
        # Containers and clusters' compute nodes run as root; Open MPI refuses that without these two.
        clean["OMPI_ALLOW_RUN_AS_ROOT"] = clean["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
        options = openmpi_words(ranks, counts)
        if nodes:
            for name, value in shield_agent(mpiexec, keeper()).items():
                clean.setdefault(name, value)
    else:
        options = hydra_words(ranks, counts)
    return LaunchPlan(
        [mpiexec.path, *options, *command],
        clean,
        mpiexec.kind,
        ranks,
        nodes=nodes,
        host=host,
        gpus_per_rank=gpus,
    )


def _nodes(ranks: int, layout: Layout | None, allocation: Allocation | None) -> tuple[str, ...]:
    """The nodes to start on; () where this machine alone is meant, and this process is on it."""
    if allocation is None:
        return ()
    if layout is None:
        raise LaunchError("ranks in an allocation need a layout", where="layout")
    if layout.ranks != ranks:
        raise LaunchError(f"{ranks} ranks do not fit a layout of {layout.ranks}", where="ranks")
    if layout.nodes > len(allocation.nodes):
        have = len(allocation.nodes)
        raise LaunchError(
            f"{ranks} ranks need {layout.nodes} nodes, but the Slurm job {allocation.job_id} has {have}",
            where="allocation",
            hint=f"sbatch --nodes={layout.nodes}, or fewer ranks (--ranks)",
        )
    nodes = allocation.nodes[: layout.nodes]
    return () if nodes == (allocation.host,) else nodes


def _choose(
    target: Target,
    launcher: str,
    mpiexec: MpiFlavour | None,
    ranks: int,
    nodes: tuple[str, ...],
    allocation: Allocation | None,
) -> tuple[Literal["spawn", "mpiexec", "srun"], str | None]:
    """Who starts the ranks, and srun's PMI."""
    wanted: str = target.launcher if launcher == "auto" else launcher
    if allocation is not None:
        plain: Literal["spawn", "srun"] = "srun" if nodes else "spawn"
        if launcher == "spawn" or target.launcher == "spawn":
            if launcher != "mpiexec":
                return plain, None
        elif target.launcher == "srun" or (target.launcher == "auto" and target.pmi is not None):
            if target.pmi is not None and (nodes or ranks > 1 or wanted == "srun"):
                return "srun", target.pmi
            if launcher == "mpiexec":
                raise LaunchError(
                    "ranks that need MPI are to be started by srun, but the target does not say with which PMI",
                    where="pmi",
                    hint='pmi = "pmix" (Open MPI) or "pmi2" (MPICH) in the site file\'s target (\'srun '
                    '--mpi=list\' shows what this Slurm has), or launcher = "mpiexec"',
                )
            return plain, None
        if allocation.groups and len({node in allocation.groups[0] for node in nodes}) > 1:
            if launcher == "mpiexec" or target.launcher == "mpiexec":
                raise LaunchError(
                    "an mpiexec sees the first group of a heterogeneous job only",
                    where="launcher",
                    hint='use srun: pmi = "pmix" (Open MPI) or "pmi2" (MPICH) in the site file\'s target',
                )
            return "srun", None
        if mpiexec is None and nodes and wanted in ("auto", "srun"):
            return "srun", None
    elif wanted == "srun":
        wanted = "auto"  # outside of an allocation there is nothing for srun to start in
    if wanted == "mpiexec" and mpiexec is None:
        raise LaunchError(
            "there is no mpiexec beside this Python or on PATH",
            hint="pip install 'hpcmass[mpi]', or load the site's MPI module, or use launcher = \"spawn\"",
        )
    if wanted == "spawn" or mpiexec is None or (wanted == "auto" and ranks == 1 and not nodes):
        return ("srun" if nodes else "spawn"), None
    return "mpiexec", None


def _in_groups(words: list[list[str]], command: list[str]) -> list[str]:
    """One srun for all groups of a heterogeneous job: `srun … COMMAND : … COMMAND`."""
    argv = ["srun"]
    for number, options in enumerate(words):
        argv += [*([":"] if number else []), *options, *command]
    return argv


def _kept(command: list[str]) -> list[str]:
    """A rank's command behind its keeper.

    srun and every mpiexec take a word that is a colon for the end of the command, wherever it stands; a
    command with such a word goes as one word of JSON.
    """
    if ":" in command:
        return [*keeper()[:-1], "rank-json", json.dumps(command)]
    return [*keeper(), *command]


def keeper() -> list[str]:
    """The words in front of a rank's command: `child.py` in an interpreter without site-packages (fast)."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")), "rank"]
