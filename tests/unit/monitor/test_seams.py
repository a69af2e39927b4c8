"""Where the monitor meets what others made: data that do not fit a model, a deployment that was never looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcmass.config import Project
from hpcmass.data import shard
from hpcmass.errors import ConfigError, NotFound
from hpcmass.monitor.facts import write_facts
from hpcmass.monitor.features import Side, Watched
from hpcmass.monitor.windows import Window, WindowFiles
from hpcmass.serve.interfaces import Field, Interface
from hpcmass.workflow.drifting import Watched as Found
from hpcmass.workflow.monitoring import MonitorOptions, watch
from hpcmass.workflow.retrain import Asked, retrain


class Odd:
    """A model that its training data do not fit, as those are before a recipe has changed them."""

    platform = "odd"
    interface = Interface((Field("x", "float32", (9,)),), (Field("y", "float32", ()),))

    def enter(self, threads: int) -> None:
        pass

    def run(self, inputs):  # type: ignore[no-untyped-def]
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (64x4 and 9x3)")


def test_a_replica_is_not_kept_from_serving_by_what_watches_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((50, 4), np.float32), y=np.zeros(50, np.float32))
    shard(tmp_path / "data.npz", tmp_path / "data", workers=1)
    told: list[str] = []
    options = MonitorOptions(folder=tmp_path / "m", reference=str(tmp_path / "data"))
    _, baseline = watch(options, "1", "odd@1", None, told.append)
    assert baseline(Odd()) is None
    assert "no reference" in told[0]
    assert "cannot be multiplied" in told[0]


def test_training_anew_what_was_never_looked_at(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p")
    folder = tmp_path / "m"
    with pytest.raises(ConfigError, match="the model is not known"):
        retrain(Found(folder), Asked(anyway=True), project)
    WindowFiles(folder, "r-0001").append(Window("r-0001", "2", 0.0, 60.0, 5, 5))
    write_facts(folder, "2", Watched((Side("x", (4,)),), (Side("y", ()),)), "shop")
    with pytest.raises(NotFound, match="shop"):  # it is known which one is meant
        retrain(Found(folder), Asked(anyway=True), project)
