"""Workers under Parsl: started, fed, and ended; no process and no block is left, however the driver ends."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from parsl.dataflow.dflow import DataFlowKernel
from parsl.errors import ConfigurationError

from hpcmass.config import Resources, Target
from hpcmass.errors import ConfigError
from hpcmass.workflow.attached import LeftBlocks
from hpcmass.workflow.block_shape import BlockShape, block_shape
from hpcmass.workflow.blocks import POLL_S, BlockBook
from hpcmass.workflow.executors import LOST_AFTER_S, BlockExecutor
from hpcmass.workflow.feeding import BLOCKS_END_S, Pool
from hpcmass.workflow.lanes import Ask
from hpcmass.workflow.parsl_site import LABEL, config_of, local_executor, slurm_executor
from hpcmass.workflow.pool_env import parsl_dir, slurm_environment, worker_environment
from hpcmass.workflow.watchdog import Watchdog, end_tagged

GRACE_S = 15.0


@contextlib.contextmanager
def open_pool(
    targets: Target | Mapping[str, Target],
    *,
    parallel: int,
    folder: Path,
    threads: int | None = None,
    item: Resources | None = None,
    grace_s: float = GRACE_S,
    poll_s: float = POLL_S,
    lost_after_s: int = LOST_AFTER_S,
    node_s: float | None = None,
    left: LeftBlocks | None = None,
) -> Iterator[Pool]:
    """Start workers on one target or several; end them and all that they started when the body ends.

    On a local target there are `parallel` workers at once. On those of Slurm blocks come and go with the work,
    each with as many slots as its nodes hold of `item`.

    Args:
        targets: What the site offers: one, or several by name.
        parallel: Items at once.
        folder: Parsl's scripts and logs go to `folder/parsl`, and there to `blocks.jsonl` what is in Slurm.
        threads: CPU threads a local worker may use; by default its share of the cores.
        item: What one item asks for; default: one rank.
        grace_s: How long what runs may take to end by itself (to write a checkpoint, say), in seconds.
        poll_s: Seconds between two looks at the blocks.
        node_s: What all blocks of this folder, past ones included, may use, in node-seconds; None: no limit.
        lost_after_s: Seconds of silence after which a node's workers count as lost.
        left: The blocks of earlier drivers of this folder, of which those that are at work are left alone; then
            what runs in this driver's blocks outlives it, too. None: they are all ended first.

    Raises:
        ConfigError: A target cannot take the items, or the folder's path cannot be handed on.
    """
    named = {LABEL: targets} if isinstance(targets, Target) else dict(targets)
    tag = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        run_dir = stack.enter_context(parsl_dir(folder, local=any(t.kind == "local" for t in named.values())))
        book = BlockBook(folder / "parsl", tag, poll_s=poll_s, limit_node_s=node_s)
        usual = Ask(item or Resources())

        def make(shape: BlockShape) -> BlockExecutor:
            target = named[shape.target]
            return slurm_executor(
                shape, target, book=book, run_dir=run_dir, environment=slurm_environment(target),
                grace_s=grace_s, lost_after_s=lost_after_s, outlives=left is not None,
            )  # fmt: skip

        executors: list[Any] = []
        for name, target in named.items():
            if target.kind == "local":
                environment = worker_environment(target, parallel, threads, tag)
                executors.append(local_executor(label=name, parallel=parallel, environment=environment))
            else:
                executors.append(make(block_shape(usual.item, target, name=name, parallel=parallel)))
        in_slurm = any(target.kind == "slurm" for target in named.values())
        if in_slurm:
            if left is None:
                LeftBlocks(book.journal, book.slurm).end(book, within_s=BLOCKS_END_S)
            else:
                left.look(book.ledger)
        journal = book.journal if in_slurm else None
        dog = stack.enter_context(Watchdog(tag, grace_s=grace_s, journal=journal, waiting=left is not None))
        try:
            kernel = DataFlowKernel(config_of(executors, run_dir))
        except ConfigurationError as error:
            raise ConfigError(f"Parsl refuses its configuration: {error}") from error
        except BaseException:
            end_tagged(tag, grace_s=0)
            raise
        pool = Pool(kernel, tag, book=book, targets=named, usual=usual, parallel=parallel, make=make, left=left)
        closing = threading.Event()
        threading.Thread(target=pool.watch, args=(closing,), daemon=True).start()
        threading.Thread(target=pool.look, args=(closing,), daemon=True).start()
        if in_slurm and left is not None and left.drivers:
            threading.Thread(target=left.watch, args=(book.ledger, closing, poll_s), daemon=True).start()
        try:
            yield pool
        finally:
            closing.set()
            if not pool.close(grace_s):
                dog.keep()  # It goes on trying when this process is gone.
            if in_slurm and left is not None:
                left.end(book, within_s=BLOCKS_END_S)


__all__ = ["GRACE_S", "Pool", "open_pool"]
