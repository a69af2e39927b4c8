"""`mpiexec -n N hpcmass predict … --out DIR`: the same rows for any number of ranks, killed ones among them."""

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

RANK = Path(__file__).with_name("predict_rank.py")
N = 3000
RECIPE = """
import torch


def build_model(params):
    return torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
"""

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a dataset, a model, and what one process predicts."""
    import torch

    from hpcmass.evaluate.batch import predict_dataset
    from hpcmass.train.bundle_writer import write_torch_bundle
    from hpcmass.train.recipe import load_recipe

    project = Project.create(tmp_path_factory.mktemp("predict") / "lab")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 6)).astype(np.float32)
    np.savez(project.root / "raw.npz", x=x, label=x[:, :3].argmax(1), key=np.arange(N)[::-1])
    shard([project.root / "raw.npz"], project.data / "d", shards=2, workers=1, meta=["key"])
    (project.root / "recipe.py").write_text(RECIPE)
    recipe, data = load_recipe(project.root / "recipe.py"), open_dataset(project.data / "d")
    torch.manual_seed(0)
    write_torch_bundle(project.root / "m", recipe.build_model({}), recipe, {}, data, torch.zeros(2, 3))
    for kind in ("hdf5", "parquet"):
        predict_dataset(project.root / "m", project.data / "d", project.root / f"one-{kind}", kind=kind)
    return project.root


def words(root: Path, out: str, kind: str) -> list[str]:
    paths = [str(root / "m"), str(root / "data" / "d"), "--out", str(root / out)]
    return ["predict", *paths, "--format", kind, "--workers", "1", "--project", str(root)]


def content(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        found[path.name] = {**json.loads(data), "created": 0} if path.suffix == ".json" else data
    return found


@pytest.mark.parametrize(("ranks", "kind"), [(2, "hdf5"), (3, "parquet")])
def test_ranks_do_not_show(root: Path, ranks: int, kind: str) -> None:
    argv = [sys.executable, "-m", "hpcmass", *words(root, f"by-{ranks}", kind)]
    done = tools.run(tools.mpiexec(ranks, argv), tools.environment(root))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("3000 predictions in") == 1, "one rank tells of the result"
    assert content(root / f"by-{ranks}") == content(root / f"one-{kind}")


@pytest.mark.parametrize(("victim", "kind"), [(0, "hdf5"), (1, "parquet")])
def test_after_a_rank_was_killed_another_number_goes_on(root: Path, victim: int, kind: str) -> None:
    out = f"killed-{victim}"
    argv = [sys.executable, str(RANK), str(victim), *words(root, out, kind)]
    cut = tools.run(tools.mpiexec(2, argv), tools.environment(root))
    assert cut.returncode != 0
    assert not list((root / out).glob("manifest*")), "nothing half"
    again = tools.run([sys.executable, "-m", "hpcmass", *words(root, out, kind)], tools.environment(root))
    assert again.returncode == 0, again.stdout
    assert content(root / out) == content(root / f"one-{kind}")
