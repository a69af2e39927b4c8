"""What starts the pilots of a block: one a node, each with all that the block has there."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hpcmass.config import Resources, Target
from hpcmass.errors import SlurmError
from hpcmass.workflow.block_script import render_block
from hpcmass.workflow.block_shape import block_shape
from hpcmass.workflow.blocks import BlockBook
from hpcmass.workflow.parsl_site import slurm_executor
from hpcmass.workflow.pilot import own_times


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


def test_a_block_begins_on_no_node_that_is_avoided_and_knows_its_own_wall_time() -> None:
    target = Target(kind="slurm", cores=8, sbatch={"exclude": "bad1"})
    shape = replace(block_shape(Resources(), target, name="cpu"), time_s=120)
    text = render_block(
        shape, target, number="0", command=("pilot",), out=Path("/out"), driver="d", excluded=["cn1", "cn2"]
    )
    assert "#SBATCH --exclude=bad1,cn1,cn2\n" in text
    assert "export HPCMASS_BLOCK_TIME_S=120\n" in text
    spec = {"time_s": 600, "drain_s": 60, "stop_s": 30}
    assert own_times(spec, {"HPCMASS_BLOCK_TIME_S": "120"}) == {"time_s": 120, "drain_s": 30, "stop_s": 15}
    assert own_times(spec, {}) == spec


def test_where_only_avoided_nodes_are_left_a_block_begins_there_all_the_same(tmp_path, monkeypatch) -> None:
    target = Target(kind="slurm", cores=8, max_nodes=2)
    book, tried = BlockBook(tmp_path, "d"), []
    made = slurm_executor(
        block_shape(Resources(), target, name="cpu"),
        target,
        book=book,
        run_dir=tmp_path,
        environment={},
        grace_s=1,
    )
    book.avoid("cn1", 60.0)
    book.avoid("cn0", -1.0)  # its time is over

    def submit(script, label, number, **size):
        tried.append([line for line in script.read_text().splitlines() if "exclude" in line])
        if tried[-1]:
            raise SlurmError("no such nodes", data=1)
        return "7"

    monkeypatch.setattr(book, "submit", submit)
    assert made.provider.submit("pilot", 1, "cpu-0") == "7"
    assert tried == [["#SBATCH --exclude=cn1"], []]
    assert book.excluded() == []
