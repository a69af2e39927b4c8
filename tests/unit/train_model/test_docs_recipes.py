"""The examples of docs/recipes.md, executed on real data: the handwritten digits of scikit-learn."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from hpcmass.config.job import Job
from hpcmass.runs import RunFolder
from hpcmass.train.bundle_writer import write_torch_bundle
from hpcmass.train.estimator import fit_estimator
from hpcmass.train.inputs import forward, prepare
from hpcmass.train.model import load_bundle
from hpcmass.train.recipe import Recipe, load_recipe

PAGE = Path(__file__).parents[3] / "docs" / "recipes.md"
TEST = slice(1300, None)


class Alone:
    rank, size = 0, 1

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return value


@pytest.fixture
def recipe(request: pytest.FixtureRequest, write_recipe: Callable[..., Path]) -> Recipe:
    pattern = rf"<!-- recipe: {request.param} -->\n```python\n(.*?)```"
    found = re.search(pattern, PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{PAGE.name} has no example {request.param!r}"
    return load_recipe(write_recipe(found[1]))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return (data.images * 15.9).astype(np.uint8), data.target.astype(np.int64)


@pytest.mark.parametrize("recipe", ["torch"], indirect=True)
def test_the_torch_example(recipe: Recipe, digits: Any, make: Any, tmp_path: Path) -> None:
    images, labels = digits
    train = make["dataset"](
        {"image": (images[:1300], "input"), "label": (labels[:1300], "target")}, {"label": [*"0123456789"]}
    )
    torch.manual_seed(0)
    model = recipe.build_model({"width": 16})
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for epoch in range(8):
        for batch in train.batches(64, order="global", epoch=epoch):
            ready = prepare(batch, recipe, ["image"], ["label"], train=True)
            optimizer.zero_grad()
            recipe.loss(forward(model, recipe, ready.inputs), ready.targets).backward()
            optimizer.step()
    folder = write_torch_bundle(tmp_path / "m", model, recipe, {"width": 16}, train, torch.zeros(1, 10))
    loaded = load_bundle(folder)
    assert loaded(images[TEST]).shape == (497, 10)
    assert (loaded.predict(images[TEST]) == labels[TEST]).mean() > 0.9


@pytest.mark.parametrize("recipe", ["estimator"], indirect=True)
def test_the_estimator_example(recipe: Recipe, digits: Any, make: Any, tmp_path: Path) -> None:
    images, labels = digits
    train, valid = (
        make["dataset"]({"image": (images[part], "input"), "label": (labels[part], "target")})
        for part in (slice(0, 1300), TEST)
    )
    job = Job.model_validate({"name": "j", "recipe": "r.py", "data": {"train": "t"}, "params": {"trees": 50}})
    run = RunFolder(tmp_path / "run")
    lines: list[str] = []
    metrics = fit_estimator(
        recipe.build_model(job.params), recipe, job, train, valid, run, Alone(), say=lines.append
    )
    assert metrics["accuracy"] > 0.9
    loaded = load_bundle(run.model)
    assert (loaded.predict(images[TEST]) == labels[TEST]).mean() == pytest.approx(metrics["accuracy"])
    assert loaded.classes == [*"0123456789"]
    assert "1300 samples" in lines[0]
