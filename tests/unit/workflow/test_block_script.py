"""What starts the pilots of a block: one a node, each with all that the block has there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from hpcmass.config import Resources, Target
from hpcmass.workflow.block_script import render_block
from hpcmass.workflow.block_shape import block_shape


def command(*, whole: bool, block_nodes: int) -> list[str]:
    """The last line of a block's script."""
    target = Target(kind="slurm", cores=8, block_nodes=block_nodes, max_nodes=4, sbatch={"export": "NONE"})
    shape = block_shape(Resources(), target, name="cpu", whole=whole)
    text = render_block(shape, target, number="0", command=("pilot", "x"), out=Path("/out"), driver="d")
    return shlex.split(text.splitlines()[-1])


def test_a_pilot_on_each_of_several_nodes_has_its_cores_and_the_blocks_environment() -> None:
    words = command(whole=False, block_nodes=2)
    assert words[:2] == ["exec", "srun"]
    assert words[-2:] == ["pilot", "x"]
    assert {"--ntasks=2", "--cpus-per-task=8", "--cpu-bind=none", "--export=ALL"} < set(words)


@pytest.mark.parametrize(("whole", "nodes"), [(True, 2), (False, 1)])
def test_one_pilot_needs_no_srun(whole: bool, nodes: int) -> None:
    assert command(whole=whole, block_nodes=nodes) == ["exec", "pilot", "x"]
