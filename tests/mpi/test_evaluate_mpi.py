"""`mpiexec -n N hpcmass evaluate`: the same numbers as one process."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hpcmass.config import Project
from hpcmass.data import open_dataset, shard

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]

RECIPE = """
import torch


def build_model(params):
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a dataset of 700 samples, three batches, and two models."""
    import torch

    from hpcmass.train.bundle_writer import write_torch_bundle
    from hpcmass.train.recipe import load_recipe

    project = Project.create(tmp_path_factory.mktemp("evaluate") / "lab")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 6)).astype(np.float32)
    np.savez(project.root / "raw.npz", x=x, label=x[:, :3].argmax(1), site=rng.integers(0, 2, 700))
    shard([project.root / "raw.npz"], project.data / "d", shards=2, workers=1, meta=["site"])
    (project.root / "recipe.py").write_text(RECIPE)
    recipe, data = load_recipe(project.root / "recipe.py"), open_dataset(project.data / "d")
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = recipe.build_model({})
        write_torch_bundle(project.root / f"m{seed}", model, recipe, {}, data, torch.zeros(2, 3))
    return project.root


def evaluate(root: Path, ranks: int, *words: str) -> tuple[int, str]:
    argv = [sys.executable, "-m", "hpcmass", "evaluate", *words, "--project", str(root)]
    environment = {**tools.environment(root), "OMP_NUM_THREADS": "1"}
    done = tools.run(tools.mpiexec(ranks, argv) if ranks else argv, environment)
    return done.returncode, done.stdout


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_do_not_show(root: Path, ranks: int) -> None:
    words = (
        str(root / "m0"), str(root / "data" / "d"), "--json", "--slice", "site", "--noise", "0.3", "--missing", "0.2",
        "--against", str(root / "m1"),
    )  # fmt: skip
    code, alone = evaluate(root, 0, *words)
    assert code == 0, alone
    code, together = evaluate(root, ranks, *words)
    assert code == 0, together
    found = json.loads(together[together.index("{") :])
    assert found == json.loads(alone)
    assert found["n"] == 700
    assert len(found["slices"]) == 4


def test_a_bad_word_is_said_once_and_ends_all(root: Path) -> None:
    code, told = evaluate(root, 2, str(root / "m0"), str(root / "data" / "d"), "--slice", "nothing")
    assert code != 0
    assert told.count("there is no field 'nothing' to slice by") == 1, told
    assert "Traceback" not in told
