"""What the command line says of a run's end, and its exit code."""

import os
import subprocess
import sys
import time

import pytest

from hpcmass.cli.outcome import tell_run
from hpcmass.cli.root import root, run
from hpcmass.runs import RunFolder, State, Status


@pytest.mark.parametrize(("state", "code"), [(State.COMPLETED, 0), (State.STOPPED, 130), (State.FAILED, 2)])
def test_exit_codes(tmp_path, state, code, monkeypatch):
    assert tell_run(RunFolder(tmp_path), Status(state)) == code


def test_a_rank_that_stopped_in_order_has_not_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HPCMASS_KEEPER", str(tmp_path))
    assert tell_run(RunFolder(tmp_path), Status(State.STOPPED)) == 0
    assert tell_run(RunFolder(tmp_path), Status(State.FAILED)) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.mpi
def test_two_ranks_that_are_asked_to_stop_are_stopped_and_not_failed(lab):
    job = (lab.root / "job.toml").read_text().replace("epochs = 2", "epochs = 100000\nlog_every_steps = 1")
    (lab.root / "job.toml").write_text(job)
    words = [sys.executable, "-m", "hpcmass", "train", "job.toml", "--ranks", "2"]
    folder = RunFolder(lab.root / "runs/tiny")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as started:
        try:
            deadline = time.monotonic() + 300
            while not (folder.exists() and folder.status().step > 2):
                assert time.monotonic() < deadline
                assert started.poll() is None
                time.sleep(0.1)
            folder.ask_to_stop("enough")
            said, _ = started.communicate(timeout=300)
        finally:
            started.kill()
    assert (folder.status().state, folder.status().reason) == (State.STOPPED, "enough"), said
    assert started.returncode == 130
    assert folder.errors() == []


def test_an_error_of_the_system_is_a_plain_message(monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(root, "main", refuse)
    assert run(["train"]) == 2
    assert capsys.readouterr().err == "error: /somewhere: Permission denied\n"


def test_options_behind_the_command_are_the_scripts_own(lab):
    (lab.root / "own.py").write_text("import sys; print(sys.argv[1:])")
    answer = lab.hpcmass("run", "python", "own.py", "--name", "mine", "--quiet")
    assert answer.code == 0, answer.text
    assert "['--name', 'mine', '--quiet']" in answer.out
    assert (lab.root / "runs/own").is_dir()
    assert "No such option" in lab.hpcmass("run", "--rank", "2", "--", "python", "own.py").text
    assert os.listdir(lab.root / "runs") == ["own"]
