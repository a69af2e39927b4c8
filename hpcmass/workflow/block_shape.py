"""What a pilot job (a block) asks of Slurm, and how its nodes are cut into slots for items. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpcmass.config import Layout, Resources, Target, layout_of, parse_duration

DEFAULT_TIME_S = 3600
# A block takes no items this long before its end; what still runs `STOP_S` before it is asked to checkpoint.
DRAIN_S = 60
STOP_S = 30


@dataclass(frozen=True)
class BlockShape:
    """One kind of block.

    Attributes:
        target: Name of the target.
        whole: An item takes the whole block (all its nodes); else a node holds `slots` items side by side.
        nodes: Nodes a block.
        slots: Items at once, on every node of a packed block; 1 where `whole`.
        cores: CPU cores asked for on every node.
        threads: CPU threads of one item on one node, over all its ranks there.
        gpus_per_slot: GPUs of one item on one node.
        memory_gb: Memory asked for on every node in GB (10^9 bytes), or None.
        time_s: Wall time of a block, in seconds.
        drain_s: Seconds before its end in which a block takes no further items.
        stop_s: Seconds before its end at which running items are asked to checkpoint and stop.
        max_blocks: Blocks at once.
        variant: Tells executors of one target apart that cut its blocks differently; no part of the shape.
    """

    target: str
    whole: bool
    nodes: int
    slots: int
    cores: int
    threads: int
    gpus_per_slot: int
    memory_gb: float | None
    time_s: int
    drain_s: int
    stop_s: int
    max_blocks: int
    variant: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """The executor's label: `NAME`, `NAME-nodes` where an item takes whole nodes; the variant behind."""
        name = f"{self.target}-nodes" if self.whole else self.target
        return f"{name}-{self.variant}" if self.variant else name

    def layout(self) -> Layout:
        """The block as a job: one task a node that has all its cores."""
        return Layout(
            nodes=self.nodes,
            ranks=self.nodes,
            ranks_per_node=1,
            threads_per_rank=self.cores,
            gpus_per_node=self.gpus_per_slot * self.slots,
            memory_gb=self.memory_gb,
            time_s=self.time_s,
        )


def block_shape(
    item: Resources,
    target: Target,
    *,
    name: str,
    parallel: int | None = None,
    whole: bool | None = None,
    wall_s: int | None = None,
) -> BlockShape:
    """How blocks on a target are cut for items that ask for `item`.

    An item that fits a node gets a slot of one: as many slots as cores (one a rank, or `threads_per_rank`),
    GPUs and memory allow, but no more than `parallel`, so that few items on a large node get all its cores. An
    item over several nodes gets a block of exactly these nodes to itself.

    Args:
        item: What one item asks for; its `time` is how long one may run.
        target: A target of kind `slurm`.
        name: The target's name.
        parallel: Items at once, over all targets; None: no limit.
        whole: Whether items take whole blocks; None: where they need several nodes.
        wall_s: Wall time that an item needs of a block, in seconds: longer than the target's, but no longer
            than its `max_time`.

    Raises:
        ConfigError: The target cannot give it.
    """
    layout = layout_of(item, target, name=name)
    cores, per_node = target.cores or 1, layout.ranks_per_node
    gpus = layout.gpus_per_node
    whole = layout.nodes > 1 if whole is None else whole
    if whole:
        slots = 1
    else:
        slots = cores // (per_node * (item.threads_per_rank or 1))
        if gpus:
            slots = min(slots, target.gpus // gpus)
        if item.memory_gb and target.memory_gb:
            slots = min(slots, int(target.memory_gb / item.memory_gb + 1e-9))
        slots = max(1, min(slots, parallel or slots))
    nodes = layout.nodes if whole else min(target.block_nodes, target.max_nodes or target.block_nodes)
    time_s, drain_s = _times(item, target, wall_s)
    return BlockShape(
        target=name,
        whole=whole,
        nodes=nodes,
        slots=slots,
        cores=cores,
        threads=per_node * item.threads_per_rank if item.threads_per_rank else max(1, cores // slots),
        gpus_per_slot=gpus,
        memory_gb=item.memory_gb if whole and item.memory_gb else target.memory_gb,
        time_s=time_s,
        drain_s=drain_s,
        stop_s=min(STOP_S, time_s // 8),
        max_blocks=target.max_blocks or max(1, (target.max_nodes or 1) // nodes),
    )


def _times(item: Resources, target: Target, wall_s: int | None) -> tuple[int, int]:
    """Wall time and draining time of a block, in seconds."""
    text = target.block_time or target.default_time or target.max_time
    time_s = max(round(parse_duration(text)) if text else DEFAULT_TIME_S, wall_s or 0)
    if target.max_time is not None:
        time_s = min(time_s, round(parse_duration(target.max_time)))
    # Short blocks (tests, debug queues) keep at least half of their time for work.
    drain_s = min(DRAIN_S, time_s // 4)
    if item.time is not None:
        # An item begins only where it can end; one that is longer than any block is cut, and goes on elsewhere.
        needed = round(parse_duration(item.time)) + drain_s
        drain_s = needed if needed <= time_s else drain_s
    return time_s, drain_s
