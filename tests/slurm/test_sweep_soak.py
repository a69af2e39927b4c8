"""A study on two kinds of nodes whose driver, workers and blocks are killed at random moments, again and again."""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import Driver, blocks, places, site_of, tagged_processes, until, write_job

from hpcmass.files import read_records
from hpcmass.runs import State
from hpcmass.sweep.records import best_trials, read_trials

pytestmark = [pytest.mark.slurm, pytest.mark.soak, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("HPCMASS_SOAK_KILLS", "30"))
TRIALS, STEPS = 5 * KILLS, 8

# As the toys' script, and it says when it has ended well, in one write.
SCRIPT = """
import json, os, pathlib, signal, sys, time
import hpcmass

x, steps, pause = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
run = pathlib.Path(os.environ["HPCMASS_RUN_DIR"])
state = run / "counter"
step = int(state.read_text()) if state.exists() else 0
stopping = []
signal.signal(signal.SIGUSR1, lambda *_: stopping.append(1))
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
log = open(run / "places.jsonl", "a")
while step < steps:
    begin = time.time()
    time.sleep(pause)
    if stopping:
        sys.exit(0)
    step += 1
    hpcmass.report(step, loss=(x - 0.3) ** 2 + 1 / step)
    state.with_suffix(".new").write_text(str(step))
    os.replace(state.with_suffix(".new"), state)
    log.write(json.dumps({"step": step, "pid": os.getpid(), "begin": begin, "end": time.time()}) + "\\n")
    log.flush()
"""


def start(project, job, site, cluster):
    return Driver(project, "sweep", str(job), "--site", site, env=cluster.env)


def kill_worker(study):
    """End what runs a trial, its worker or its script; whether there was one."""
    found = [
        pid for pid, words in tagged_processes(study) if "where.py" in words or "process_worker_pool" in words
    ]
    random.shuffle(found)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        return True
    return False


def kill_block(cluster):
    """End a block as hard as Slurm can."""
    there = blocks(cluster)
    if not there:
        return False
    cluster.run("scancel", *random.choice([["--signal=KILL", "--full"], []]), random.choice(there))
    return True


def test_thirty_kills_lose_no_trial_and_run_none_twice_to_its_end(cluster, project):
    job = write_job(
        project,
        trials=TRIALS,
        parallel=12,
        steps=STEPS,
        pause_s=1.0,
        targets=["cpu", "gpu"],
        retries=10,
        seed=5,
    )
    (project / "where.py").write_text(SCRIPT)
    study, site = project / "studies" / "where", site_of(cluster, project, block_time="3m")
    driver, done = start(project, job, site, cluster), Counter()
    seen, began = 0, time.monotonic()
    while sum(done.values()) < KILLS:
        # The study has to get on in between, else nothing is under way that a kill could harm.
        end = time.monotonic() + 120
        while len(places(study)) <= seen and time.monotonic() < end and driver.process.poll() is None:
            time.sleep(0.1)
        assert len(places(study)) > seen, driver.output
        time.sleep(random.uniform(0.0, 2.0))
        seen = len(places(study))
        kind = random.choice(["driver", "worker", "worker", "block"])
        if kind == "driver":
            driver.process.send_signal(signal.SIGKILL)
            driver.process.wait()
            if random.random() < 0.5:  # Else the next one comes while the old blocks are still ending.
                until(lambda: blocks(cluster) == [], 180, "blocks are left")
            driver = start(project, job, site, cluster)
            done[kind] += 1
        else:
            done[kind] += kill_worker(study) if kind == "worker" else kill_block(cluster)
    assert driver.wait(900) == 0, driver.output
    trials = read_trials(study)
    print(f"kills {dict(done)} in {time.monotonic() - began:.0f} s; causes {causes(study)}")
    assert all(done[kind] for kind in ("driver", "worker", "block")), done
    assert blocks(cluster) == []
    assert len(trials) == TRIALS
    assert [outcome.state for _, outcome in trials] == ["complete"] * TRIALS, driver.output
    for spec, _ in trials:
        assert spec.run.status().state is State.COMPLETED
        steps = [record["step"] for record in places_of(spec)]
        assert sorted(set(steps)) == list(range(1, STEPS + 1))
        assert steps.count(STEPS) == 1  # Nobody came to the end twice.
        assert [r["step"] for r in spec.run.records("report")][-1] == STEPS
    # What it found is what a study without a kill finds: points and values are functions of the seed.
    alone = [(spec.params["x"] - 0.3) ** 2 + 1 / STEPS for spec, _ in trials]
    best = best_trials(load(study).sweep, trials)[0]
    assert best.number == alone.index(min(alone))
    assert best.value == pytest.approx(min(alone))
    for number, group in by_trial(study).items():
        assert [r["next"] for r in group if r["kind"] == "end"].count("complete") == 1, (number, group)


def load(study):
    from hpcmass.config import load_job

    return load_job(study / "job.toml")


def places_of(spec):
    return list(read_records(spec.path / "places.jsonl"))


def by_trial(study):
    found: dict[int, list] = {}
    for record in read_records(study / "attempts.jsonl"):
        found.setdefault(record["trial"], []).append(record)
    return found


def causes(study):
    return json.dumps(Counter(r["cause"] for r in read_records(study / "attempts.jsonl") if r["kind"] == "end"))
