"""Where a run's ranks go: this machine, or the nodes of the Slurm job that this process is the script of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hpcmass.config import Layout, Resources, Target, layout_of
from hpcmass.errors import ConfigError, LaunchError
from hpcmass.launch import Allocation, read_allocation
from hpcmass.launch.allocation import share_out


@dataclass(frozen=True)
class Placed:
    """What `start_ranks` and `run_script` need to know about the machine.

    Attributes:
        ranks: Processes, over all nodes.
        target: The site's target; of an allocation without a site file, what Slurm says of its nodes.
        allocation: The Slurm job; None: this machine alone.
        layout: Nodes and ranks a node in the allocation.
    """

    ranks: int
    target: Target
    allocation: Allocation | None = None
    layout: Layout | None = None


def place_ranks(
    resources: Resources,
    target: Target,
    *,
    env: Mapping[str, str],
    asked: int | None = None,
    script: bool = False,
) -> Placed:
    """Lay a run out on the nodes that Slurm gave, all of them where the run does not say how many.

    Args:
        resources: What the run asks for.
        target: The site's target.
        env: The environment, as `os.environ`.
        asked: Ranks by `--ranks`, before those of `resources`, before sbatch's `--ntasks`.
        script: A script of the user's own: without a number of ranks it gets one a GPU, or else one a node.

    Raises:
        ConfigError: The Slurm job is too small; nothing was touched.
    """
    own = resources.ranks if "ranks" in resources.model_fields_set else None
    allocation = read_allocation(env)
    if allocation is None or (target.kind == "local" and allocation.nodes == (allocation.host,)):
        # One node, and nothing known of it but what the operating system says: as on any machine.
        tasks = allocation.tasks if allocation is not None else None
        if allocation is not None and target.cores is None and allocation.cores is not None:
            # Where Slurm binds nothing, the operating system shows every core of the node.
            target = target.model_copy(update={"cores": allocation.cores})
        return Placed(asked or own or tasks or 1, target)
    usual = len(allocation.nodes) * max(1, allocation.gpus) if script else 1
    ranks = asked or own or allocation.tasks or usual
    most, target = target.cores, _as_given(target, allocation)
    nodes = resources.nodes or min(ranks, len(allocation.nodes))
    threads = resources.threads_per_rank
    if threads is None and ranks == allocation.tasks:
        threads = allocation.cpus_per_task
    wanted = resources.model_copy(update={"ranks": ranks, "nodes": nodes, "threads_per_rank": threads})
    cpus = tuple(min(cpu, most or cpu) for cpu in allocation.cpus[:nodes])
    try:
        layout = _lay_out(wanted, target, cpus if not allocation.groups else ())
    except ConfigError as error:
        what = error.message.replace("the target has", "the job has")
        raise ConfigError(
            f"the Slurm job {allocation.job_id} ({_say(allocation)}) cannot hold the run: {what}",
            where=error.where,
            hint="ask sbatch for more (--nodes, --ntasks, --cpus-per-task, --gres), or start fewer ranks",
        ) from error
    return Placed(ranks, target, allocation, layout)


def _lay_out(wanted: Resources, target: Target, cpus: tuple[int, ...]) -> Layout:
    """The layout; on nodes of which Slurm gave unequal parts, with as many ranks as fit each part."""
    if len(set(cpus)) < 2:
        return layout_of(wanted, target)
    threads = wanted.threads_per_rank
    try:
        counts = share_out(wanted.ranks, [cpu // (threads or 1) for cpu in cpus])
    except LaunchError as error:
        raise ConfigError(error.message, where="resources.ranks") from error
    layout = layout_of(wanted, target.model_copy(update={"cores": max(cpus)}))
    return replace(
        layout,
        ranks_per_node=max(counts),
        threads_per_rank=threads or max(1, min(cpu // count for cpu, count in zip(cpus, counts, strict=True))),
        gpus_per_node=layout.gpus_per_node // layout.ranks_per_node * max(counts),
    )


def _as_given(target: Target, allocation: Allocation) -> Target:
    """The target, no larger than what the job was given of it."""
    cores = [number for number in (target.cores, allocation.cores) if number is not None]
    # Of another node than this one only the site file knows the GPUs.
    gpus = target.gpus if not allocation.host or allocation.groups else min(target.gpus, allocation.gpus)
    given = {"cores": min(cores, default=1), "max_nodes": len(allocation.nodes), "max_time": None}
    if target.kind == "local":
        return Target(kind="slurm", launcher=target.launcher, gpus=allocation.gpus, **given)  # type: ignore[arg-type]
    return target.model_copy(update={**given, "gpus": gpus})


def _say(allocation: Allocation) -> str:
    nodes = len(allocation.nodes)
    text = f"{nodes} node{'s' * (nodes != 1)}"
    if allocation.cores is not None:
        most = max(allocation.cpus)
        text += (
            f" of {allocation.cores}{f' to {most}' if most > allocation.cores else ''} CPU{'s' * (most != 1)}"
        )
    return text + (f", {allocation.gpus} GPUs a node" if allocation.gpus else "")
