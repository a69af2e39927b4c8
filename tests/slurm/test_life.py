"""The life of models on a real Slurm: many trained by one sweep, the best promoted, deployed, updated, trained on."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcmass.config import Project
from hpcmass.devcluster import Cluster
from hpcmass.sweep.records import Outcome, TrialSpec, read_trials
from hpcmass.workflow.registry import open_catalogue

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from parsl_toys import blocks, site_of, slots, until

from tests.unit.serve.deploy_tools import Deployed

pytestmark = pytest.mark.slurm
FAMILIES = ("mlp", "cnn", "linear", "forest")
RECIPE = """
import torch
from torch import nn

def build_model(params):
    family = params["family"]
    if family == "forest":
        from sklearn.ensemble import RandomForestClassifier
        return RandomForestClassifier(n_estimators=params["trees"], random_state=0)
    if family == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    width = params["width"]
    if family == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    return nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(width * 64, 10))
"""
JOB = """
name = "digits"
recipe = "recipe.py"

[data]
train = "data/digits/train"
valid = "data/digits/valid"
test = "data/digits/test"

[params]
family = "mlp"

[train]
epochs = 8
global_batch = 64
lr = 1e-2
seed = 1

[sweep]
sampler = "random"
trials = {trials}
parallel = 8
targets = ["cpu", "gpu"]
metric = "accuracy"
direction = "maximize"
seed = 1

[sweep.space]
family = {{ type = "categorical", choices = ["mlp", "cnn", "linear", "forest"] }}
width = {{ type = "categorical", choices = [8, 16, 32], when = {{ family = ["mlp", "cnn"] }} }}
trees = {{ type = "int", low = 10, high = 60, when = {{ family = "forest" }} }}
"train.lr" = {{ type = "float", low = 3e-3, high = 3e-2, log = true, when = {{ family = ["mlp", "cnn", "linear"] }} }}
"""


class Lab:
    """A project, and what its user does in its folder by `hpcmass`."""

    def __init__(self, root: Path, cluster: Cluster) -> None:
        self.root, self.env = root, cluster.env

    def hpcmass(self, *words: str, ends: int = 0, wait_s: float = 600) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hpcmass", *words],
            capture_output=True, text=True, timeout=wait_s, cwd=self.root, env=self.env, check=False,
        )  # fmt: skip
        assert done.returncode == ends, f"{words}\n{done.stdout}{done.stderr}"
        return done.stdout

    def keep(self, run: Path, name: str) -> str:
        """Register a trial's model, and put it in production through the gate; its version."""
        self.hpcmass("catalogue", "register", str(run), "--name", name, "--evaluate", "data/digits/test")
        newest = max(one.version for one in open_catalogue(Project(self.root)).list(name))
        return f"{name}@{newest}"

    @contextlib.contextmanager
    def load(self, name: str, rate: float, *more: str) -> Iterator[dict[str, Any]]:
        """Open load from another process; the dictionary has its account afterwards."""
        account: dict[str, Any] = {}
        words = [str(Path(__file__).with_name("life_client.py")), str(self.root), name, str(rate), *more]
        child = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.env
        )
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n"
            yield account
            account.update(json.loads(child.communicate(timeout=150)[0]))
            assert account["failed"] == [], account
            assert account["wrong"] == 0, account
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


@pytest.fixture
def lab(cluster: Cluster, slurm_env: dict[str, str], tmp_path: Path) -> Lab:
    from sklearn.datasets import load_digits

    lab = Lab(tmp_path / "lab", cluster)
    Project.create(lab.root, "tests")
    digits = load_digits()
    images = digits.images.astype("float32") / 16
    np.savez(lab.root / "raw.npz", image=images, label=digits.target.astype("int64"))
    lab.hpcmass("shard", "raw.npz", "--out", "data/digits", "--split", "train=0.6,valid=0.2,test=0.2",
                "--strategy", "stratified", "--by", "label")  # fmt: skip
    (lab.root / "recipe.py").write_text(RECIPE)
    return lab


def ranked(study: Path) -> dict[str, list[Path]]:
    """The run folders of each family's trials, the best first."""
    found: dict[str, list[tuple[float, Path]]] = {}
    trials: list[tuple[TrialSpec, Outcome | None]] = read_trials(study)
    for spec, outcome in trials:
        assert outcome is not None
        assert outcome.state == "complete", outcome
        found.setdefault(spec.params["family"], []).append((-float(outcome.value), spec.path))
    return {family: [path for _, path in sorted(those)] for family, those in found.items()}


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("trials", [16, pytest.param(60, marks=pytest.mark.soak)])
def test_from_a_sweep_to_a_model_that_is_trained_on(lab: Lab, cluster: Cluster, trials: int) -> None:
    root = lab.root
    (root / "job.toml").write_text(JOB.format(trials=trials))
    site = site_of(cluster, root)

    # Many models of four kinds by one sweep on two targets.
    lab.hpcmass("sweep", "job.toml", "--site", site, wait_s=1800)
    study = root / "studies" / "digits"
    runs = ranked(study)
    assert sum(len(those) for those in runs.values()) == trials
    assert set(runs) == set(FAMILIES)
    assert {str(slot["target"]) for slot in slots(study)} == {"cpu", "gpu"}
    until(lambda: blocks(cluster) == [], 240, "blocks are left")

    # The best of each goes through the gate; one that nothing passes does not.
    for family, those in runs.items():
        version = lab.keep(those[0], f"digits-{family}")
        lab.hpcmass(
            "catalogue", "promote", version, "--to", "production", "--require", "accuracy >= 0.85 on test"
        )
    lab.hpcmass("catalogue", "promote", "digits-mlp@1", "--to", "champion", "--require", "accuracy >= 1.1 on test",
                ends=2)  # fmt: skip
    assert "champion" not in open_catalogue(Project(root)).aliases("digits-mlp")

    made = {family: Deployed(root, f"digits-{family}") for family in ("mlp", "cnn", "forest")}
    try:
        live(lab, made, runs, site)
    finally:
        for one in made.values():
            one.end()


def live(lab: Lab, made: dict[str, Deployed], runs: dict[str, list[Path]], site: str) -> None:
    """Three deployments under load, all the while."""
    more = {"mlp": ("--follow", "production", "--window", "1", "--keep-samples", "5000")}
    for family, one in made.items():
        one.deploy(
            f"{one.name}@production", "--site", site, "--target", "cpu", "--target", "gpu", "--replicas", "1:2",
            "--slo-p99-ms", "200", "--time", "10m", "--anybody", "--wait", "170", *more.get(family, ()),
        )  # fmt: skip
    mlp, cnn, forest = made["mlp"], made["cnn"], made["forest"]
    accounts = []
    with contextlib.ExitStack() as stack:
        accounts += [stack.enter_context(lab.load(one.name, 15)) for one in made.values()]
        with lab.load(cnn.name, 15) as doubled:
            # A second version takes over; and of another one, it is taken back.
            second = {
                family: lab.keep((2 * runs[family])[1], f"digits-{family}") for family in ("cnn", "forest")
            }
            cnn.deploy(second["cnn"])
            cnn.until(
                lambda: cnn.ready(second["cnn"]) and len(cnn.ready()) == len(cnn.ready(second["cnn"])), 170
            )
            forest.deploy(second["forest"])
            forest.until(lambda: forest.ready(second["forest"]), 170)
            lab.hpcmass("rollback", forest.name)
            forest.until(lambda: forest.ready("digits-forest@1") and not forest.ready(second["forest"]), 170)
        accounts.append(doubled)  # and the load is halved

        # The world changes for one of them: seen, trained on with what came, and served by who follows.
        with lab.load(mlp.name, 40, "0.5") as shifted:
            mlp.until(lambda: kept(mlp) >= 300, 170)
        accounts.append(shifted)
        assert shifted["right"] / shifted["sent"] < 0.9, shifted
        verdict = json.loads(lab.hpcmass("drift", mlp.name, "--since", "10m", "--json", ends=1))
        lab.hpcmass("retrain", mlp.name)
        mlp.until(lambda: mlp.ready("digits-mlp@2") and not mlp.ready("digits-mlp@1"), 170)
        with lab.load(mlp.name, 40, "0.5") as after:
            mlp.until(lambda: kept(mlp) >= 500, 170)
        accounts.append(after)
    print(json.dumps({"accounts": accounts, "verdict": verdict}))
    assert all(account["sent"] > 50 for account in accounts), accounts
    assert after["right"] / after["sent"] > shifted["right"] / shifted["sent"] + 0.02, (shifted, after)
    catalogue = open_catalogue(Project(lab.root))
    assert catalogue.get("digits-mlp@production").version == 2


def kept(one: Deployed) -> int:
    """How many labels have come."""
    return sum(file.read_bytes().count(b'["') for file in (one.folder.path / "monitor").glob("labels-*"))
