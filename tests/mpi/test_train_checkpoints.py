"""Checkpoints in parts by several ranks: read on any number of ranks, and one rank's error is everyone's."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from hpcmass.train import checkpoint

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_checkpoint_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_checkpoint_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]

# A rank whose files may not grow beyond a limit: what it meets with is the system's own error.
LIMITED = """
import resource
def limit():
    if ENV.get("LIMIT_RANK") == RANK:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
"""


def project(root: Path) -> Path:
    made = tools.make_project(root)
    text = tools.RECIPE.replace("Linear(6, 8)", "Linear(6, 4096)").replace("Linear(8, 2)", "Linear(4096, 2)")
    text = text.replace("def build_model(params):\n", LIMITED + "\ndef build_model(params):\n    limit()\n")
    (made / "recipe.py").write_text(text)
    return made


def start(root: Path, name: str, ranks: int, *sets: str, **more: str):
    backend = "mpi" if ranks > 1 else "single"
    words = tools.words(root, name, f"train.backend={backend}", "train.checkpoint_every_steps=2", *sets)
    return tools.run(tools.mpiexec(ranks, words), tools.environment(root, **more), timeout=600)


def commits(root: Path, name: str) -> list[checkpoint.Commit]:
    return checkpoint.commits(root / "runs" / name / "checkpoints")


def flat(state: dict, path: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in state.items():
        found |= flat(value, f"{path}/{key}") if isinstance(value, dict) else {f"{path}/{key}": value}
    return found


def test_parts_hold_the_same_as_one_file_and_any_number_of_ranks_goes_on(tmp_path: Path) -> None:
    root = project(tmp_path / "p")
    for name, limit in (("one", 1024), ("parts", 0)):
        done = start(root, name, 2, f"train.checkpoint_shard_mib={limit}", "train.epochs=1")
        assert done.returncode == 0, done.stdout
    one, parts = commits(root, "one")[-1], commits(root, "parts")[-1]
    assert (len(one.parts), len(parts.parts), one.step, parts.step) == (1, 2, 6, 6)
    assert sum(part.bytes for part in parts.parts) > 200_000
    sizes = [part.bytes for part in parts.parts]
    assert max(sizes) < 2 * min(sizes), "one rank wrote nearly all"
    first, second = flat(checkpoint.load(one)), flat(checkpoint.load(parts))
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name], (
            name
        )
    for epochs, ranks in ((2, 3), (3, 1)):
        done = start(root, "parts", ranks, "train.checkpoint_shard_mib=0", f"train.epochs={epochs}")
        assert done.returncode == 0, done.stdout
        assert tools.records(root, "parts", "resume")[-1]["from_step"] == 6 * (epochs - 1)
        assert len(commits(root, "parts")[-1].parts) == ranks
    assert len(list((root / "runs/parts/checkpoints").iterdir())) == sum(
        1 + len(commit.parts) for commit in commits(root, "parts")
    )


@pytest.mark.parametrize("background", ["true", "false"])
def test_one_rank_that_cannot_write_ends_all_with_its_reason(background: str, tmp_path: Path) -> None:
    root = project(tmp_path / "p")
    sets = ["train.checkpoint_shard_mib=0", f"train.checkpoint_background={background}", "train.epochs=2"]
    done = start(root, "r", 2, *sets, LIMIT_RANK="1")
    assert done.returncode == 2, done.stdout
    assert done.stdout.count("cannot write the file") == 1, done.stdout
    assert "a file size limit was hit" in done.stdout
    said = tools.status(root, "r")
    assert said["state"] == "FAILED"
    assert "cannot write the file" in said["reason"]
    assert [(e["rank"], e["error"]) for e in tools.errors(root, "r")] == [(0, "StorageError")]
    folder = root / "runs" / "r" / "checkpoints"
    assert not list(folder.glob("*.json"))
    done = start(root, "r", 2, *sets)
    assert done.returncode == 0, done.stdout
    kept = {p.name for c in commits(root, "r") for p in (c.json_path, *(part.path for part in c.parts))}
    assert {path.name for path in folder.iterdir()} == kept


def test_weights_to_begin_with_reach_every_rank(tmp_path: Path) -> None:
    root = project(tmp_path / "p")
    model = torch.nn.Sequential(torch.nn.Linear(6, 4096), torch.nn.Tanh(), torch.nn.Linear(4096, 2))
    torch.save({f"module.{name}": value for name, value in model.state_dict().items()}, root / "w.pt")
    sets = ["train.init_from=w.pt", "train.max_steps=2", "train.lr=1e-30", "train.optimizer=SGD"]
    done = start(root, "r", 2, *sets)
    assert done.returncode == 0, done.stdout
    assert "4 of 4 tensors" in done.stdout
    state = checkpoint.load(commits(root, "r")[-1])["model"]
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    told = {path.read_text() for path in (root / "tell").glob("weights-2-*")}
    assert len(told) == 1
    assert json.loads((root / "runs/r/init.json").read_text())["what"].endswith("w.pt")
