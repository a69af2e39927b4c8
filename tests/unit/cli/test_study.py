"""A small study by the command line: seen while it runs, as lines and on a terminal, and reported at its end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

JOB = """\
name = "search"
command = ["python", "trial.py", "{x}"]

[sweep]
trials = 6
parallel = 2
sampler = "random"
metric = "loss"

[sweep.space]
x = { type = "float", low = 0.0, high = 1.0 }
"""
TRIAL = """\
import sys, hpcmass
for step in range(1, 4):
    hpcmass.report(step=step, loss=float(sys.argv[1]) + 1 / step)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "hpcmass.toml").write_text('name = "lab"\n')
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "trial.py").write_text(TRIAL)
    return tmp_path


def on_a_terminal(words: list[str], cwd: Path) -> tuple[int, str]:
    """Run hpcmass with its output on a terminal of 100 columns; gives its exit code and all that was drawn."""
    master, slave = pty.openpty()
    env = {**os.environ, "COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
    command = [sys.executable, "-m", "hpcmass", *words]
    child = subprocess.Popen(command, cwd=cwd, env=env, stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    drawn: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            drawn.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    code = child.wait(timeout=600)
    reader.join(timeout=60)
    os.close(master)
    return code, b"".join(drawn).decode(errors="replace")


def test_a_study_on_a_terminal_then_as_lines_then_as_a_report(project: Path) -> None:
    code, drawn = on_a_terminal(["sweep", "job.toml"], project)
    assert code == 0, drawn
    assert "search: 6 of 6 trials: 6 complete" in drawn
    assert "trial   0  complete" in drawn  # and a line for each trial, above the table
    assert "best      loss" in drawn
    assert "workers" in drawn

    command = [sys.executable, "-m", "hpcmass", "watch", "search"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert "search: 6 of 6 trials: 6 complete, 0 failed, 0 running; best loss" in line

    code, drawn = on_a_terminal(["watch", "search"], project)
    assert code == 0
    assert "search: 6 of 6 trials" in drawn

    command = [sys.executable, "-m", "hpcmass", "sweep", "report", "search", "--out", "out/study.html"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("out/study.html  (")
    assert "<title>hpcmass study</title>" in (project / "out/study.html").read_text()
    # Workers of this machine say which slot they were, and what processor time their trials took.
    from hpcmass.sweep.report import gather

    found = gather(project / "studies/search")
    assert not found["time"]["assumed"]
    assert len(found["time"]["spans"]) == 6
    assert found["cost"]["cpu_s"] > 0
    assert found["cost"]["cpu_unknown"] == 0


def test_no_study_of_that_name(project: Path) -> None:
    for words in (["watch", "nothing"], ["sweep", "report", "nothing"]):
        command = [sys.executable, "-m", "hpcmass", *words]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
        assert done.returncode != 0
        assert "nothing" in done.stderr
        assert "Traceback" not in done.stderr
