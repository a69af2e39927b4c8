"""A hop on a node without Slurm's commands: it runs, obeys signals, and says that nobody could be asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcmass.config import Project, job_from_values, job_to_toml, load_site, read_run_job, site_to_toml
from hpcmass.data import shard
from hpcmass.errors import LaunchError
from hpcmass.files import Owner, replace_json
from hpcmass.launch import hpcmass_command
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.outlive import Decision
from hpcmass.slurm.records import Hop, read_hops
from hpcmass.workflow.hop import read_place
from hpcmass.workflow.hopbook import HopBook
from hpcmass.workflow.warden import JobEyes, Place

SITE = """
name = "nowhere"
default_target = "cpu"
[targets.cpu]
kind = "slurm"
cores = 2
"""
RECIPE = """
import pathlib, time, torch

def build_model(params):
    return torch.nn.Linear(2, 2)

def transform(batch, train):
    if train:
        (pathlib.Path(__file__).parent / "training").touch()
        time.sleep(0.05)
    return batch
"""
WAITS_FOR_STOP = """
import pathlib, time, hpcmass, os
pathlib.Path(os.environ["HPCMASS_RUN_DIR"], "training").touch()
for step in range(1, 100000):
    hpcmass.report(step, loss=1.0)
    if hpcmass.should_stop():
        break
    time.sleep(0.05)
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project.create(tmp_path / "project", "tests")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype("float32")
    np.savez(tmp_path / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
    shard(tmp_path / "raw.npz", project.data / "tiny", inputs=["x"], targets=["y"], shards=1, workers=1)
    return project


def lay_down(project: Project, values: dict[str, object]) -> RunFolder:
    (project.root / "site.toml").write_text(SITE)
    (project.root / "recipe.py").write_text(RECIPE)
    run = RunFolder(project.run_path("run"))
    recipe = project.root / "recipe.py" if "recipe" in values else None
    job = job_from_values({"name": "run", **values})
    run.create(job_to_toml(job), site_to_toml(load_site(project.root / "site.toml")), recipe)
    (run.path / "slurm").mkdir(exist_ok=True)
    return run


def trained(project: Project, epochs: int) -> RunFolder:
    train = {"epochs": epochs, "global_batch": 10}
    return lay_down(project, {"recipe": "recipe.py", "data": {"train": "data/tiny"}, "train": train})


# A hop that waits for a file system that hiccups until a test has mended it.
PATIENT = """
from hpcmass.__main__ import main
from hpcmass.workflow.steady import steady
steady.__kwdefaults__["patience_s"] = 400.0
main()
"""


def begin(run: RunFolder, project: Project, command: Sequence[str] = (), **env: str) -> subprocess.Popen[bytes]:
    """A hop in a process of its own, in job 77, on a PATH without Slurm."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "HPCMASS"))}
    kept |= {"SLURM_JOB_ID": "77", "PATH": str(Path(sys.executable).parent), **env}
    argv = [*(command or hpcmass_command()), "hop", str(run.path), "--project", str(project.root)]
    return subprocess.Popen(argv, env=kept, stdout=subprocess.DEVNULL, stderr=open(run.path / "out.log", "ab"))


def wait_until(condition: Callable[[], object], limit_s: float = 400.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def last(run: RunFolder) -> Hop:
    return read_hops(run.path)[-1]


def test_it_trains_to_the_end_without_slurms_commands(project: Project) -> None:
    run = trained(project, epochs=1)
    assert begin(run, project).wait(400) == 0
    assert (last(run).cause, last(run).next, last(run).step) == ("completed", "none", 4)
    assert run.status().state is State.COMPLETED


def test_sigterm_that_nobody_explains_ends_in_a_checkpoint_and_a_plain_record(project: Project) -> None:
    run = trained(project, epochs=1000)
    process = begin(run, project)
    wait_until((run.path / "training").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(400) != 0
    assert run.status().state is State.STOPPED
    assert (last(run).state, last(run).next) == ("STOPPED", "none")
    assert last(run).step == run.status().step > 0
    assert "Slurm does not say why" in last(run).reason


def test_a_stop_without_scontrol_says_that_it_could_not_be_handed_on(project: Project) -> None:
    run = trained(project, epochs=1000)
    process = begin(run, project)
    wait_until((run.path / "training").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(400) != 0
    assert (last(run).cause, last(run).state, last(run).next) == ("signal", "STOPPED", "none")
    assert "could not be handed on" in last(run).reason
    assert "scontrol" in last(run).reason


def test_the_time_limit_of_the_environment_counts_where_slurm_cannot_be_asked(project: Project) -> None:
    run = trained(project, epochs=100000)
    process = begin(run, project, SLURM_JOB_END_TIME=str(int(time.time()) + 80))
    assert process.wait(400) != 0
    assert (last(run).cause, last(run).state) == ("time-limit", "STOPPED")
    assert last(run).ended < last(run).ends


def test_an_own_script_is_asked_by_should_stop_and_does_not_die_of_the_signal(project: Project) -> None:
    (project.root / "script.py").write_text(WAITS_FOR_STOP)
    run = lay_down(project, {"command": ["python", "script.py"]})
    process = begin(run, project)
    wait_until((run.path / "training").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(400) != 0
    assert run.status().state is State.STOPPED
    assert (last(run).cause, last(run).state) == ("signal", "STOPPED")
    assert last(run).step > 0


def test_a_script_that_does_not_end_in_time_is_ended(project: Project) -> None:
    text = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n"
    (project.root / "script.py").write_text(text)
    run = lay_down(project, {"command": ["python", "script.py"]})
    process = begin(run, project, SLURM_JOB_END_TIME=str(int(time.time()) + 10))
    assert process.wait(400) != 0
    assert (last(run).cause, last(run).state) == ("time-limit", "STOPPED")


def test_a_cancel_file_before_the_start_is_obeyed(project: Project) -> None:
    run = trained(project, epochs=1)
    (run.path / "slurm" / "cancel").write_text("cancelled by ann\n")
    assert begin(run, project).wait(400) == 0
    assert (last(run).cause, last(run).reason) == ("cancelled", "cancelled by ann")
    assert run.status().attempt == 0


def test_a_begin_that_cannot_be_written_down_begins_nothing(project: Project) -> None:
    run = trained(project, epochs=1)
    (run.path / "slurm" / "hops.jsonl").mkdir()
    assert begin(run, project).wait(400) == 2
    assert run.status().attempt == 0


def test_the_next_life_of_a_killed_hop_writes_its_end(project: Project) -> None:
    run = trained(project, epochs=1000)
    process = begin(run, project)
    wait_until((run.path / "training").exists)
    process.kill()
    process.wait()
    wait_until(lambda: run.lease().owner() is None)
    (run.path / "slurm" / "cancel").write_text("enough\n")
    assert begin(run, project, SLURM_RESTART_COUNT="1").wait(400) == 0
    first, second = read_hops(run.path)
    assert (first.cause, first.next, first.restart) == ("lost", "requeue", 0)
    assert (second.cause, second.restart) == ("cancelled", 1)


def book_of(run: RunFolder, job_id: str, restart: int = 0) -> HopBook:
    place = Place(job_id, restart, (), None, None, 0)
    return HopBook(run, read_run_job(run.job_file), place, JobEyes(place, Slurm()))


def test_two_jobs_that_begin_at_once_have_two_numbers_and_one_sees_the_other(project: Project) -> None:
    run = trained(project, epochs=1)
    first, second = book_of(run, "77"), book_of(run, "78")  # neither has written that it begins
    assert (first.number, second.number) == (1, 2)
    assert first.rivals() == []
    assert [one.slurm_job_id for one in second.rivals()] == ["77"]
    assert [one.slurm_job_id for one in book_of(run, "77", restart=1).rivals()] == [
        "78"
    ]  # not its earlier life
    first.write_begin(ranks=1, ends=None)
    first.write_end(Decision("completed", False, "done"), "COMPLETED", "none", "done")
    assert second.rivals() == []


def test_a_second_job_for_a_run_that_a_living_hop_has_begins_nothing(project: Project) -> None:
    """The first, which is this process, has taken its number and no lease yet."""
    run = trained(project, epochs=1)
    first = book_of(run, "77")
    assert begin(run, project, SLURM_JOB_ID="78").wait(400) != 0
    assert (last(run).hop, last(run).job_id, last(run).cause, last(run).next) == (2, "78", "failed", "none")
    assert "run by job 77" in last(run).reason
    assert run.status().attempt == 0
    assert run.errors() == []
    # Once it has ended, there is nobody to wait for.
    first.write_begin(ranks=1, ends=None)
    first.write_end(Decision("signal", True, "stopped"), "STOPPED", "successor", "stopped")
    assert begin(run, project, SLURM_JOB_ID="79").wait(400) == 0
    assert (last(run).hop, last(run).job_id, last(run).cause) == (3, "79", "completed")


@pytest.mark.parametrize("heals", [True, False])
def test_a_file_system_that_hiccups_after_the_ranks_ended_does_not_end_the_hop(
    project: Project, heals: bool
) -> None:
    """A folder where the stop file may be: reading it fails, as it does on a server that has gone."""
    run = trained(project, epochs=1)
    breaks = "(pathlib.Path(__file__).parent / 'stop').mkdir(); import os; os.kill(os.getpid(), 9)"
    (run.path / "recipe.py").write_text(RECIPE.replace("time.sleep(0.05)", breaks))
    process = begin(run, project, [sys.executable, "-c", PATIENT] if heals else ())
    if heals:
        wait_until(lambda: "trying again" in (run.path / "out.log").read_text())
        (run.path / "stop").rmdir()
    assert process.wait(400) != 0
    state, words = ("FAILED", "SIGKILL") if heals else ("UNKNOWN", "could not be read")
    assert (last(run).cause, last(run).next, last(run).state) == ("failed", "none", state)
    assert words in last(run).reason
    assert "could not be handed on" in last(run).reason  # it would have been, with Slurm's commands


def test_a_holder_on_another_machine_that_lives_is_not_waited_for(project: Project) -> None:
    """A colleague's `hpcmass train` on the login node: no Slurm proves it dead, and it renews its lease."""
    run = trained(project, epochs=1)
    owner = replace(Owner.this_process(), host="login", boot="another", slurm_job_id=None)
    replace_json(run.path / "lease.1.json", vars(owner))
    replace_json(run.path / "lease.1.beat", {"beat": time.time()})
    process = begin(run, project)
    until = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.5)
        replace_json(run.path / "lease.1.beat", {"beat": time.time()})
    assert process.wait(60) != 0
    assert (last(run).cause, last(run).next) == ("failed", "none")
    assert "in use by process" in last(run).reason
    assert "on login" in last(run).reason
    assert run.status().attempt == 0


def test_place() -> None:
    place = read_place(
        {
            "SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3",
            "SLURM_RESTART_COUNT": "2", "SLURM_JOB_NODELIST": "cn[1-2]", "SLURM_JOB_END_TIME": "100",
        }
    )  # fmt: skip
    assert (place.job_id, place.restart, place.nodes, place.ends) == ("7_3", 2, ("cn1", "cn2"), 100.0)
    with pytest.raises(LaunchError, match="no Slurm job"):
        read_place({})
