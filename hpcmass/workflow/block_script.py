"""The text of a block's batch script. Pure."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hpcmass.config import Target, slurm_time
from hpcmass.errors import ConfigError
from hpcmass.workflow.block_shape import BlockShape
from hpcmass.workflow.blocks_left import comment_of
from hpcmass.workflow.pilot import BEGAN

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def render_block(
    shape: BlockShape, target: Target, *, number: str, command: str, out: Path, driver: str
) -> str:
    """A block's script: one pilot a node, or one for the whole block where items take whole nodes.

    Blocks are not requeued by Slurm: their driver replaces them. Of a packed block over several nodes, the
    others live on when one node fails.

    Args:
        shape: How the block is cut.
        target: What is asked of Slurm.
        number: The block's number, from 0.
        command: The pilot's command, its words quoted for a shell.
        out: Slurm's output file; `%j` stands for the job's id.
        driver: The driver's uuid, which the block carries in its comment.

    Raises:
        ConfigError: A value cannot stand in a script.
    """
    options: dict[str, object] = {
        "job-name": f"hpcmass-{shape.label}-{number}",
        "comment": comment_of(driver),
        "output": str(out),
        "nodes": shape.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": shape.cores,
        "time": slurm_time(shape.time_s),
        "open-mode": "append",
        "no-requeue": None,
    }
    if shape.memory_gb is not None:
        options["mem"] = f"{int(shape.memory_gb * 1e9 / 2**20)}M"
    if shape.gpus_per_slot:
        kind = f"gpu:{target.gpu_type}" if target.gpu_type else "gpu"
        options["gres"] = f"{kind}:{shape.gpus_per_slot * shape.slots}"
    for name, count in target.gres.items():
        options["gres"] = ",".join(filter(None, [str(options.get("gres", "")), f"{name}:{count}"]))
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        options |= {name: value} if (value := getattr(target, name)) is not None else {}
    options |= {"exclusive": None} if target.exclusive else {}
    options |= {"no-kill": None} if shape.nodes > 1 and not shape.whole else {}
    options |= target.sbatch
    lines = ["#!/bin/bash", *(f"#SBATCH {_option(name, value)}" for name, value in options.items()), ""]
    lines.append(f"export {BEGAN}=$EPOCHSECONDS")
    lines += [f"module load {shlex.quote(module)}" for module in target.modules]
    lines += target.setup
    lines += [f"export {name}={shlex.quote(value)}" for name, value in target.env.items()]
    if shape.nodes > 1 and not shape.whole:
        srun = f"srun --nodes={shape.nodes} --ntasks={shape.nodes} --ntasks-per-node=1 --no-kill --kill-on-bad-exit=0"
        lines.append(f"exec {srun} --mpi=none {command}")
    else:
        lines.append(f"exec {command}")
    return "\n".join(lines) + "\n"


def _option(name: str, value: object) -> str:
    if value is None or value == "":
        return f"--{name}"
    text = str(value)
    if _PLAIN.fullmatch(text):
        return f"--{name}={text}"
    if not text.isprintable() or '"' in text or "\\" in text:
        raise ConfigError(f"{text!r} cannot stand in an #SBATCH line", where=f"--{name}")
    return f'--{name}="{text}"'
