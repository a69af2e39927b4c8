"""The hook of conftest.py: in CI no test that needs MPI, Horovod or Slurm is skipped unseen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.{mark}
def test_marked():
    pytest.skip("no such thing here")

def test_plain():
    pytest.skip("plain")
"""


def run_pytest(folder: Path, text: str, ci: str | None) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  mpi\n  horovod\n  slurm\n", encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "CI"} | ({} if ci is None else {"CI": ci})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)


@pytest.mark.parametrize("mark", ["mpi", "horovod", "slurm"])
def test_in_ci_a_skip_of_a_marked_test_fails(tmp_path: Path, mark: str) -> None:
    done = run_pytest(tmp_path, TESTS.format(mark=mark), ci="true")
    assert done.returncode == 1
    assert "1 failed, 1 skipped" in done.stdout
    assert "no such thing here" in done.stdout


@pytest.mark.parametrize("ci", [None, "false"])
def test_outside_ci_it_is_a_skip(tmp_path: Path, ci: str | None) -> None:
    done = run_pytest(tmp_path, TESTS.format(mark="mpi"), ci=ci)
    assert (done.returncode, "2 skipped" in done.stdout) == (0, True), done.stdout


def test_in_ci_a_module_that_skips_itself_fails(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "import pytest\npytest.importorskip('no_such_package')\n", ci="true")
    assert done.returncode != 0
    assert "must not be skipped in CI" in done.stdout
