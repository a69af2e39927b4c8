"""A reproducible run: weights, optimizer, losses and metrics are the same bit for bit on 1, 2, 3 and 4 ranks."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcmass.config import Project, load_job
from hpcmass.data import shard
from hpcmass.errors import ConfigError
from hpcmass.runs import RunFolder
from hpcmass.train.rank import train_rank

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]
HOROVOD = importlib.util.find_spec("horovod") is not None

# Draws from all three generators, has running statistics, and gradients of very unequal sizes, so that the order
# of the sums shows at once.
RECIPE = """
import random
import numpy as np
import torch
from torch import nn

def build_model(params):
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.2), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(96, 3),
    )

def transform(batch, train):
    x = batch["x"] * 1.0
    if train:
        x = x + 0.1 * torch.randn_like(x)
        if random.random() < 0.5:
            x = x.flip(-1)
        x = x * np.random.uniform(0.5, 2.0)
    batch["x"] = x
    return batch
"""
JOB = """
name = "job"
recipe = "recipe.py"
[data]
train = "data/d"
valid = "data/d"
[train]
reproducible = true
micro_batches = 12
epochs = 2
global_batch = 24
clip_norm = 0.5
log_every_steps = 3
lr = 0.01
"""
SAMPLES = 67  # no multiple of the batch; the last batch has fewer samples than micro-batches


# Several runs one after the other in the same ranks: starting these is what takes long.
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
BF16 = ["train.precision=bf16", "train.optimizer=SGD", "train.optimizer_args.momentum=0.9"]
FP16 = ["train.precision=fp16", "train.last_batch=pad", "train.micro_batches=8"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reproducible") / "p"
    project = Project.create(root, "tests")
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(SAMPLES, 1, 8, 8)) * 10.0 ** rng.integers(-3, 2, (SAMPLES, 1, 1, 1))).astype(
        "float32"
    )
    np.savez(root / "raw.npz", x=x, y=rng.integers(0, 3, SAMPLES))
    shard(root / "raw.npz", project.data / "d", inputs=["x"], targets=["y"], shards=3, workers=1)
    (root / "recipe.py").write_text(RECIPE)
    (root / "job.toml").write_text(JOB)
    (root / "worker.py").write_text(WORKER)
    return root


def train(root: Path, ranks: int, *runs: tuple[str, list[str]]) -> None:
    """One run after the other; a failure fails the test. One rank is this process."""
    if ranks == 1:
        for name, sets in runs:
            train_rank(load_job(root / "job.toml", sets), RunFolder(root / "runs" / name), Project(root))
        return
    argv = tools.mpiexec(ranks, [sys.executable, str(root / "worker.py"), str(root), json.dumps(runs)])
    done = tools.run(argv, tools.environment(root), timeout=600)
    assert done.returncode == 0, done.stdout


def result(root: Path, name: str) -> dict:
    """All that a run came to: digests of the model and the newest checkpoint, and what was recorded."""
    run = root / "runs" / name
    newest = max(run.glob("checkpoints/step-*.safetensors"))
    losses = {r["step"]: r["loss"] for r in tools.records(root, name, "train")}
    valid = {r["step"]: (r["loss"], r["accuracy"]) for r in tools.records(root, name, "valid")}
    return {
        "weights": tools.digest(run / "model" / "weights.safetensors"),
        newest.name: tools.digest(newest), "losses": losses, "valid": valid,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    """Runs by name: `1` to `4` on as many ranks, by backend on 3, `parts` on 3, 1 and 4, each a part of it."""
    mpi = "train.backend=mpi"
    parts = ("parts", [mpi, "train.max_steps=2"])  # in the middle of an epoch and of a window of losses
    narrow = [("bf16-3", [*BF16, mpi]), ("fp16-3", [*FP16, mpi])]
    backends = ["torch", *(["horovod"] if HOROVOD else [])]  # Horovod last: it starts once in a process
    others = [(name, [f"train.backend={name}"]) for name in backends]
    train(root, 1, ("1", []), ("bf16-1", BF16), ("fp16-1", FP16))
    train(root, 2, ("2", [mpi]))
    train(root, 3, ("3", [mpi]), parts, *narrow, *others)
    train(root, 1, ("parts", ["train.max_steps=4"]))
    train(root, 4, ("4", [mpi]), ("parts", [mpi]))
    return root


pytestmark.append(pytest.mark.timeout(1800))  # the runs of `trained` count to whichever test asks first


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_number_of_ranks_gives_the_same_bits(trained: Path, ranks: int) -> None:
    alone = result(trained, "1")
    assert (len(alone["losses"]), len(alone["valid"])) == (2, 2)
    assert result(trained, str(ranks)) == alone
    (start,) = tools.records(trained, str(ranks), "start")
    fixed = start["training"]["reproducible"]
    assert (start["training"]["ranks"], start["training"]["backend"]) == (ranks, "mpi")
    assert (fixed["micro_batches"], fixed["threads"], fixed["warnings"]) == (12, 1, [])


@pytest.mark.parametrize("backend", ["torch", pytest.param("horovod", marks=pytest.mark.horovod)])
def test_any_backend_gives_the_same_bits(trained: Path, backend: str) -> None:
    if backend == "horovod" and not HOROVOD:
        pytest.skip("no Horovod")
    assert result(trained, backend) == result(trained, "1")
    assert tools.records(trained, backend, "start")[0]["training"]["backend"] == backend


def test_stopped_and_gone_on_with_other_ranks_it_is_the_same(trained: Path) -> None:
    assert [r["ranks"] for r in tools.records(trained, "parts", "resume")] == [1, 4]
    found, whole = result(trained, "parts"), result(trained, "1")
    del found["losses"], whole["losses"]  # each end has a record of its own, and begins a new mean
    found["valid"] = {step: found["valid"][step] for step in whole["valid"]}
    assert found == whole


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_narrow_types_momentum_and_padding_keep_it(trained: Path, name: str) -> None:
    assert result(trained, f"{name}-1") == result(trained, f"{name}-3")


def refused(root: Path, job_file: str, *sets: str) -> str:
    with pytest.raises(ConfigError) as caught:
        train_rank(load_job(root / job_file, sets), RunFolder(root / "runs" / "refused"), Project(root))
    assert not (root / "runs" / "refused").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("train.compression=bf16", "it rounds each rank's sum"),
        ("train.compile=true", "it makes other code for the shapes"),
        ("train.accumulation=2", "set train.micro_batches"),
        ("train.micro_batches=25", "has 24 samples only"),
        ("train.reproducible=false", "is for train.reproducible = true"),
    ],
)
def test_keys_that_would_break_it_are_refused(root: Path, setting: str, reason: str) -> None:
    assert reason in refused(root, "job.toml", setting)


def test_models_and_ranks_that_would_break_it_are_refused_before_anything_is_there(root: Path) -> None:
    (root / "sync.py").write_text(RECIPE.replace("nn.BatchNorm2d(6)", "nn.SyncBatchNorm(6)"))
    (root / "sync.toml").write_text(JOB.replace("recipe.py", "sync.py"))
    assert "batch norm over all ranks '1'" in refused(root, "sync.toml")
    argv = tools.words(root, "refused", "train.micro_batches=1")
    done = tools.run(tools.mpiexec(2, argv), tools.environment(root))
    assert done.returncode == 2
    assert done.stdout.count("a reproducible run of 1 micro-batches takes as many ranks at most, not 2") == 1
    assert not (root / "runs" / "refused").exists()


def test_another_number_of_threads_is_refused_and_another_cpu_is_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(root, 1, ("t", ["train.max_steps=1"]))
    with pytest.raises(ConfigError, match="begun with 1 threads a rank, and now there are 2"):
        train(root, 1, ("t", ["train.max_steps=2", "resources.threads_per_rank=2"]))
    file = root / "runs" / "t" / "reproducible.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cpu": "another"}))
    train(root, 1, ("t", ["train.max_steps=2"]))
    assert "warning: the run was begun with the CPU another" in capsys.readouterr().err
    assert tools.records(root, "t", "start")[-1]["training"]["reproducible"]["warnings"]
