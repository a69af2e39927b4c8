"""The text of a block's batch script. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcmass.config import Target
from hpcmass.launch.packed import PackedEnv
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.workflow.block_shape import BlockShape
from hpcmass.workflow.blocks_left import comment_of
from hpcmass.workflow.pilot import BEGAN, TIME_S


def render_block(
    shape: BlockShape,
    target: Target,
    *,
    number: str,
    command: Sequence[str],
    out: Path,
    driver: str,
    packed: PackedEnv | None = None,
    excluded: Sequence[str] = (),
) -> str:
    """A block's script: one pilot a node, or one for the whole block where items take whole nodes.

    Blocks are not requeued by Slurm: their driver replaces them. Of a packed block over several nodes, the
    others live on when one node fails.

    Args:
        shape: How the block is cut.
        target: What is asked of Slurm.
        number: The block's number, from 0.
        command: The words of the pilot's command, of which the first is the interpreter.
        out: The folder of Slurm's output file.
        driver: The driver's uuid, which the block carries in its comment.
        packed: The environment that the block unpacks on its nodes and runs in; None: the driver's own.
        excluded: Nodes on which it is not to begin.

    Raises:
        ConfigError: A value cannot stand in a script.
    """
    several = shape.nodes > 1 and not shape.whole
    srun = ["srun", f"--nodes={shape.nodes}", f"--ntasks={shape.nodes}", "--ntasks-per-node=1", "--no-kill"]
    exclude = [one for one in (target.sbatch.get("exclude", ""), *excluded) if one]
    asked = target.model_copy(
        update={
            "requeue": False,
            "sbatch": {
                **target.sbatch,
                **({"no-kill": ""} if several else {}),
                **({"exclude": ",".join(exclude)} if exclude else {}),
            },
            "setup": [f"export {BEGAN}=$EPOCHSECONDS", f"export {TIME_S}={shape.time_s}", *target.setup],
        }
    )
    # Since 22.05 srun does not take the cores over from sbatch: a pilot, and all its items, would have one. It
    # deals them out itself, so it is bound to none; and `sbatch --export=NONE` would empty its environment.
    cores = [f"--cpus-per-task={shape.cores}", "--cpu-bind=none", "--export=ALL"]
    starter = (*srun, *cores, "--kill-on-bad-exit=0", "--mpi=none") if several else ()
    return render_script(
        ScriptSpec(
            name=f"hpcmass-{shape.label}-{number}",
            target=asked,
            layout=shape.layout(),
            command=(*starter, *command),
            out=out,
            signal_s=0,
            comment=comment_of(driver, f"{shape.label}-{number}"),
            title=f"block {number} of target {shape.target}",
            packed=packed,
            python_word=len(starter),
        )
    )
