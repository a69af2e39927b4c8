"""Samples of differing length on one and two real ranks: the same losses, the same weights."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpcmass.config import Project, load_job
from hpcmass.data import ShardWriter
from hpcmass.runs import RunFolder
from hpcmass.train.rank import train_rank

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [
    pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec"), pytest.mark.timeout(1800)
]  # fmt: skip

# Attends within a sample alone, and by its place in it, so that a wrong segment or position changes the loss.
RECIPE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places, self.out = nn.Embedding(30, 8), nn.Embedding(32, 8), nn.Linear(8, 3)
    def forward(self, tokens, first, position=None):
        if position is None:  # padded: `first` are the lengths
            position = torch.arange(tokens.shape[1]).expand(tokens.shape)
            segment = (position < first[:, None]).int()
        else:
            segment = first
        x = self.words(tokens.long()) + self.places(position.long())
        own = (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)
        weights = own / own.sum(-1, keepdim=True).clamp_min(1)
        return self.out(x + weights @ x).movedim(-1, 1)

def build_model(params):
    return Net()

def loss(outputs, tags):
    return cross_entropy(outputs, tags, reduction="sum"), (tags != -100).sum()
"""
JOB = """
name = "job"
recipe = "recipe.py"
[data]
train = "data/d"
valid = "data/d"
[data.ragged.tokens]
length = 16
[train]
epochs = 2
global_batch = 12
optimizer = "SGD"
lr = 0.5
log_every_steps = 1
"""
WORKER = """
import json, sys
from pathlib import Path
from hpcmass.config import Project, load_job
from hpcmass.runs import RunFolder
from hpcmass.train.rank import train_rank

root = Path(sys.argv[1])
for name, sets in json.loads(sys.argv[2]):
    train_rank(load_job(root / "job.toml", sets), RunFolder(root / "runs" / name), Project(root), console=False)
"""
PACK, ORDERED = "data.ragged.tokens.as=pack", ["train.reproducible=true", "train.micro_batches=3"]
KINDS = {"pad": [], "pack": [PACK], "ordered": ORDERED, "ordered-pack": [*ORDERED, PACK], "accumulated": [PACK, "train.accumulation=2"]}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each kind on one and on two ranks, and `parts`: begun on two ranks, ended on one."""
    root = tmp_path_factory.mktemp("ragged") / "p"
    project = Project.create(root, "tests")
    random = np.random.default_rng(0)
    fields = {"tokens": ("uint16", (None,)), "tags": ("uint8", (None,))}
    with ShardWriter(project.data / "d", fields, targets=["tags"], shard_samples=20) as writer:
        for _ in range(41):
            tokens = random.integers(0, 30, random.integers(0, 17))
            writer.write({"tokens": tokens, "tags": tokens % 3})
    for name, text in (("recipe.py", RECIPE), ("job.toml", JOB), ("worker.py", WORKER)):
        (root / name).write_text(text)
    for name, sets in KINDS.items():
        train_rank(
            load_job(root / "job.toml", sets), RunFolder(root / "runs" / f"{name}-1"), project, console=False
        )
    mpi = "train.backend=mpi"
    runs = [(f"{name}-2", [*sets, mpi]) for name, sets in KINDS.items()]
    runs.append(("parts", [PACK, mpi, "train.max_steps=3"]))
    argv = tools.mpiexec(2, [sys.executable, str(root / "worker.py"), str(root), json.dumps(runs)])
    done = tools.run(argv, tools.environment(root))
    assert done.returncode == 0, done.stdout
    train_rank(load_job(root / "job.toml", [PACK]), RunFolder(root / "runs" / "parts"), project, console=False)
    return root


def losses(root: Path, name: str) -> list[float]:
    kinds = ("train", "valid")
    return [record["loss"] for kind in kinds for record in tools.records(root, name, kind)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one(trained: Path, kind: str) -> None:
    alone, both = losses(trained, f"{kind}-1"), losses(trained, f"{kind}-2")
    assert len(alone) == 2 * 4 + 2
    assert both == pytest.approx(alone, rel=1e-5)
    weights = [load_file(trained / "runs" / f"{kind}-{n}" / "model" / "weights.safetensors") for n in (1, 2)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight)


@pytest.mark.parametrize("kind", ["ordered", "ordered-pack"])
def test_a_reproducible_run_is_the_same_bit_for_bit(trained: Path, kind: str) -> None:
    assert losses(trained, f"{kind}-1") == losses(trained, f"{kind}-2")
    files = [trained / "runs" / f"{kind}-{n}" / "model" / "weights.safetensors" for n in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_packed_is_as_padded_and_goes_on_on_other_ranks(trained: Path) -> None:
    assert losses(trained, "pack-1") == pytest.approx(losses(trained, "pad-1"), rel=1e-5)
    steps = [[r["loss"] for r in tools.records(trained, name, "train")] for name in ("parts", "pack-1")]
    assert steps[0] == pytest.approx(steps[1], rel=1e-5)
