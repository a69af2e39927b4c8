"""Trials of different sizes, what follows from their ends, and budgets: a study on a real Slurm."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import Driver, accounted, blocks, check_given, places, site_of, slots, write_job

from hpcmass.files import read_records
from hpcmass.sweep.budget import read_used
from hpcmass.sweep.records import read_trials

pytestmark = pytest.mark.slurm

# A trial that needs 1.5 GB (10^9 bytes), and is held to what its job was given of a node of 4.
HUNGRY = """
import resource, sys, tomllib, os, pathlib
import hpcmass

job = tomllib.loads(pathlib.Path(os.environ["HPCMASS_RUN_DIR"], "job.toml").read_text())
memory = job["resources"].get("memory_gb", 1.0)
resource.setrlimit(resource.RLIMIT_AS, (int(memory * 1e9),) * 2)
block = bytearray(1_500_000_000 if float(sys.argv[1]) > 0.5 else 10)
hpcmass.report(1, loss=memory)
"""

# A trial that knows no checkpoints: cut off, it begins anew.
STUBBORN = """
import time, signal, sys
import hpcmass

stopping = []
signal.signal(signal.SIGUSR1, lambda *_: stopping.append(1))
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
for second in range(75):
    time.sleep(1)
    if stopping:
        sys.exit(0)
hpcmass.report(1, loss=float(sys.argv[1]))
"""


def script_job(project, script, **sweep):
    job = write_job(project, **sweep)
    (project / "where.py").write_text(script)
    return job


def ends(study):
    return [record for record in read_records(study / "attempts.jsonl") if record["kind"] == "end"]


def test_each_trial_has_the_ranks_that_it_drew_on_either_kind_of_node(cluster, project):
    job = write_job(project, trials=10, parallel=10, targets=["cpu", "gpu"], steps=2, pause_s=0.5)
    text = job.read_text() + '"resources.ranks" = { type = "categorical", choices = [1, 2, 4] }\n'
    job.write_text(text + '"resources.gpus_per_rank" = { type = "categorical", choices = [0] }\n')
    driver = Driver(project, "sweep", str(job), "--site", site_of(cluster, project), env=cluster.env)
    assert driver.wait() == 0, driver.output
    study = project / "studies" / "where"
    trials = read_trials(study)
    assert [outcome.state for _, outcome in trials] == ["complete"] * 10, driver.output
    drawn = {spec.number: spec.params["resources.ranks"] for spec, _ in trials}
    assert set(drawn.values()) == {1, 2, 4}
    assert {number: [r for r in places(study) if r["trial"] == number and r["step"] == 1] for number in drawn}
    for number, ranks in drawn.items():
        assert trials[number][0].run.status().ranks == ranks
    # A node has as many slots as it holds of such a trial.
    shares = {(each["target"], drawn[each["trial"]]): round(1 / each["share"]) for each in slots(study)}
    cores = {"cpu": 4, "gpu": 8}
    assert all(count == min(10, cores[target] // ranks) for (target, ranks), count in shares.items()), shares
    check_given(study, cluster)
    assert {(r["trial"], r["ranks"], r["cause"]) for r in ends(study)} == {
        (number, ranks, "COMPLETED") for number, ranks in drawn.items()
    }
    assert blocks(cluster) == []


def test_memory_that_ran_out_is_doubled_and_only_for_who_needs_it(cluster, project):
    job = script_job(project, HUNGRY, trials=4, parallel=4, targets=["cpu"])
    driver = Driver(project, "sweep", str(job), "--site", site_of(cluster, project), env=cluster.env)
    assert driver.wait() == 0, driver.output
    study = project / "studies" / "where"
    trials = read_trials(study)
    assert [outcome.state for _, outcome in trials] == ["complete"] * 4, driver.output
    given = {spec.number: outcome.value for spec, outcome in trials}
    assert given == {spec.number: 2.0 if spec.params["x"] > 0.5 else 1.0 for spec, _ in trials}
    assert set(given.values()) == {1.0, 2.0}
    causes = [(r["trial"], r["cause"], r["free"]) for r in ends(study) if r["cause"] != "COMPLETED"]
    assert sorted(causes) == [(number, "OOM", False) for number in given if given[number] == 2.0]
    # Two slots of 2 GB on a node of 4: the larger one has a share of its own.
    shares = {(each["trial"], each["attempt"]): each["share"] for each in slots(study)}
    assert all(shares[number, 2] == 0.5 for number in given if given[number] == 2.0)


@pytest.mark.soak
def test_a_trial_that_no_block_is_long_enough_for_gets_a_longer_one(cluster, project):
    job = script_job(project, STUBBORN, trials=1, parallel=1, targets=["cpu"], retries=0)
    site = site_of(cluster, project, block_time="1m", max_time="10m")
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    assert driver.wait() == 0, driver.output
    study = project / "studies" / "where"
    assert [outcome.state for _, outcome in read_trials(study)] == ["complete"], driver.output
    assert [(r["cause"], r.get("changes")) for r in ends(study)] == [
        ("TIMEOUT", {"wall_s": 120}),
        ("COMPLETED", None),
    ]


@pytest.mark.soak
def test_a_budget_of_node_hours_is_never_gone_beyond_and_settled_as_accounted(cluster, project):
    hours = 4 / 60  # four blocks of a minute
    job = write_job(project, trials=200, parallel=8, targets=["cpu"], steps=30, pause_s=1.0)
    job.write_text(
        job.read_text().replace("[sweep.space]", f"[sweep.budget]\nnode_hours = {hours}\n\n[sweep.space]")
    )
    site = site_of(cluster, project, block_time="1m", max_blocks=2)
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    assert driver.wait() == 0, driver.output
    assert "node-hours are used" in driver.output
    study = project / "studies" / "where"
    assert read_used(study).ended
    assert blocks(cluster) == []
    journal = list(read_records(study / "parsl" / "blocks.jsonl"))
    jobs = [record["job_id"] for record in journal if record["kind"] == "block"]
    settled = {record["job_id"]: record for record in journal if record["kind"] == "settled"}
    assert set(settled) == set(jobs)
    total = 0.0
    for job_id in jobs:
        node_s = settled[job_id]["node_s"]
        total += node_s
        if cluster.has_accounting:
            facts = accounted(cluster, job_id)
            assert abs(facts["End"] - facts["Start"] - node_s) <= 1, (facts, settled[job_id])
    assert 0.5 * hours * 3600 < total <= hours * 3600, settled
    assert abs(read_used(study).node_s - total) < 1
    again = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    again.wait()
    assert "node-hours are used" in again.output  # Nothing is begun any more.
    assert len([r for r in read_records(study / "parsl" / "blocks.jsonl") if r["kind"] == "block"]) == len(jobs)
