"""Blocks as their driver keeps them, on a real Slurm: forgotten ones, refused ones, unheard ones."""

import itertools
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import Driver, site_of, until, write_job
from parsl_toys import blocks as cluster_blocks

from hpcmass.config import load_site
from hpcmass.errors import LaunchError, SlurmError, StorageError
from hpcmass.files import read_records
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobState
from hpcmass.sweep.records import read_trials
from hpcmass.workflow import blocks
from hpcmass.workflow.blocks import BlockBook
from hpcmass.workflow.blocks_left import comment_of
from hpcmass.workflow.pool import open_pool

pytestmark = pytest.mark.slurm
# An id that Slurm never gave: to squeue and sacct the same as one that it has forgotten (MinJobAge).
FORGOTTEN = "999999"


def sleeper(folder: Path) -> Path:
    script = folder / "block-0.sbatch"
    options = ("-p cpu", "-n 1", "-t 10", "-o /dev/null")
    head = "".join(f"#SBATCH {each}\n" for each in options)
    script.write_text(f"#!/bin/bash\n{head}exec sleep 600\n")
    return script


def book_of(cluster, folder: Path, sbatch: str = "") -> BlockBook:
    """A driver's blocks; `sbatch`: what its sbatch is, in sh, with the real one as `$SBATCH`."""
    env = dict(cluster.env)
    if sbatch:
        real = shutil.which("sbatch", path=env["PATH"])
        file = folder / "bin" / "sbatch"
        file.parent.mkdir()
        file.write_text(f"#!/bin/sh\nSBATCH='{real}'\n{sbatch}\n")
        file.chmod(0o755)
        env["PATH"] = f"{file.parent}:{env['PATH']}"
    return BlockBook(folder, uuid.uuid4().hex, slurm=Slurm(env, patience_s=120), poll_s=0.0)


@pytest.mark.parametrize("accounting", [True, False])
def test_blocks_that_slurm_has_forgotten_are_gone(request, tmp_path, monkeypatch, accounting):
    if accounting:
        cluster = request.getfixturevalue("cluster")
    else:
        cluster = request.getfixturevalue("cluster_factory")(accounting=False)
    book = book_of(cluster, tmp_path)
    job_id = book.submit(sleeper(tmp_path), "cpu", "0")
    # A driver whose first block ended longer ago than Slurm remembers.
    book.submitted.insert(0, FORGOTTEN)
    book._live[FORGOTTEN] = book._live[job_id]
    assert book.look([FORGOTTEN])[FORGOTTEN].state is JobState.PENDING  # It may not be there yet.
    monkeypatch.setattr(blocks, "_FORGOTTEN_S", 0.0)
    looked = book.look([FORGOTTEN, job_id])
    assert looked[FORGOTTEN].state.ended is True  # It is replaced.
    assert looked[job_id].state.ended is False
    assert book.end(within_s=240)
    until(lambda: book.slurm.jobs([job_id])[job_id].state.ended, 180, "the block that lived was not cancelled")


def test_a_limit_on_submitted_jobs_leaves_the_blocks_that_were_taken_at_work(cluster, project):
    if not cluster.has_accounting:
        pytest.skip("limits on jobs need accounting")
    job = write_job(project, trials=6, parallel=4, targets=["cpu"], steps=6, pause_s=0.5)
    study = project / "studies" / "where"
    site = site_of(cluster, project, cores=1, max_blocks=4)
    # Slurm may count a job of the tests before for good; `_tidy` has seen that none is left.
    limit_submitted(cluster, str(counted(cluster) + 1))
    try:
        driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
        assert driver.wait() == 0, driver.output
    finally:
        limit_submitted(cluster, "")
    assert [outcome.state for _, outcome in read_trials(study)] == ["complete"] * 6, driver.output
    records = list(read_records(study / "parsl" / "blocks.jsonl"))
    assert [record["kind"] for record in records].count("block") == 1
    refused = [record["time"] for record in records if record["kind"] == "refused"]
    assert refused
    # It was not asked again and again, however long the study took.
    assert all(later - earlier > 50 for earlier, later in itertools.pairwise(refused))
    assert cluster_blocks(cluster) == []
    assert (
        "AssocMaxSubmitJobLimit" in driver.output
    )  # Whoever waits for the study learns why it has no more room.


def counted(cluster) -> int:
    """The jobs that the controller counts against the limit of the account's users."""
    said = cluster.run("scontrol", "show", "assoc_mgr", "flags=assoc", "accounts=dev").stdout
    return max(int(count) for count in re.findall(r"\bGrpSubmitJobs=\w+\((\d+)\)", said))


def limit_submitted(cluster, most):
    """Limit the jobs of the account that may be submitted, or not; back when the controller has heard of it."""
    words = ("sacctmgr", "-i", "modify", "account", "dev", "set", f"MaxSubmitJobs={most or -1}")
    done = cluster.run(*words)
    assert done.returncode == 0, done.stderr + done.stdout

    def heard():
        said = cluster.run("scontrol", "show", "assoc_mgr", "flags=assoc", "accounts=dev").stdout
        found = re.findall(r"\bMaxSubmitJobs=(\d*)", said)
        return found and set(found) == {most}

    until(heard, 180, "the controller does not hear of the limit")


def test_a_target_that_takes_no_block_is_given_up_with_slurms_words(cluster, project):
    job = write_job(project, trials=2, parallel=2, targets=["cpu"])
    site = site_of(cluster, project, partition="nowhere")
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    assert driver.wait() != 0
    assert "could not be submitted" in driver.output, driver.output
    assert "no partition of that name" in driver.output


@pytest.mark.usefixtures("slurm_env")
@pytest.mark.parametrize("how", ["dead blocks", "interchange"])
def test_the_blocks_of_a_target_that_is_given_up_end_before_its_items_begin_elsewhere(cluster, tmp_path, how):
    site = load_site(cluster.site_file)
    # A block of two slots has not room for all items: where it comes first, some are left for the other target.
    targets = {name: site.targets[name].model_copy(update={"max_blocks": 1}) for name in ("cpu", "gpu")}
    go = tmp_path / "go"  # However late a target's block comes, there are items left for it.
    wait = ("sh", "-c", 'while [ ! -e "$0" ]; do sleep 0.2; done', str(go))
    with open_pool(targets, parallel=2, folder=tmp_path, poll_s=2.0) as pool:
        book, lane = pool.book, pool.lanes["cpu"]
        items = [pool.run(subprocess.run, wait) for _ in range(4)]
        until(lambda: lane.bound and pool.lanes["gpu"].bound, 240, "no items on one of the targets")
        mine = [one for one, label in book._labels.items() if label == "cpu"]
        assert mine
        if how == "interchange":
            lane.executor.interchange_proc.kill()
        else:  # As `_judge_blocks` does.
            lane.executor.set_bad_state_and_fail_all(LaunchError("given up"))
        until(lambda: lane.broken, 180, "it is not given up")
        until(lambda: not lane.bound, 180, "its items are still bound to it")
        states = Slurm(patience_s=120).jobs(mine)
        assert all(info.state is JobState.COMPLETING or info.state.ended for info in states.values()), states
        gpu = pool.lanes["gpu"].executor
        before = gpu._last_poll_time
        until(lambda: gpu._last_poll_time > before, 180, "the other target is not looked after any more")
        go.touch()
        for item in items:
            assert item.result(timeout=400).returncode == 0
        # It is not given blocks again while others work.
        assert [one for one, label in book._labels.items() if label == "cpu"] == mine
    assert cluster_blocks(cluster) == []


UNHEARD = (
    "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
)


def test_a_block_that_sbatch_did_not_hear_of_is_the_drivers_all_the_same(cluster, tmp_path):
    book = book_of(cluster, tmp_path, f'$SBATCH "$@" >/dev/null\n{UNHEARD}')
    job_id = book.submit(sleeper(tmp_path), "cpu", "0")
    assert book.slurm.jobs([job_id])[job_id].comment == comment_of(book.driver, "cpu-0")
    assert book.submitted == cluster_jobs(book) == [job_id]
    assert [record["kind"] for record in read_records(book.journal)] == ["intent", "block"]
    assert book.end(within_s=240)


def test_a_block_that_slurm_took_late_is_cancelled_and_only_that(cluster, tmp_path):
    late = f'''
[ -e "{tmp_path}/taken" ] && exec $SBATCH "$@"
touch "{tmp_path}/taken"
(while [ ! -e "{tmp_path}/go" ]; do sleep 0.1; done; exec $SBATCH "$@") >/dev/null 2>&1 </dev/null &
{UNHEARD}'''
    book = book_of(cluster, tmp_path, late)
    with pytest.raises(SlurmError) as caught:
        book.submit(sleeper(tmp_path), "cpu", "0", nodes=1, time_s=600)
    assert caught.value.transient  # The executor waits, and asks for another one.
    assert book.ledger.reserved_s() == 600  # It may have been taken.
    other = tmp_path / "block-1.sbatch"
    other.write_text((tmp_path / "block-0.sbatch").read_text())
    job_id = book.submit(other, "cpu", "1", nodes=1, time_s=600)
    (tmp_path / "go").touch()
    until(lambda: len(cluster_jobs(book)) == 2, 240, "the late block did not come")
    (stray,) = set(cluster_jobs(book)) - {job_id}
    book.look([])
    until(lambda: book.slurm.jobs([stray])[stray].state.ended, 240, "the late block lives")
    assert book.slurm.jobs([job_id])[job_id].state.ended is False
    until(lambda: book.look([]) == {} and book.ledger.unsettled() == [job_id], 240, "it is not settled")
    assert book.ledger.reserved_s() <= 600
    assert book.end(within_s=240)


def test_what_was_reserved_for_a_block_that_does_not_turn_up_is_given_back(cluster, tmp_path, monkeypatch):
    book = book_of(cluster, tmp_path, UNHEARD)
    with pytest.raises(SlurmError):
        book.submit(sleeper(tmp_path), "cpu", "0", nodes=1, time_s=600)
    book.look([])
    assert book.ledger.reserved_s() == 600
    monkeypatch.setattr(blocks, "_STRAYS_S", -1.0)
    with pytest.raises(SlurmError):
        book.submit(sleeper(tmp_path), "cpu", "0", nodes=1, time_s=600)
    book.look([])
    assert book.ledger.reserved_s() == 0
    assert [record["kind"] for record in read_records(book.journal)][-1] == "void"


def test_a_journal_that_cannot_be_written_any_more_loses_no_block(cluster, tmp_path):
    journal = tmp_path / "blocks.jsonl"
    book = book_of(cluster, tmp_path, f'$SBATCH "$@" || exit 1; rm "{journal}"; mkdir "{journal}"')
    job_id = book.submit(sleeper(tmp_path), "cpu", "0")
    assert book.submitted == [job_id]
    with pytest.raises(StorageError):
        book.submit(sleeper(tmp_path), "cpu", "1")
    assert cluster_jobs(book) == [job_id]  # What cannot be written down is not submitted.
    assert book.end(within_s=240)


def cluster_jobs(book: BlockBook) -> list[str]:
    return book.slurm.find_comment(comment_of(book.driver))
