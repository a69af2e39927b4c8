"""A site's targets as Parsl executors, and these as a Parsl configuration."""

from __future__ import annotations

import re
import shlex
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import parsl.executors.high_throughput
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import ManagerLost
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

from hpcmass.config import Resources, Target
from hpcmass.errors import BlockLost
from hpcmass.runs import MOST_FREE_LOSSES, FreeLosses
from hpcmass.workflow.block_script import render_block
from hpcmass.workflow.block_shape import BlockShape, block_shape
from hpcmass.workflow.blocks import BlockBook, BlockProvider, BlockScripts
from hpcmass.workflow.env_pack import packed_of
from hpcmass.workflow.executors import LOST_AFTER_S, BlockExecutor

LABEL = "trials"
_HEARTBEAT_S = 2
_LOST_AFTER_S = 60
_SHELL_SAFE = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
# A block that has had nothing to do for so long is given back.
IDLE_S = 60.0


def config_of(
    executors: Sequence[HighThroughputExecutor], run_dir: Path, *, retries: int | None = None
) -> Config:
    """A configuration of executors, with scaling by the work.

    Args:
        executors: The executors.
        run_dir: Where Parsl keeps its logs.
        retries: How often Parsl runs again what failed; losses of nodes and blocks cost none. None: whoever
            hands out the work sees to that, and Parsl runs nothing twice.
    """
    return Config(
        executors=list(executors),
        run_dir=str(run_dir),
        initialize_logging=False,
        usage_tracking=0,
        strategy="htex_auto_scale",
        strategy_period=2,
        max_idletime=IDLE_S,
        retries=retries or 0,
        retry_handler=Cost() if retries is not None else None,
    )


class Cost:
    """What a failure costs a task of its retries: Parsl's `retry_handler`.

    Nothing where its node or block was lost, up to a bound that begins anew whenever it got further.
    """

    def __init__(self) -> None:
        self._losses = FreeLosses()

    def __call__(self, error: Exception, task: Mapping[str, Any]) -> float:
        """The cost; a whole retry is 1."""
        if not isinstance(error, (ManagerLost, BlockLost)):
            return 1.0
        step = error.data.get("step", 0) if isinstance(error, BlockLost) else 0
        return 0.0 if self._losses.add(task["id"], int(step)) <= MOST_FREE_LOSSES else 1.0


# -- this machine ---------------------------------------------------------------------------------------
def shell_safe(path: Path) -> bool:
    """Whether Parsl can be given a path: it hands the paths of local workers to a shell unquoted."""
    return _SHELL_SAFE.fullmatch(str(path)) is not None


def local_executor(
    *, label: str, parallel: int, environment: Mapping[str, str], encrypted: bool = True
) -> HighThroughputExecutor:
    """Workers on this machine: one block, started at once.

    Args:
        label: The executor's name.
        parallel: Workers.
        environment: Set for the interchange, the workers, and all that they start.
        encrypted: Whether what goes over the loopback interface is encrypted (CurveZMQ).
    """
    settings = [f"{name}={value}" for name, value in environment.items()]
    return HighThroughputExecutor(
        label=label,
        address="127.0.0.1",
        encrypted=encrypted,
        max_workers_per_node=parallel,
        cores_per_worker=1e-6,  # `parallel` alone says how many; Parsl would else count the cores.
        heartbeat_period=_HEARTBEAT_S,
        heartbeat_threshold=_LOST_AFTER_S,
        interchange_launch_cmd=_interchange(environment),
        launch_cmd=_launch_command(settings),
        provider=LocalProvider(  # type: ignore[no-untyped-call]
            init_blocks=1, min_blocks=1, max_blocks=1, nodes_per_block=1, launcher=SimpleLauncher()
        ),
    )


def _interchange(environment: Mapping[str, str]) -> list[str]:
    settings = [f"{name}={value}" for name, value in environment.items()]
    return ["env", *settings, sys.executable, _program("interchange")]


def _launch_command(settings: list[str]) -> str:
    """Parsl's own command with our environment, and without relying on PATH."""
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    name, arguments = DEFAULT_LAUNCH_CMD.split(" ", 1)
    program = [*settings, sys.executable, _program(name.removesuffix(".py"))]
    quoted = " ".join(shlex.quote(word).replace("{", "{{").replace("}", "}}") for word in program)
    return f"exec env {quoted} {arguments}"


def _program(name: str) -> str:
    """The file of one of Parsl's programs, which pip put beside the interpreter."""
    file = Path(sysconfig.get_path("scripts")) / f"{name}.py"
    if file.is_file():
        return str(file)
    return str(Path(parsl.executors.high_throughput.__path__[0]) / f"{name}.py")


# -- Slurm ----------------------------------------------------------------------------------------------
def slurm_executor(
    shape: BlockShape,
    target: Target,
    *,
    book: BlockBook,
    run_dir: Path,
    environment: Mapping[str, str],
    grace_s: float,
    address: str | None = None,
    encrypted: bool = True,
    lost_after_s: int = LOST_AFTER_S,
    outlives: bool = False,
) -> BlockExecutor:
    """Slots on one target, in blocks that come and go with the work.

    Args:
        shape: How blocks are cut.
        target: What is asked of Slurm.
        book: The driver's blocks.
        run_dir: Where scripts and outputs of blocks go; on a file system that the nodes see.
        environment: For the workers and all that they start.
        grace_s: What a node's processes may take to end when a block is given back, in seconds.
        address: This machine's address as the nodes see it; None: they try all that it has.
        encrypted: Whether what goes over the network is encrypted (CurveZMQ).
        lost_after_s: Seconds of silence after which a node's workers count as lost, and after which these end
            when they do not hear of their driver.
        outlives: What runs then goes on to its end first.

    Raises:
        NotFound, CorruptError, ConfigError: The target's packed environment is not there, not whole, or holds
            another version of hpcmass.
    """
    folder = run_dir.absolute() / f"blocks-{book.driver[:8]}"
    folder.mkdir(parents=True, exist_ok=True)

    packed = packed_of(target)

    def render(number: str, command: Sequence[str], excluded: Sequence[str], time_s: int) -> str:
        return render_block(
            replace(shape, time_s=time_s), target, number=number, command=command, out=folder,
            driver=book.driver, packed=packed, excluded=excluded,
        )  # fmt: skip

    scripts = BlockScripts(render, folder)
    provider = BlockProvider(
        book, scripts, label=shape.label, nodes=shape.nodes, max_blocks=shape.max_blocks, time_s=shape.time_s
    )
    return BlockExecutor(
        shape,
        provider,
        pilot={
            "driver": book.driver,
            "target": shape.target,
            "whole": shape.whole,
            "nodes": shape.nodes,
            "slots": shape.slots,
            "threads": shape.threads,
            "gpus_per_slot": shape.gpus_per_slot,
            "time_s": shape.time_s,
            "drain_s": shape.drain_s,
            "stop_s": shape.stop_s,
            "grace_s": grace_s,
            "pool": _program("process_worker_pool"),
            "outlives": outlives,
            "environment": dict(environment),
        },
        interchange=_interchange({**environment, "HPCMASS_DRIVER": book.driver, "SPT_NOENV": "1"}),
        address=address,
        encrypted=encrypted,
        lost_after_s=lost_after_s,
    )


def both_shapes(
    target: Target, name: str, item: Resources, nodes: int | None, parallel: int | None
) -> list[BlockShape]:
    """The packed form of a target, and the whole-node one where a job may have several nodes.

    Args:
        target: The target.
        name: Its name.
        item: What a packed item asks for.
        nodes: Nodes of a whole-node item; None: all that one job may have.
        parallel: Packed items at once.

    Raises:
        ConfigError: The target cannot give it.
    """
    shapes = [block_shape(item, target, name=name, parallel=parallel)]
    most = nodes or target.max_nodes or 1
    if shapes[0].whole or most == 1:
        return shapes
    whole = Resources(ranks=most, nodes=most, time=item.time, gpus_per_rank=target.gpus)
    return [*shapes, block_shape(whole, target, name=name, whole=True)]
