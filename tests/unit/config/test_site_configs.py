"""The site files that come with hpcmass: each loads, and those of real machines name a source for every value."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpcmass.config import Resources, layout_of, load_site
from hpcmass.errors import ConfigError

FILES = sorted((Path(__file__).parents[3] / "site-configs").glob("*.toml"))
OURS = {"local", "devcluster"}  # of no machine that others have written about
REAL = [file for file in FILES if file.stem not in OURS]
# What the file's author decides, and no page says.
DECIDED = {"name", "default_target", "verified", "kind"}
SOURCE = re.compile(r"^# \[(?P<tag>[^\]]+)\]\s+(?P<address>https://\S+)", re.MULTILINE)
VALUE = re.compile(r"^(?P<key>[\w-]+)\s*=.*?(?:# \[(?P<tag>[^\]]+)\])?$")


def unsourced(text: str) -> list[str]:
    """The lines with a value that name no source of the head, and what else is missing there."""
    tags = {match["tag"] for match in SOURCE.finditer(text)}
    found = (
        [] if re.search(r"^# Sources, .*\b20\d\d-\d\d-\d\d\b", text, re.MULTILINE) else ["no date of reading"]
    )
    for line in text.splitlines():
        value = VALUE.match(line)
        if value and value["key"] not in DECIDED and value["tag"] not in tags:
            found.append(line)
    return found


def test_there_are_two_real_machines() -> None:
    assert {file.stem for file in REAL} >= {"lumi", "perlmutter"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_site_file_loads_and_its_targets_take_a_job(file: Path) -> None:
    site = load_site(file)
    assert site.name == file.stem
    for name, target in site.targets.items():
        if target.kind == "slurm":
            assert layout_of(Resources(ranks=2), target, name=name).nodes >= 1
            with pytest.raises(ConfigError):
                layout_of(Resources(ranks=10**9), target, name=name)


@pytest.mark.parametrize("file", REAL, ids=lambda file: file.stem)
def test_every_value_of_a_real_machine_names_its_source(file: Path) -> None:
    assert unsourced(file.read_text(encoding="utf-8")) == []
    assert load_site(file).verified is False


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_srun_is_told_its_pmi(file: Path) -> None:
    targets = load_site(file).targets
    assert [name for name, each in targets.items() if each.launcher == "srun" and each.pmi is None] == []


@pytest.mark.parametrize("file", REAL, ids=lambda file: file.stem)
def test_cores_are_no_hardware_threads(file: Path) -> None:
    """Both machines have two a core, which --cpus-per-task would count."""
    assert {each.sbatch.get("hint") for each in load_site(file).targets.values()} == {"nomultithread"}


def test_eight_ranks_on_a_gpu_node_of_lumi_have_the_cores_that_jobs_get() -> None:
    """56 of 64; a job that asks for more waits for ever."""
    target = load_site(next(file for file in REAL if file.stem == "lumi")).targets["standard-g"]
    layout = layout_of(Resources(ranks=8), target)
    assert (layout.nodes, layout.ranks_per_node, layout.threads_per_rank) == (1, 8, 7)
    with pytest.raises(ConfigError):
        layout_of(Resources(ranks=1, threads_per_rank=57), target)


def test_a_value_without_a_source_is_found() -> None:
    text = '# Sources, read on 2026-11-25:\n# [a] https://example.org/a\nkind = "slurm"\ncores = 4\ngpus = 8  # [b]\n'
    assert unsourced(text + "max_nodes = 1  # [a]\n") == ["cores = 4", "gpus = 8  # [b]"]
    assert "no date of reading" in unsourced("cores = 4\n")
