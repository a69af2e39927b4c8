"""A run in `block` order, ended in the middle of an epoch and gone on with on another number of ranks."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

SAMPLES = 300

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]


@pytest.mark.soak  # with the order `global`: test_train_checkpoints.py
def test_block_order_goes_on_with_three_ranks_after_two(tmp_path: Path) -> None:
    """300 samples in blocks of 43 (rows of 24 bytes in 1 KiB), batches of 37, which no number of ranks divides."""
    root = tools.make_project(tmp_path / "p", SAMPLES)
    sets = [
        "train.backend=mpi", "train.checkpoint_every_steps=1", "train.epochs=1", "train.global_batch=37",
        "data.order=block", "data.block.window=2", "data.block.lanes=3", "data.block.kib=1",
    ]  # fmt: skip
    cut = tools.run(
        tools.mpiexec(2, tools.words(root, "r", *sets)), tools.environment(root, RAISE_AT="5", RAISE_RANK="1")
    )
    assert cut.returncode == 2, cut.stdout
    assert "the recipe is at its end" in cut.stdout
    other = tools.run(
        tools.mpiexec(3, tools.words(root, "r", *sets, "data.block.lanes=2")), tools.environment(root, TRY="x")
    )
    assert other.returncode == 2, other.stdout
    assert "data.block.lanes: 3 then, 2 now" in other.stdout
    done = tools.run(tools.mpiexec(3, tools.words(root, "r", *sets)), tools.environment(root, TRY="2"))
    assert done.returncode == 0, done.stdout
    said = json.loads((root / "runs" / "r" / "order.json").read_text())
    assert (said["kind"], said["block_samples"], said["lanes"]) == ("block", 43, 3)
    (resume,) = tools.records(root, "r", "resume")
    assert (resume["ranks"], resume["from_step"]) == (3, 4)

    first, second = tools.seen(root), tools.seen(root, "2")
    assert (sorted(first), sorted(second)) == ([0, 1], [0, 1, 2])
    assert {line["world"] for lines in second.values() for line in lines} == {3}
    ids = [i for lines in first.values() for line in lines[:4] for i in line["ids"]]
    ids += [i for lines in second.values() for line in lines for i in line["ids"]]
    assert sorted(ids) == list(range(SAMPLES)), "not each sample once"
    # What a step takes does not depend on the ranks: an undisturbed run of one has the same batches.
    alone = tools.run(
        tools.words(root, "alone", *sets, "train.backend=single"), tools.environment(root, TRY="3")
    )
    assert alone.returncode == 0, alone.stdout
    batches = [sorted(line["ids"]) for line in tools.seen(root, "3")[0]]
    assert [len(batch) for batch in batches] == [37] * 8 + [4]
    for step, batch in enumerate(batches):
        lines = first if step < 4 else second
        at = step if step < 4 else step - 4
        assert sorted(i for rank in lines.values() if at < len(rank) for i in rank[at]["ids"]) == batch, step
    assert tools.status(root, "r")["state"] == "COMPLETED"
