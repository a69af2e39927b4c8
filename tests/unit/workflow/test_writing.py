"""Writing as people ask for it: who a rank is by its launcher, Parsl apps, and the command line."""

import json
from pathlib import Path

import numpy as np
import parsl
import pytest

import hpcmass
from hpcmass.cli.root import run
from hpcmass.data import open_dataset
from hpcmass.errors import DataError
from hpcmass.workflow.writing import commit_ranks

FIELDS = {"x": ("float32", 3), "label": "int64"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "3"}
SITE = """
name = "mine"
default_target = "here"
[targets.here]
kind = "local"
cores = 2
"""


def write(folder: Path, count: int, **options: object) -> hpcmass.ShardWriter:
    with hpcmass.ShardWriter(folder, FIELDS, **options) as writer:
        writer.write_batch({"x": np.full((count, 3), writer.rank), "label": np.arange(count) % 2})
    return writer


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1)),
        (SLURM, (2, 3)),
        ({**SLURM, "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, (1, 2)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)),
    ],
)
def test_a_rank_is_who_its_launcher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict, place: tuple
) -> None:
    for name in ("OMPI_COMM_WORLD_RANK", "RANK", "SLURM_STEP_ID", "PMIX_RANK", "PMI_RANK", "HPCMASS_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    writer = write(tmp_path / "d", 2)
    assert (writer.rank, writer.ranks) == place
    assert write(tmp_path / "named", 2, rank=0, ranks=1).manifest.samples == 2
    with pytest.raises(DataError, match="given together"):
        write(tmp_path / "half", 2, rank=1)


def test_parsl_apps_write_one_dataset(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SITE)

    def produce(folder: str, rank: int, ranks: int) -> int:
        import numpy as np

        import hpcmass

        with hpcmass.ShardWriter(folder, {"x": "float32", "label": "int64"}, rank=rank, ranks=ranks) as writer:
            writer.write_batch({"x": np.full(rank + 1, rank), "label": np.zeros(rank + 1, int)})
        return writer.samples

    site = hpcmass.Site.load(tmp_path / "mine.toml")
    with parsl.load(site.parsl_config(run_dir=tmp_path / "parsl")):
        app = parsl.python_app(produce, cache=False)
        assert [one.result() for one in [app(str(tmp_path / "d"), rank, 3) for rank in (2, 1, 0)]] == [3, 2, 1]
    dataset = open_dataset(tmp_path / "d")
    assert dataset.batch(range(6))["x"].tolist() == [0, 1, 1, 2, 2, 2]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "d"
    for rank in (1, 0):
        write(folder, 4, rank=rank, ranks=2, publish=rank == 1)
    assert run(["data", "commit", str(folder)]) == 0
    first = open_dataset(folder).id
    np.savez(tmp_path / "more.npz", x=np.ones((3, 3), np.float32), label=np.ones(3, np.int64))
    assert (
        run(["data", "append", str(folder), str(tmp_path / "more.npz"), "--name", "more", "--shards", "3"]) == 0
    )
    assert run(["data", "append", str(folder), str(tmp_path / "more.npz"), "--name", "more"]) == 2
    assert "were appended before (as 'more')" in capsys.readouterr().err
    assert run(["data", "reshard", str(folder), str(tmp_path / "new"), "--shard-samples", "6"]) == 0
    assert run(["data", "verify", str(tmp_path / "new")]) == 0
    capsys.readouterr()
    assert run(["data", "show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert f"{first[:12]} (8 samples)" in shown
    assert run(["data", "show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 11
    assert [one.samples for one in open_dataset(tmp_path / "new").manifest.shards] == [6, 5]
    assert run(["data", "reshard", str(folder), str(tmp_path / "new")]) == 2
    assert run(["data", "commit", str(tmp_path)]) == 2
    assert "nothing is being written here" in capsys.readouterr().err


def test_commit_asks_which_addition_is_meant(tmp_path: Path) -> None:
    write(tmp_path / "d", 4, rank=0, ranks=1)
    for name in ("a", "b"):
        with hpcmass.ShardWriter(tmp_path / "d", append=name, rank=0, ranks=1, publish=False) as writer:
            writer.write({"x": [1, 2, 3], "label": 1})
    with pytest.raises(DataError, match="several additions are being written: a, b"):
        commit_ranks(tmp_path / "d")
    assert commit_ranks(tmp_path / "d", "b").samples == 5
    assert commit_ranks(tmp_path / "d").samples == 6
    assert [part["name"] for part in open_dataset(tmp_path / "d").manifest.source["parts"]] == [None, "b", "a"]
