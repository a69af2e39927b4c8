"""`import hpcmass` and `hpcmass --help` load nothing heavy: that, not a clock, is what keeps them quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "torch", "numpy", "h5py", "pydantic", "parsl", "optuna", "sklearn", "scipy", "pandas", "pyarrow",
    "matplotlib", "mpi4py", "horovod", "skops", "submitit", "tensorboard", "safetensors", "rich", "onnx", "onnxruntime",
}  # fmt: skip


def loaded_after(statement: str) -> set[str]:
    """The top-level packages in a fresh interpreter after a statement."""
    code = f"import sys, json\n{statement}\nprint()\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "statement",
    [
        "import hpcmass; hpcmass.__all__; dir(hpcmass)",
        "import hpcmass; hpcmass.HpcmassError",
        "import hpcmass.__main__",
        "from hpcmass.cli.root import run; assert run(['--help']) == 0",
        "import hpcmass.files, hpcmass.runs, hpcmass.launch, hpcmass.catalogue",
    ],
)
def test_nothing_heavy_is_loaded(statement: str) -> None:
    heavy = HEAVY - {"pydantic"} if "runs" in statement else HEAVY
    assert loaded_after(statement) & heavy == set()


@pytest.mark.parametrize("words", [["catalogue", "list"], ["catalogue", "verify"], ["why", "first"]])
def test_commands_that_only_read_load_no_torch(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "hpcmass.toml").write_text('name = "lab"\n')
    (tmp_path / "catalogue").mkdir()
    statement = f"from hpcmass.cli.root import run; run({[*words, '--project', str(tmp_path)]!r})"
    assert "torch" not in loaded_after(statement)


def test_a_heavy_import_would_be_seen() -> None:
    assert "numpy" in loaded_after("import numpy")
