"""The project folder is found as git finds its repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcmass.config import Project, Site, load_site
from hpcmass.errors import AlreadyExists, ConfigError, NameNotAllowed, NotFound


def test_create_and_find_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCMASS_PROJECT", raising=False)
    made = Project.create(tmp_path / "lab")
    below = made.root / "data" / "deep"
    below.mkdir(parents=True)
    assert Project.find(below).root == made.root
    monkeypatch.setenv("HPCMASS_PROJECT", str(made.root))
    assert Project.find().name == "lab"
    with pytest.raises(AlreadyExists):
        Project.create(made.root)


def test_none_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="hpcmass init"):
        Project.find(tmp_path)


def test_a_bad_name_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NameNotAllowed):
        Project.create(tmp_path / "p", "a/b")
    assert list(tmp_path.iterdir()) == []


def test_parts_may_lie_elsewhere(tmp_path: Path) -> None:
    project = Project.create(tmp_path / "p")
    (project.root / "hpcmass.toml").write_text(f'name = "p"\n[paths]\nruns = "{tmp_path}/scratch"\n')
    assert Project(project.root).run_path("a") == tmp_path / "scratch" / "a"
    with pytest.raises(NameNotAllowed):
        project.run_path("../a")


def test_site_file(tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text('name = "lab"\ndefault_target = "cpu"\n[targets.cpu]\ncors = 4\n')
    with pytest.raises(ConfigError, match="did you mean 'cores'") as caught:
        load_site(file)
    assert caught.value.where == f"{file}:4"
    file.write_text('name = "lab"\ndefault_target = "gpu"\n[targets.cpu]\ncores = 4\n')
    with pytest.raises(ConfigError, match="none of the targets"):
        load_site(file)
    assert load_site(None) == Site.local()
