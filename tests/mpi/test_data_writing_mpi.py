"""Four ranks under mpiexec write one dataset; killed and started again, the same one."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmass.data import open_dataset

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

PRODUCER = Path(__file__).with_name("shard_producer.py")
# Reads a dataset with nothing of ours, and prints the numbers of its samples.
READER = """
import json, sys, h5py
from pathlib import Path
folder = Path(sys.argv[1])
manifest = json.loads(max(folder.glob("manifest-*.json")).read_text())
numbers = []
for shard in manifest["shards"]:
    with h5py.File(folder / shard["file"]) as file:
        assert file["x"].shape == (shard["samples"], 4)
        assert (file["x"][:, 3] == file["number"][:]).all()
        numbers += file["number"][:].tolist()
assert "hpcmass" not in sys.modules
print(json.dumps(numbers))
"""

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]


def content(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        found[path.name] = {**json.loads(data), "created": 0} if path.suffix == ".json" else data
    return found


def produce(root: Path, name: str, *more: str, ranks: int = 4) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(PRODUCER), str(root / name), "99", *more]
    return tools.run(tools.mpiexec(ranks, words), tools.environment(root))


def test_four_ranks_write_one_dataset_and_a_killed_one_is_started_again(tmp_path: Path) -> None:
    done = produce(tmp_path, "whole")
    assert done.returncode == 0, done.stdout
    plain = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(tmp_path / "whole")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(plain.stdout) == list(range(99))
    assert len(open_dataset(tmp_path / "whole").manifest.shards) == 15

    cut = produce(tmp_path, "cut", "19", "2")
    assert cut.returncode != 0, cut.stdout
    assert [path for path in (tmp_path / "cut").iterdir() if not path.name.startswith(".")] == []
    again = produce(tmp_path, "cut")
    assert again.returncode == 0, again.stdout
    assert "rank 2 of 4 has 16" in again.stdout
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    # Once more: there is nothing to do.
    assert produce(tmp_path, "cut").returncode == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
