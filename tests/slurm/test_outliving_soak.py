"""What takes long or breaks much: preemption of all kinds, lost nodes, no controller, a full disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcmass.devcluster import Cluster
from hpcmass.launch import hpcmass_command
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.records import read_hops, read_submissions
from hpcmass.workflow.submit import rerun

sys.path.append(str(Path(__file__).parent))
from outliving_tools import (
    Bench,
    ended,
    hop_ended,
    hop_process,
    job_of,
    preempt,
    steps_begun,
    wait_ended,
    wait_until,
)

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(1200)]


def speak_to(cluster: Cluster, patch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CONF", "PATH"):
        patch.setenv(name, cluster.env[name])


@pytest.fixture
def bench(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    speak_to(cluster, monkeypatch)
    return Bench(cluster, tmp_path / "project")


def check_preempted(bench: Bench, run: RunFolder) -> None:
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    preempt(bench, run)
    last = wait_ended(bench, run)
    first = read_hops(run.path)[0]
    assert (first.cause, first.next) == ("preempted", "requeue")
    assert (last.cause, last.restart) == ("completed", 1)
    assert last.from_step >= 10
    bench.check_same(run)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_preempted_without_grace(bench: Bench, backend: str) -> None:
    check_preempted(bench, bench.submit("run", resources={"target": "preempt"}, backend=backend))


def test_preempted_without_a_user_signal(
    cluster_factory: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = cluster_factory(accounting=False)
    conf = Path(cluster.env["SLURM_CONF"])
    text = conf.read_text()
    assert "preempt_send_user_signal" in text
    conf.write_text("".join(line for line in text.splitlines(True) if "preempt_send_user_signal" not in line))
    assert cluster.run("scontrol", "reconfigure").returncode == 0
    speak_to(cluster, monkeypatch)
    bench = Bench(cluster, tmp_path / "project")
    check_preempted(bench, bench.submit("run", resources={"target": "preempt"}))


def test_preempted_where_requeue_is_forbidden_it_has_one_successor(
    cluster_factory: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks are gone while sbatch, which is slow here, is still at it."""
    cluster = cluster_factory(accounting=False)
    conf = Path(cluster.env["SLURM_CONF"])
    conf.write_text(conf.read_text().replace("KillWait=2\n", "KillWait=60\n"))
    assert cluster.run("scontrol", "reconfigure").returncode == 0
    speak_to(cluster, monkeypatch)
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sbatch").write_text(f'#!/bin/sh\nsleep 10\nexec {shutil.which("sbatch")} "$@"\n')
    (slow / "sbatch").chmod(0o755)
    bench = Bench(cluster, tmp_path / "project")
    with open(bench.site, "a") as site:
        site.write('\n[targets.forbidden]\nkind = "slurm"\npartition = "preempt"\ncores = 4\nrequeue = false\n')
        site.write(f"setup = [{json.dumps(f'export PATH={slow}:$PATH')}]\n")
    run = bench.submit("run", resources={"target": "forbidden"})
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    preempt(bench, run)
    last = wait_ended(bench, run)
    first = read_hops(run.path)[0]
    assert (first.cause, first.next, first.state) == ("preempted", "successor", "STOPPED"), bench.told(run)
    assert [record.by for record in read_submissions(run.path)] == ["submit", "successor"]
    assert (last.hop, last.cause, last.from_step) == (2, "completed", first.step)
    bench.check_same(run)


def test_preempted_with_grace(
    cluster_factory: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is time to write a checkpoint in peace, and the hop requeues the job itself before Slurm does."""
    cluster = cluster_factory(accounting=False, grace_s=20)
    speak_to(cluster, monkeypatch)
    bench = Bench(cluster, tmp_path / "project")
    run = bench.submit("run", resources={"target": "preempt"})
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    preempt(bench, run)
    last = wait_ended(bench, run)
    first = read_hops(run.path)[0]
    assert first.state == "STOPPED"
    assert (last.cause, last.restart, last.from_step) == ("completed", 1, first.step)
    assert first.step > 10
    bench.check_same(run)


def test_one_of_two_nodes_is_lost_in_the_middle_of_a_step(bench: Bench) -> None:
    run = bench.submit("run", pause=0.3, resources={"nodes": 2})
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    nodes = read_hops(run.path)[0].nodes
    assert len(nodes) == 2
    bench.cluster.kill_node(next(node for node in nodes if node != read_hops(run.path)[0].host))
    try:
        last = wait_ended(bench, run, 400)
    finally:
        for node in nodes:
            if not bench.cluster.processes[f"slurmd-{node}"].alive:
                bench.cluster.start_node(node)
    hops = read_hops(run.path)
    assert last.cause == "completed"
    assert len(hops) >= 2
    assert {hop.next for hop in hops[:-1]} == {"requeue"}
    bench.check_same(run)


def test_a_run_that_takes_its_nodes_down_is_ended(bench: Bench) -> None:
    """Three hops whose node dies with them, at one step: nobody is left to say so but the next hop."""
    run = bench.submit("run", pause=3600.0, resources={"ranks": 1})
    for number in (1, 2, 3):
        wait_until(lambda n=number: steps_begun(run) >= n, lambda: f"a step\n{bench.told(run)}", 300)
        node = read_hops(run.path)[-1].host
        bench.cluster.kill_node(node)
        wait_until(lambda n=number: len(read_hops(run.path)) > n, lambda: f"a hop\n{bench.told(run)}", 300)
        bench.cluster.start_node(node)
    last = wait_ended(bench, run)
    assert (last.hop, last.cause, last.step) == (4, "no-progress", 0)
    assert "3 hops in a row lost a node at step 0" in last.reason
    assert {hop.cause for hop in read_hops(run.path)[:3]} <= {"lost", "node-failure"}
    job_id = job_of(run)
    wait_until(lambda: bench.job_state(job_id) in ("", "FAILED"), "the job's end")


def test_a_node_that_slurm_gives_up_while_its_ranks_run_on(bench: Bench) -> None:
    """Only slurmd dies. The job begins again elsewhere; the old ranks learn it and write nothing more."""
    run = bench.submit("run", pause=1.0)
    wait_until(lambda: steps_begun(run) > 5, "5 steps")
    node = read_hops(run.path)[0].host
    old = hop_process(run)
    slurmd = bench.cluster.processes[f"slurmd-{node}"]
    os.kill(slurmd.pid, signal.SIGKILL)
    try:
        wait_until(lambda: len(read_hops(run.path)) > 1, "the second hop", 200)
        assert not Path(f"/proc/{old}").exists() or hop_process(run) != old
        last = wait_until(lambda: ended(run) and read_hops(run.path)[1].cause and ended(run), "the end", 400)
    finally:
        bench.cluster.kill_node(node)
        bench.cluster.start_node(node)
    assert (last.hop, last.cause) == (2, "completed")
    assert read_hops(run.path)[1].host != node
    assert run.status().state is State.COMPLETED
    bench.check_same(run)


def test_the_controller_is_away_for_half_a_minute(bench: Bench) -> None:
    """During a requeue, a submit, and while states are asked for: nothing is lost, doubled or called ended."""
    going = bench.submit("going")
    wait_until(lambda: steps_begun(going) > 15, "15 steps")
    bench.cluster.stop_controller()
    with ThreadPoolExecutor(1) as pool:
        try:
            submitted = pool.submit(bench.submit, "new")
            os.kill(hop_process(going), signal.SIGUSR1)
            shown = states(bench)
            wait_until(lambda: hop_ended(going, 1), "the first hop's end")
            time.sleep(30)
            assert not submitted.done()
            shown += states(bench)
        finally:
            bench.cluster.start_controller()
        new = submitted.result(timeout=120)
    # What is under way in the folder is told from it; of the rest nobody knows.
    assert set(shown) <= {"RUNNING", "UNKNOWN", "REQUEUED"}
    assert "UNKNOWN" in shown
    for run in (going, new):
        last = wait_ended(bench, run, 400)
        assert last.cause == "completed"
        assert len(read_submissions(run.path)) == 1
        bench.check_same(run)
    first = read_hops(going.path)[0]
    assert (first.cause, first.next, len(read_hops(going.path))) == ("signal", "requeue", 2)


def states(bench: Bench) -> list[str]:
    """What `hpcmass status` calls the runs of the project."""
    words = [*hpcmass_command(), "status", "--json", "--project", str(bench.project.root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [run["state"] for run in json.loads(done.stdout)["runs"]]


def test_held_between_two_hops_and_released(bench: Bench) -> None:
    run = bench.submit("run")
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    job_id = job_of(run)
    bench.cluster.run("scontrol", "requeuehold", job_id)
    wait_until(lambda: bench.job_state(job_id) == "PENDING", "the held job")
    assert len(read_hops(run.path)) == 1
    bench.cluster.run("scontrol", "release", job_id)
    last = wait_ended(bench, run)
    assert (last.cause, last.restart) == ("completed", 1)
    bench.check_same(run)


@pytest.mark.parametrize("held", [False, True])
def test_cancelled_while_pending_it_never_begins(bench: Bench, held: bool) -> None:
    blocker = bench.cluster.run(
        "sbatch", "--parsable", "-t", "5", "-o", "/dev/null", "--wrap", "sleep 300"
    ).stdout.strip()
    run = bench.submit("run", after=[f"afterany:{blocker}"])
    job_id = job_of(run)
    if held:
        bench.cluster.run("scontrol", "hold", job_id)
    bench.cluster.run("scancel", job_id)
    wait_until(lambda: bench.job_state(job_id) in ("", "CANCELLED"), "the job's end")
    bench.cluster.run("scancel", blocker)
    time.sleep(5)
    assert read_hops(run.path) == []
    assert run.status().state is State.CREATED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 2 MiB, to be filled."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system to fill needs root (mount -t tmpfs)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_scratch_disk(
    small_disk: Path,
    cluster_factory: Callable[..., Cluster],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run ends as failed, and says so where it can; when there is room again it goes on exactly."""
    cluster = cluster_factory(accounting=False)  # its nodes see what is mounted before they start
    speak_to(cluster, monkeypatch)
    bench = Bench(cluster, tmp_path / "project")
    bench.project.runs.parent.joinpath("runs").mkdir(exist_ok=True)
    bench.project.runs.rmdir()
    bench.project.runs.symlink_to(small_disk)
    run = bench.submit("run", pause=0.3)
    wait_until(lambda: steps_begun(run) > 12, "12 steps")
    ballast = small_disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 4096):
                pass
        except OSError:
            pass
    job_id = job_of(run)
    wait_until(lambda: not bench.job_state(job_id) or bench.job_state(job_id) == "FAILED", "the job's end", 400)
    assert run.status().state is not State.COMPLETED
    assert len(read_submissions(run.path)) == 1
    assert len(read_hops(run.path)) <= 2
    ballast.unlink()
    rerun(run)
    last = wait_until(lambda: ended(run) and read_hops(run.path)[-1].job_id != job_id and ended(run), "the end")
    assert last.cause == "completed"
    bench.check_same(run)


def test_a_limit_of_file_sizes_or_quota_is_told_and_not_repeated(bench: Bench) -> None:
    """What `ulimit -f` refuses stands for a quota: the kernel's error comes at the same place."""
    bench.site.write_text(bench.site.read_text().replace("requeue = false", 'setup = ["ulimit -f 4"]'))
    run = bench.submit("run", resources={"target": "norequeue"})
    last = wait_ended(bench, run)
    assert (last.cause, last.next) == ("failed", "none")
    assert "limit" in last.reason or "too large" in last.reason


QUOTA = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* As a file system whose quota is used up: what goes into a file below a folder of that name is refused. */
ssize_t write(int fd, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    char link[64], path[4096];
    const char *used_up = getenv("TEST_QUOTA_FILE"), *folder = getenv("TEST_QUOTA_FOLDER");
    if (!real) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (used_up && folder && access(used_up, F_OK) == 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length > 0) {
            path[length] = 0;
            if (strstr(path, folder)) { errno = EDQUOT; return -1; }
        }
    }
    return real(fd, bytes, count);
}
"""


@pytest.mark.parametrize("folder", ["/checkpoints/", "/runs/"])
def test_a_quota_that_is_used_up(bench: Bench, tmp_path: Path, folder: str) -> None:
    """EDQUOT where checkpoints are written, or wherever the run writes; with room again it goes on exactly."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "quota.c").write_text(QUOTA)
    words = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / "quota.so"), str(tmp_path / "quota.c"), "-ldl"]
    subprocess.run(words, check=True)
    used_up = tmp_path / "used-up"
    env = {
        "LD_PRELOAD": str(tmp_path / "quota.so"),
        "TEST_QUOTA_FILE": str(used_up),
        "TEST_QUOTA_FOLDER": folder,
    }
    values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in env.items())
    with open(bench.site, "a") as site:
        site.write(f'\n[targets.quota]\nkind = "slurm"\npartition = "cpu"\ncores = 4\nenv = {{ {values} }}\n')
    run = bench.submit("run", pause=0.3, resources={"target": "quota"})
    wait_until(lambda: steps_begun(run) > 12, "12 steps")
    used_up.touch()
    job_id = job_of(run)
    wait_until(lambda: bench.job_state(job_id) in ("", "FAILED"), lambda: f"the end\n{bench.told(run)}", 400)
    assert len(read_submissions(run.path)) == 1
    if folder == "/checkpoints/":  # it can be written down
        first, last = read_hops(run.path)
        assert (first.cause, first.next) == ("failed", "requeue")
        assert (last.cause, last.step) == ("no-progress", 10)
        assert "quota" in last.reason.lower()
        assert run.status().state is State.FAILED
        words = [*hpcmass_command(), "why", "run", "--project", str(bench.project.root)]
        assert "quota" in subprocess.run(words, capture_output=True, text=True, timeout=200).stdout
    else:
        assert len(read_hops(run.path)) <= 2
        assert run.status().state is not State.COMPLETED
    used_up.unlink()
    again = rerun(run).job_id
    wait_until(lambda: read_hops(run.path)[-1].job_id == again, "the next hop")
    assert wait_ended(bench, run).cause == "completed"
    bench.check_same(run)
