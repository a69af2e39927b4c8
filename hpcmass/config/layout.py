"""Where the ranks of a run lie: nodes, ranks a node, threads a rank. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hpcmass.config.duration import parse_duration
from hpcmass.config.resources import Resources, Target
from hpcmass.errors import ConfigError

DEFAULT_TIME_S = 3600


@dataclass(frozen=True)
class Layout:
    """Nodes and ranks of one job.

    Attributes:
        ranks: Over all nodes.
        ranks_per_node: On every node but perhaps the last, which may have fewer.
        threads_per_rank: CPU threads, and cores asked for, of a rank.
        gpus_per_node: GPUs asked for on every node.
        memory_gb: Memory asked for on every node in GB (10^9 bytes), or None for the target's own default.
        time_s: Wall time asked for, in seconds.
    """

    nodes: int
    ranks: int
    ranks_per_node: int
    threads_per_rank: int
    gpus_per_node: int
    memory_gb: float | None
    time_s: int


def layout_of(resources: Resources, target: Target, *, name: str = "") -> Layout:
    """Lay a run's ranks out on a target's nodes, on as few as it takes where the run does not say.

    Args:
        resources: What the run asks for.
        target: A target of kind `slurm`.
        name: The target's name, for messages.

    Raises:
        ConfigError: The target cannot give it: names the key, what was asked, and what there is.
    """
    cores = target.cores or 1
    gpus = resources.gpus_per_rank if resources.gpus_per_rank is not None else min(1, target.gpus)
    threads = resources.threads_per_rank
    if threads is not None and threads > cores:
        raise _refuse("threads_per_rank", f"{threads} threads a rank", f"{cores} cores a node", name)
    if gpus > target.gpus:
        raise _refuse("gpus_per_rank", f"{gpus} GPUs a rank", f"{target.gpus} GPUs a node", name)
    fit = cores // (threads or 1)
    if gpus:
        fit = min(fit, target.gpus // gpus)
    nodes = resources.nodes or -(-resources.ranks // fit)
    if nodes > resources.ranks:
        raise ConfigError(
            f"{nodes} nodes for {resources.ranks} ranks: some would have none",
            where="resources.nodes",
            hint="fewer nodes, or more ranks",
        )
    per_node = -(-resources.ranks // nodes)
    if per_node > fit:
        what = f"{resources.ranks} ranks on {nodes} nodes ({per_node} a node)"
        raise _refuse("nodes", what, f"room for {fit} such ranks a node", name)
    if target.max_nodes is not None and nodes > target.max_nodes:
        why = f" ({fit} ranks a node: {gpus} GPUs each)" if gpus else f" ({fit} ranks a node)"
        raise _refuse("ranks", f"{nodes} nodes{why}", f"at most {target.max_nodes} a job", name)
    memory = resources.memory_gb
    if memory is not None and target.memory_gb is not None and memory > target.memory_gb:
        raise _refuse("memory_gb", f"{memory:g} GB a node", f"{target.memory_gb:g} GB a node", name)
    return Layout(
        nodes=nodes,
        ranks=resources.ranks,
        ranks_per_node=per_node,
        threads_per_rank=threads or max(1, cores // per_node),
        gpus_per_node=gpus * per_node,
        memory_gb=memory,
        time_s=_time_s(resources, target, name),
    )


def _time_s(resources: Resources, target: Target, name: str) -> int:
    most = parse_duration(target.max_time) if target.max_time else None
    text = resources.time or target.default_time
    if text is None:
        return min(DEFAULT_TIME_S, most or DEFAULT_TIME_S)
    seconds = parse_duration(text)
    if most is not None and seconds > most:
        raise _refuse("time", f"a wall time of {text}", f"at most {target.max_time} a job", name)
    return seconds


def _refuse(key: str, asked: str, has: str, name: str) -> ConfigError:
    return ConfigError(
        f"the job needs {asked}, but the target{f' {name!r}' if name else ''} has {has}",
        where=f"resources.{key}",
        hint="ask for less, or name another target (resources.target)",
    )
