"""What holds for every test: found programs, Hypothesis without a clock, and no silent skip in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Parsl's interchange.py and mpiexec are found on PATH, also when pytest is started by its full path.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)])

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")
MUST_RUN_IN_CI = {"mpi", "horovod", "slurm", "browser"}

# A deadline an example fails on a busy machine; in CI the same examples every time.
settings.register_profile("hpcmass", deadline=None, derandomize=IN_CI, print_blob=True)
settings.load_profile("hpcmass")


def _fail(report: pytest.TestReport | pytest.CollectReport, what: str) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{what} must not be skipped in CI, where everything it needs is installed: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI a skip of a test that needs MPI, Horovod, Slurm or a browser is a failure."""
    report: pytest.TestReport = yield
    marks = MUST_RUN_IN_CI & {mark.name for mark in item.iter_markers()}
    if IN_CI and marks and report.skipped and not hasattr(report, "wasxfail"):
        _fail(report, f"a test marked {', '.join(sorted(marks))}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """In CI a module that skips itself is a failure: its marks cannot be known."""
    report: pytest.CollectReport = yield
    if IN_CI and report.skipped:
        _fail(report, f"{collector.nodeid}, a whole module,")
    return report
