"""Runs outlive their jobs on a real Slurm: requeue, SIGTERM, successors, time limits, crash loops, scancel.

Every run logs its sample ids itself; those that count, and the weights, are held against an undisturbed run.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpcmass.config import load_site, read_run_job
from hpcmass.devcluster import Cluster
from hpcmass.launch import hpcmass_command
from hpcmass.runs import RunFolder, State
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.records import read_hops, read_submissions
from hpcmass.workflow.goingon import Asked, Handed, HandOver
from hpcmass.workflow.warden import JobEyes, Place

sys.path.append(str(Path(__file__).parent))
from outliving_tools import (
    HOLD,
    Bench,
    committed_samples,
    ended,
    hop_ended,
    job_of,
    let_go,
    steps_begun,
    wait_ended,
    wait_until,
)

pytestmark = pytest.mark.slurm
KEEP_JOBS = ("limited",)


@pytest.fixture(scope="module")
def bench(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A project for all tests, submitted to from this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, cluster.env[name])
        bench = Bench(cluster, tmp_path_factory.mktemp("outliving") / "project")
        # Its time limit passes while the other tests are at work: its first life takes longer, whatever comes.
        slow = "if os.environ['HPCMASS_SLURM_RESTART'] == '0': time.sleep(2)"
        bench.submit("limited", breaks=slow, resources={"time": "2m"})
        yield bench


def signal_batch(bench: Bench, run: RunFolder, number: signal.Signals) -> None:
    """A signal to the batch script's process alone."""
    bench.cluster.run("scancel", "--batch", f"--signal={number.name[3:]}", job_of(run))


def test_requeued_by_an_operator_it_goes_on_with_exactly_the_samples_left(bench: Bench) -> None:
    run = bench.submit("requeued", breaks=HOLD)
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    bench.cluster.run("scontrol", "requeue", job_of(run))
    wait_until(lambda: hop_ended(run, 1), lambda: f"the first hop's end\n{bench.told(run)}")
    let_go(run)
    last = wait_ended(bench, run)
    first = read_hops(run.path)[0]
    assert (first.cause, first.next) == ("signal", "requeue")
    assert (last.hop, last.cause, last.restart) == (2, "completed", 1)
    assert last.from_step == first.step > 10  # not an epoch's end: it wrote a checkpoint when SIGTERM came
    assert len(read_submissions(run.path)) == 1
    bench.check_same(run)


def test_only_sigterm_to_the_batch_script_checkpoints_and_requeues(bench: Bench) -> None:
    run = bench.submit("term", breaks=HOLD, resources={"ranks": 1})
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    signal_batch(bench, run, signal.SIGTERM)
    wait_until(lambda: hop_ended(run, 1), lambda: f"the first hop's end\n{bench.told(run)}")
    let_go(run)
    last = wait_ended(bench, run)
    first = read_hops(run.path)[0]
    assert (first.cause, first.state, first.next) == ("signal", "STOPPED", "requeue")
    assert (last.cause, last.restart, last.from_step) == ("completed", 1, first.step)
    bench.check_same(run, ranks=1)


def test_where_requeue_is_forbidden_a_successor_goes_on_with_another_size(bench: Bench) -> None:
    run = bench.submit("succeeded", breaks=HOLD, resources={"target": "norequeue", "ranks": 1})
    (run.path / "slurm" / "resize.json").write_text(json.dumps({"format": 1, "resources": {"ranks": 2}}))
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    before = job_of(run)
    signal_batch(bench, run, signal.SIGUSR1)
    wait_until(lambda: hop_ended(run, 1), lambda: f"the first hop's end\n{bench.told(run)}")
    let_go(run)
    last = wait_ended(bench, run)
    first = read_hops(run.path)[0]
    assert (first.cause, first.next, first.ranks) == ("signal", "successor", 1)
    records = read_submissions(run.path)
    assert [record.by for record in records] == ["submit", "successor"]
    assert records[1].after == (f"afterany:{before}",)
    assert (last.job_id, last.ranks, last.cause) == (records[1].job_id, 2, "completed")
    assert not (run.path / "slurm" / "resize.json").exists()
    # On another number of ranks sums are rounded otherwise: the samples are the same, the last bits are not.
    assert committed_samples(run) == committed_samples(bench.undisturbed())


def test_the_controller_tells_its_clock(bench: Bench) -> None:
    """It is this machine's here; whether sdiag is understood shows all the same."""
    ahead = Slurm().clock_ahead_s()
    assert ahead is not None
    assert abs(ahead) < 60


def hand_over(bench: Bench, run: RunFolder) -> HandOver:
    """As the hop of a run's newest job has it."""
    job, place = read_run_job(run.job_file), Place(job_of(run), 0, (), None, None, 0)
    asked = Asked.of(job, load_site(run.path / "site.toml"), read_submissions(run.path)[-1], None)
    return HandOver(run, bench.project, job, asked, JobEyes(place, Slurm()))


def test_two_threads_hand_a_run_on_once(bench: Bench) -> None:
    """The warden's thread and the hop's own want to at the same moment, when SIGTERM ends the ranks quickly."""
    run = bench.submit("once", pause=2.0, resources={"target": "norequeue", "ranks": 1})
    way, together = hand_over(bench, run), threading.Barrier(2)

    def go() -> Handed:
        together.wait()
        return way.go()

    with ThreadPoolExecutor(2) as pool:
        first, second = (one.result() for one in [pool.submit(go), pool.submit(go)])
    assert first == second
    assert [record.by for record in read_submissions(run.path)] == ["submit", "successor"]
    assert first == Handed("successor", f"job {job_of(run)} follows", job_of(run))
    way.take_back()
    assert way.go() == first
    wait_until(lambda: bench.job_state(first.job_id) in ("", "CANCELLED"), "the successor's end")


@pytest.mark.parametrize(
    ("asked", "target", "way", "words"),
    [
        ({"rank": 8}, "cpu", "requeue", "rank"),
        ({"target": "gqu"}, "cpu", "requeue", "no target 'gqu'"),
        ({"ranks": 4096, "nodes": 1}, "norequeue", "successor", "ranks"),
        ({"ranks": 400, "nodes": 100}, "cpu", "requeue", "nodes"),  # what only Slurm knows
    ],
)
def test_a_size_that_cannot_be_had_does_not_end_a_run(
    bench: Bench, asked: dict[str, object], target: str, way: str, words: str
) -> None:
    name = f"resized-{words.split()[0]}-{way}"
    run = bench.submit(name, pause=2.0, resources={"target": target, "ranks": 1})
    wait_until(lambda: steps_begun(run) > 0, "a step")  # a job can be requeued once it runs
    before = job_of(run)
    resize = run.path / "slurm" / "resize.json"
    resize.write_text(json.dumps({"format": 1, "resources": asked}))
    over = hand_over(bench, run)
    handed = over.go()
    assert handed.next == way
    assert words in handed.note
    assert not resize.exists()
    assert json.loads(resize.with_name("resize-bad.json").read_text())["resources"] == asked
    if way == "successor":
        assert read_submissions(run.path)[-1].layout["ranks"] == 1
    else:
        assert job_of(run) == before
    bench.cluster.run("scancel", before, job_of(run))


@pytest.mark.parametrize("way", ["scancel", "hpcmass cancel"])
def test_a_cancelled_run_does_not_come_back(bench: Bench, way: str) -> None:
    run = bench.submit(f"cancelled-{way.partition(' ')[0]}", breaks=HOLD, resources={"ranks": 1})
    wait_until(lambda: steps_begun(run) > 15, "15 steps")
    if way != "scancel":
        (run.path / "cancel").write_text("cancelled by a test\n")
        (run.path / "cancel").rename(run.path / "slurm" / "cancel")  # whole at once
    job_id = job_of(run)
    bench.cluster.run("scancel", job_id)
    wait_until(lambda: not bench.job_state(job_id), "the job's end")
    hops = read_hops(run.path)
    assert (hops[-1].cause, hops[-1].next) == ("cancelled", "none")
    assert len(hops) == len(read_submissions(run.path)) == 1


def test_two_failures_at_the_same_step_stop_it(bench: Bench) -> None:
    """A rank that is killed, again and again at one step: once may be chance, twice is not."""
    breaks = "if len((folder / f'{name}.jsonl').read_text().splitlines()) == 5: os.kill(os.getpid(), 9)"
    run = bench.submit("loop", breaks=breaks, resources={"ranks": 1})
    last = wait_ended(bench, run)
    first = read_hops(run.path)[0]
    assert (first.cause, first.next, first.state) == ("failed", "requeue", "FAILED")
    assert (last.hop, last.cause, last.step) == (2, "no-progress", 0)
    assert "twice at step 0" in last.reason
    assert "SIGKILL" in last.reason
    assert run.status().state is State.FAILED


def test_an_error_of_its_own_is_not_repeated(bench: Bench) -> None:
    breaks = "raise ValueError('a defect of the recipe')"
    run = bench.submit("own", breaks=breaks, resources={"ranks": 1})
    last = wait_ended(bench, run)
    assert (last.hop, last.cause, last.next) == (1, "failed", "none")
    assert "a defect of the recipe" in last.reason
    wait_until(lambda: not bench.job_state(job_of(run)), "the job's end")


def test_ranks_that_a_wrong_pmi_starts_are_not_started_again(bench: Bench) -> None:
    with open(bench.site, "a") as site:
        site.write(
            '\n[targets.misfit]\nkind = "slurm"\npartition = "cpu"\ncores = 4\nlauncher = "srun"\npmi = "pmi2"\n'
        )
    run = bench.submit("misfit", backend="mpi", resources={"target": "misfit", "ranks": 2})
    last = wait_ended(bench, run)
    assert (last.hop, last.cause, last.next) == (1, "failed", "none"), bench.told(run)
    assert "srun --mpi=pmi2" in last.reason
    assert "\n" not in last.reason
    words = [*hpcmass_command(), "why", "misfit", "--project", str(bench.project.root)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=400).stdout
    assert "srun --mpi=pmix" in " ".join(told.split("hops:")[0].split())


def test_a_hop_of_a_completed_or_cancelled_run_does_nothing(bench: Bench, tmp_path: Path) -> None:
    run = bench.submit("done", epochs=1, resources={"ranks": 1})
    wait_ended(bench, run)
    job_id = job_of(run)
    # Its end is written before the job has ended, and one that is completing is not requeued.
    wait_until(lambda: not bench.job_state(job_id), "the job's end")
    wait_until(lambda: bench.cluster.run("scontrol", "requeue", job_id).returncode == 0, "its requeue")
    wait_until(lambda: len(read_hops(run.path)) == 2 and ended(run), "the second hop's end")
    last = read_hops(run.path)[-1]
    assert (last.cause, last.next, last.restart) == ("completed", "none", 1)
    assert run.status().attempt == 1
    wait_until(lambda: not bench.job_state(job_id), "the job's end")
    # Submitted with more epochs, it has something to do again.
    bench.submit("done", epochs=2, resources={"ranks": 1})
    last = wait_until(lambda: ended(run) if len(read_hops(run.path)) == 3 else None, "the third hop's end")
    assert (last.cause, last.from_step, last.step) == ("completed", 10, 20)


def test_it_outlives_its_time_limit(bench: Bench) -> None:
    """A job of two minutes, for a run that takes longer."""
    run = RunFolder(bench.project.run_path("limited"))
    first = wait_until(lambda: hop_ended(run, 1), "the first hop's end")
    assert (first.cause, first.next, first.state) == ("time-limit", "requeue", "STOPPED")
    assert first.step > 0
    last = wait_ended(bench, run)
    # Two hops on an idle machine; on a busy one the ranks' start takes more of a minute.
    assert last.cause == "completed"
    assert {hop.cause for hop in read_hops(run.path)[:-1]} == {"time-limit"}
    bench.check_same(run)
