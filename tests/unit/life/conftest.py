from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).parent)]

from life_lab import RECIPE, Answer, Lab  # noqa: E402

from hpcmass.cli.root import run as run_command  # noqa: E402
from hpcmass.config import Project  # noqa: E402
from hpcmass.data import shard  # noqa: E402


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lab:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HPCMASS_PROJECT", raising=False)
    project = Project.create(tmp_path / "lab")
    monkeypatch.chdir(project.root)
    rng = np.random.default_rng(0)
    label = np.arange(240) % 3
    image = rng.integers(0, 100, (240, 4, 4)).astype(np.uint8)
    image[np.arange(240), 0, label] = 255
    site = (label == 2).astype(np.int64)
    np.savez(project.root / "raw.npz", image=image, label=label, site=site)
    shard(
        [project.root / "raw.npz"], project.data / "d", shards=2, workers=1, meta=["site"],
        splits={"train": 0.5, "test": 0.5}, strategy="stratified", by="label",
    )  # fmt: skip
    (project.root / "recipe.py").write_text(RECIPE)

    def call(*words: str) -> Answer:
        capfd.readouterr()
        code = run_command(list(words))
        captured = capfd.readouterr()
        return Answer(code, captured.out, captured.err)

    return Lab(project, call)
