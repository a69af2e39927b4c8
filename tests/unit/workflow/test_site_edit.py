"""Keys set in a site file leave its other lines, and its comments, as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcmass.config import load_site
from hpcmass.errors import ConfigError
from hpcmass.workflow.site_edit import set_keys

TEXT = """\
# a comment
name = "lab"           # another
default_target = "cpu"

[targets.cpu]          # launcher = "no"
kind = "slurm"
cores = 4
launcher = "mpiexec"   # a guess
pmi = 'pmi2'

[targets."g p u"]
kind = "slurm"
cores = 8
"""


def edited(tmp_path: Path, values: dict[tuple[str, ...], str | bool | None], text: str = TEXT) -> str:
    file = tmp_path / "site.toml"
    file.write_text(text)
    set_keys(file, values)
    return file.read_text()


def test_values_are_exchanged_in_their_lines(tmp_path: Path) -> None:
    text = edited(tmp_path, {("targets", "cpu", "launcher"): "srun", ("targets", "cpu", "pmi"): "pmix"})
    assert text == TEXT.replace('"mpiexec"   # a guess', '"srun"   # a guess').replace("'pmi2'", '"pmix"')


def test_a_drafts_guess_makes_way_for_where_the_value_came_from(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(
        'name = "lab"\ndefault_target = "cpu"\nverified = false  # drafted, not tried: hpcmass site probe FILE --write\n'
        '[targets.cpu]\n# cn1\nkind = "slurm"\ncores = 4  # mine\n'
        'launcher = "mpiexec"  # a guess: this Python has an mpiexec of its own\n'
    )
    table = ("targets", "cpu")
    set_keys(file, {("verified",): True, (*table, "launcher"): "srun", (*table, "pmi"): "pmix"}, "probed")
    assert file.read_text().splitlines()[2:] == [
        "verified = true  # probed",
        "[targets.cpu]",
        "# cn1",
        'kind = "slurm"',
        "cores = 4  # mine",
        'launcher = "srun"  # probed',
        'pmi = "pmix"  # probed',
    ]


def test_keys_are_added_and_removed(tmp_path: Path) -> None:
    text = edited(
        tmp_path,
        {("verified",): False, ("targets", "g p u", "launcher"): "srun", ("targets", "cpu", "pmi"): None},
    )
    site = load_site(tmp_path / "site.toml")
    assert (site.verified, site.targets["g p u"].launcher, site.targets["cpu"].pmi) == (False, "srun", None)
    assert set(TEXT.splitlines()) - set(text.splitlines()) == {"pmi = 'pmi2'"}
    assert set(text.splitlines()) - set(TEXT.splitlines()) == {"verified = false", 'launcher = "srun"'}


def test_a_file_written_another_way_is_left_alone(tmp_path: Path) -> None:
    text = 'name = "a"\ndefault_target = "t"\ntargets.t = { kind = "slurm", cores = 1 }\n'
    with pytest.raises(ConfigError, match="cannot be changed line by line"):
        edited(tmp_path, {("targets", "t", "launcher"): "srun"}, text)
    assert (tmp_path / "site.toml").read_text() == text


def test_an_inline_table_with_the_key_can_be_changed(tmp_path: Path) -> None:
    text = 'name = "a"\ndefault_target = "t"\ntargets.t = { kind = "slurm", cores = 1, launcher = "auto" }\n'
    assert 'launcher = "srun"' in edited(tmp_path, {("targets", "t", "launcher"): "srun"}, text)


def test_what_would_not_be_valid_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        edited(tmp_path, {("targets", "cpu", "launcher"): "rsh"})
    assert (tmp_path / "site.toml").read_text() == TEXT
