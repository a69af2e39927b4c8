"""Where the projects of these tests lie, and the user's cache with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for beside in ("dashboard", "sweep"):
    sys.path.insert(0, str(Path(__file__).parents[1] / beside))

from made_project import Client, made_project, served  # noqa: E402

from hpcmass.config import Project  # noqa: E402


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made_project(tmp_path / "made")


@pytest.fixture
def client(project: Project) -> Iterator[Client]:
    with served(project) as found:
        yield found
