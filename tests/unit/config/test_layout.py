"""Durations, and where the ranks of a run lie on a target's nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hpcmass.config import (
    Resources,
    Site,
    Target,
    layout_of,
    load_site,
    parse_duration,
    site_to_toml,
    slurm_time,
)
from hpcmass.errors import ConfigError

ROOT = Path(__file__).parents[3]
NODE = Target(kind="slurm", cores=8, gpus=2, memory_gb=16.0, max_nodes=4, max_time="2h")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("1d12h", 129600), ("01:30:00", 5400), ("2-12:00:00", 216000), ("1-06:00", 108000)],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "1:30", "0m", "-5m", "1h; rm -r /", "1 h", "h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="no duration"):
        parse_duration(text)


@given(st.integers(1, 100 * 86400))
def test_slurm_time_reads_back(seconds: int) -> None:
    assert parse_duration(slurm_time(seconds)) == seconds


def test_as_few_nodes_as_it_takes() -> None:
    cpu = Target(kind="slurm", cores=4)
    found = layout_of(Resources(ranks=5), cpu)
    assert (found.nodes, found.ranks_per_node, found.threads_per_rank) == (2, 3, 1)
    assert layout_of(Resources(ranks=2, threads_per_rank=4), cpu).nodes == 2
    assert layout_of(Resources(ranks=2, nodes=2), cpu).ranks_per_node == 1


def test_gpus_place_ranks_too() -> None:
    found = layout_of(Resources(ranks=4), NODE)
    assert (found.nodes, found.ranks_per_node, found.gpus_per_node, found.threads_per_rank) == (2, 2, 2, 4)
    assert layout_of(Resources(ranks=4, gpus_per_rank=0), NODE).nodes == 1


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        ({"ranks": 9, "threads_per_rank": 9}, "threads_per_rank"),
        ({"gpus_per_rank": 3}, "gpus_per_rank"),
        ({"ranks": 2, "nodes": 3}, "nodes"),
        ({"ranks": 9, "nodes": 1, "gpus_per_rank": 0}, "nodes"),
        ({"ranks": 10}, "ranks"),
        ({"memory_gb": 17.0}, "memory_gb"),
        ({"time": "3h"}, "time"),
    ],
)
def test_what_the_target_cannot_give_is_refused_by_its_key(asked: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layout_of(Resources.model_validate(asked), NODE, name="big")
    assert caught.value.where == f"resources.{key}"
    assert "big" in str(caught.value) or key == "nodes"


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 16) | st.none())
def test_every_rank_has_its_cores(ranks: int, cores: int, threads: int | None) -> None:
    target = Target(kind="slurm", cores=cores)
    try:
        found = layout_of(Resources(ranks=ranks, threads_per_rank=threads), target)
    except ConfigError:
        assert threads is not None
        assert threads > cores
        return
    assert found.nodes * found.ranks_per_node >= ranks
    assert found.ranks_per_node * found.threads_per_rank <= cores


def test_slurm_keys_belong_to_slurm_targets() -> None:
    with pytest.raises(ValidationError, match="partition"):
        Target(partition="cpu")
    with pytest.raises(ValidationError, match="cores"):
        Target(kind="slurm", partition="cpu")


def test_no_value_spans_lines() -> None:
    with pytest.raises(ValidationError, match="one line"):
        Target(kind="slurm", cores=1, partition="cpu\n#SBATCH --uid=0")


def test_the_development_clusters_site_file() -> None:
    site = load_site(ROOT / "site-configs" / "devcluster.toml")
    assert set(site.targets) == {"cpu", "gpu", "fpga", "preempt"}
    assert layout_of(Resources(ranks=4), site.targets["gpu"]).nodes == 2


@pytest.mark.parametrize("site", [Site.local(), load_site(ROOT / "site-configs" / "devcluster.toml")])
def test_a_site_written_down_reads_back(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(site_to_toml(site), encoding="utf-8")
    assert load_site(file) == site
