"""What a study survives on a real Slurm: a node, a block's time limit, a cancelled block, its own driver."""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import (
    Driver,
    blocks,
    check_given,
    check_slots,
    places,
    site_of,
    slots,
    tagged_processes,
    until,
    write_job,
)

from hpcmass.files import read_records
from hpcmass.sweep.records import read_trials

pytestmark = pytest.mark.slurm


def states(study):
    return [outcome.state if outcome else None for _, outcome in read_trials(study)]


def seen(study, step=1):
    """Trials that have done a step."""
    return {record["trial"] for record in places(study) if record["step"] >= step} if study.exists() else set()


def silent(study):
    """Whether a pool has noticed that nobody drives it."""
    return any("driver is gone" in file.read_text() for file in study.rglob("manager.log"))


def started(study):
    """The processes that each trial's steps ran in."""
    found = {}
    for record in places(study):
        found.setdefault(record["trial"], set()).add(record["pid"])
    return found


@pytest.mark.parametrize(
    "late", [pytest.param(True, id="after the blocks noticed"), pytest.param(False, id="at once")]
)
def test_a_new_driver_attaches_to_what_a_killed_one_left_running(cluster, project, late):
    # One trial a node, so that one block may end while the other one's trial goes on.
    job = write_job(project, trials=3, parallel=2, targets=["cpu"], steps=6, way="hold")
    study, site = project / "studies" / "where", site_of(cluster, project, cores=1)
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    driver.until(lambda: len(seen(study, 2)) == 2)
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    began, old = started(study), {each["job_id"] for each in slots(study)}
    left = lambda: [pid for pid, words in tagged_processes(study) if "interchange" in words]  # noqa: E731
    until(lambda: left() == [], 60, "the interchange is left")
    if late:
        until(lambda: silent(study), 180, "no pool says that its driver is gone")
    assert old <= set(blocks(cluster))
    again = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    again.until(lambda: "attached" in again.output)
    (project / "go").touch()
    assert again.wait() == 0, again.output
    assert states(study) == ["complete"] * 3, again.output
    trials = read_trials(study)
    held = slots(study)
    records = list(read_records(study / "attempts.jsonl"))
    for number in began:  # One attempt, one process, one slot of the old blocks from its beginning to its end.
        assert trials[number][1].attempts == trials[number][0].run.status().attempt == 1
        assert started(study)[number] == began[number]
        (slot,) = [each for each in held if each["trial"] == number]
        assert slot["job_id"] in old
        assert [r["kind"] for r in records if r["trial"] == number] == ["submit", "end"]
        (end,) = [r for r in records if r["trial"] == number and r["kind"] == "end"]
        assert (end["cause"], end["job_id"]) == ("COMPLETED", slot["job_id"])
        assert abs(end["node_s"] - (slot["end"] - slot["time"])) < 0.1
    assert len(places(study)) == 3 * 6
    assert blocks(cluster) == []
    journal = list(read_records(study / "parsl" / "blocks.jsonl"))
    assert old <= {record["job_id"] for record in journal if record["kind"] == "settled"}
    until(lambda: tagged_processes(study) == [], 60, lambda: f"left: {tagged_processes(study)}")
    check_given(study, cluster)


def test_blocks_that_are_left_count_as_blocks_of_their_target_but_for_one(cluster, project):
    job = write_job(project, trials=4, parallel=2, targets=["cpu"], steps=4, way="hold")
    study, site = project / "studies" / "where", site_of(cluster, project, cores=1, max_blocks=2)
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    driver.until(lambda: len(seen(study, 2)) == 2)
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    job.write_text(job.read_text().replace("parallel = 2", "parallel = 4"))
    again = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    again.until(lambda: len(seen(study, 2)) == 3)
    kinds = [record["kind"] for record in read_records(study / "parsl" / "blocks.jsonl")]
    assert kinds.count("block") == 3
    (project / "go").touch()
    assert again.wait() == 0, again.output
    assert states(study) == ["complete"] * 4
    assert {each["attempt"] for each in slots(study)} == {1}


def test_blocks_without_a_driver_end_with_their_last_trial(cluster, project):
    job = write_job(project, trials=2, parallel=2, targets=["cpu", "gpu"], steps=6, way="hold")
    study = project / "studies" / "where"
    driver = Driver(project, "sweep", str(job), "--site", site_of(cluster, project), env=cluster.env)
    driver.until(lambda: len(seen(study, 2)) == 2)
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    until(lambda: silent(study), 180, "no pool says that its driver is gone")
    (project / "go").touch()
    until(lambda: blocks(cluster) == [], 180, "blocks are left")
    until(lambda: tagged_processes(study) == [], 60, lambda: f"left: {tagged_processes(study)}")
    assert states(study) == [None, None]
    again = Driver(project, "workflow", "resume", str(study), env=cluster.env, inside=False)
    assert again.wait() == 0, again.output
    assert states(study) == ["complete"] * 2
    assert len(places(study)) == 2 * 6  # Nothing was run again: they were complete, and are counted.
    assert {each["attempt"] for each in slots(study)} == {1}


@pytest.mark.soak
def test_a_trial_whose_node_goes_down_goes_on_elsewhere_at_no_cost(cluster, project):
    job = write_job(project, trials=2, parallel=2, targets=["cpu"], steps=30, pause_s=0.5, retries=0)
    study = project / "studies" / "where"
    site = site_of(cluster, project, cores=1, max_blocks=2)
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    driver.until(lambda: len(seen(study, 3)) == 2)
    (victim,) = [record["host"] for record in places(study) if record["trial"] == 0][:1]
    others = {record["host"] for record in places(study)} - {victim}
    assert others, "both trials ran on one node"
    cluster.kill_node(victim)
    try:
        assert driver.wait() == 0, driver.output
    finally:
        cluster.start_node(victim)
    assert states(study) == ["complete"] * 2, driver.output
    outcome = read_trials(study)[0][1]
    assert outcome.attempts == 2
    assert len([line for line in driver.output.splitlines() if "complete" in line and "trial   0" in line]) == 1
    steps = [record["step"] for record in places(study) if record["trial"] == 0]
    assert sorted(set(steps)) == list(range(1, 31))
    assert len({record["host"] for record in places(study) if record["trial"] == 0}) == 2
    assert "lost" not in (outcome.reason or "")
    assert blocks(cluster) == []


@pytest.mark.soak
def test_blocks_are_left_before_their_time_limit_and_trials_go_on_in_others(cluster, project):
    # A block of a minute takes trials for 45 s and asks them to stop 7 s before its end: each trial needs 70 s.
    job = write_job(project, trials=1, parallel=1, targets=["cpu"], steps=70, pause_s=1.0, retries=0)
    study = project / "studies" / "where"
    site = site_of(cluster, project, block_time="1m")
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    assert driver.wait() == 0, driver.output
    assert states(study) == ["complete"]
    held = slots(study)
    assert len(held) >= 2
    assert all(each["end"] for each in held)  # Every one was left in order.
    assert len({each["job_id"] for each in held}) == len(held)
    assert len(places(study)) == 70  # No step is lost or done twice: it stopped at a checkpoint.
    check_slots(study, cluster)
    assert blocks(cluster) == []


@pytest.mark.soak
def test_cancelled_blocks_are_replaced_and_cost_no_retry(cluster, project):
    job = write_job(project, trials=2, parallel=2, targets=["gpu"], steps=10, pause_s=0.5, retries=0)
    study = project / "studies" / "where"
    driver = Driver(project, "sweep", str(job), "--site", site_of(cluster, project), env=cluster.env)
    driver.until(lambda: len(seen(study, 2)) == 2)
    cluster.run("scancel", *blocks(cluster))
    assert driver.wait() == 0, driver.output
    assert states(study) == ["complete"] * 2
    assert sum(record["kind"] == "block" for record in read_records(study / "parsl" / "blocks.jsonl")) == 2
    assert blocks(cluster) == []


@pytest.mark.parametrize("all_at_once", [False, True], ids=["the driver", "its process group"])
def test_an_interrupted_driver_leaves_neither_process_nor_block(cluster, project, all_at_once):
    job = write_job(project, trials=4, parallel=4, targets=["cpu", "gpu"], steps=6, way="hold")
    study = project / "studies" / "where"
    driver = Driver(project, "sweep", str(job), "--site", site_of(cluster, project), env=cluster.env)
    driver.until(lambda: len(seen(study)) >= 1)
    assert tagged_processes(study)
    if all_at_once:  # As `timeout` and a closed terminal do; Parsl's interchange is among them.
        os.killpg(driver.process.pid, signal.SIGTERM)
    else:
        driver.process.send_signal(signal.SIGINT)
    assert driver.wait() == (143 if all_at_once else 130), driver.output
    assert blocks(cluster) == []
    until(lambda: tagged_processes(study) == [], 180, lambda: f"left: {tagged_processes(study)}")
    assert None in states(study)


@pytest.mark.soak
def test_a_target_that_cannot_work_is_given_up_with_its_words(cluster, project):
    job = write_job(project, trials=2, parallel=2, targets=["cpu"])
    site = site_of(cluster, project, setup=["echo no such module; exit 1"])
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    assert driver.wait() != 0
    assert "no such module" in driver.output, driver.output
    assert "blocks in a row" in driver.output
    assert blocks(cluster) == []
