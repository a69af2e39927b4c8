"""The words of srun, Open MPI's and MPICH's mpiexec for ranks on several nodes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcmass.launch.allocation import Allocation, share_out
from hpcmass.launch.mpi import MpiFlavour

if TYPE_CHECKING:  # pydantic is not there for launch.child
    from hpcmass.config.layout import Layout


def ranks_by_node(ranks: int, layout: Layout, nodes: tuple[str, ...], allocation: Allocation) -> dict[str, int]:
    """How many ranks each node gets: evenly, and on unequal nodes as many as have their cores there."""
    cpus = dict(zip(allocation.nodes, allocation.cpus, strict=False))
    room = [min(layout.ranks_per_node, cpus.get(node, 0) // layout.threads_per_rank) for node in nodes]
    if sum(room) < ranks:  # not known, or more than Slurm would start; whoever made the layout wants it so
        room = [layout.ranks_per_node] * len(nodes)
    return dict(zip(nodes, share_out(ranks, room), strict=True))


def srun_words(
    ranks: int, layout: Layout, allocation: Allocation, nodes: tuple[str, ...], pmi: str | None
) -> list[list[str]]:
    """Options of `srun`, one list for every group of a heterogeneous job (else one).

    - `--export=ALL`: `sbatch --export=NONE` would otherwise empty the ranks' environment.
    - `--cpus-per-task`: srun 22.05 and later do not take it over from sbatch. It implies `--exact`, and a
      site's CPU binding then gives each rank cores of its own; nothing more is said about binding, because
      some Slurms have none.
    - `--kill-on-bad-exit=1`: the first rank that fails ends the others, on all nodes.
    - `--wait=0`: ranks may end minutes apart.
    - No `--overlap`: then Slurm itself sees to it that two steps never get the same cores and GPUs; a second
      start in the same job waits for the first.

    Raises:
        LaunchError: Groups of a heterogeneous job are used in part.
    """
    nodes = nodes or allocation.nodes[:1]
    common = [
        f"--mpi={pmi or 'none'}",
        f"--cpus-per-task={layout.threads_per_rank}",
        "--export=ALL",
        "--kill-on-bad-exit=1",
        "--wait=0",
        "--input=none",
    ]
    counts = ranks_by_node(ranks, layout, nodes, allocation)
    if not allocation.groups:
        return [[*_counts(list(nodes), counts, layout, whole=allocation.nodes), *common]]
    found = []
    for number, group in enumerate(allocation.groups):
        used = [node for node in group if node in counts]
        if used:
            found.append([f"--het-group={number}", *_counts(used, counts, layout, whole=group), *common])
    return found


def _counts(nodes: list[str], counts: dict[str, int], layout: Layout, *, whole: tuple[str, ...]) -> list[str]:
    ranks = sum(counts[node] for node in nodes)
    words = [f"--nodes={len(nodes)}", f"--ntasks={ranks}"]
    if ranks == layout.ranks_per_node * len(nodes):
        # Else Slurm shares them out, by the rule of `share_out`; a keeper takes its place from Slurm alone.
        words.append(f"--ntasks-per-node={layout.ranks_per_node}")
    if tuple(nodes) != whole:
        words.append(f"--nodelist={','.join(nodes)}")
    return words


def openmpi_words(ranks: int, counts: dict[str, int]) -> list[str]:
    """Options of Open MPI's mpiexec. Bound, each rank would have one core, whatever its number of threads.

    Args:
        ranks: Over all nodes.
        counts: Ranks of each node; {} for this machine alone.
    """
    if not counts:
        return ["-n", str(ranks), "--oversubscribe", "--bind-to", "none"]
    placed = ["--host", _hosts(counts), "--map-by", "slot:OVERSUBSCRIBE"]
    return ["-n", str(ranks), *placed, "--bind-to", "none"]


def hydra_words(ranks: int, counts: dict[str, int]) -> list[str]:
    """Options of MPICH's mpiexec; arguments as those of `openmpi_words`."""
    if not counts:
        return ["-n", str(ranks), "-launcher", "fork", "-bind-to", "none"]
    return ["-n", str(ranks), "-launcher", "slurm", "-hosts", _hosts(counts), "-bind-to", "none"]


def _hosts(counts: dict[str, int]) -> str:
    return ",".join(f"{node}:{count}" for node, count in counts.items())


def shield_agent(mpiexec: MpiFlavour, keeper: list[str]) -> dict[str, str]:
    """The variable that puts Open MPI's daemons on other nodes behind `child.py shield`; {} where it cannot.

    Slurm ends a job with SIGTERM to every process of it, minutes before SIGKILL if the site is kind; Open
    MPI's daemon answers by killing its ranks within half a second, whatever their checkpoint takes. Behind the
    shield it never sees SIGTERM. Its agent is cut into words at spaces, so no word may hold one.
    """
    old = mpiexec.version.split(".")[0] in ("3", "4")
    daemon = mpiexec.path.rpartition("/")[0] + ("/orted" if old else "/prted")
    words = [*keeper[:-1], "shield", daemon]
    if any(not word or any(letter.isspace() for letter in word) for word in words):
        return {}
    return {"OMPI_MCA_orte_launch_agent" if old else "PRTE_MCA_prte_launch_agent": " ".join(words)}
