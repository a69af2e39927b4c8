"""A run cut five times (time limit, preemption, node failure, SIGTERM, requeue) against one undisturbed.

On a development cluster of its own. Both runs are Slurm jobs of two ranks on one node with the same steps, and
run at the same time, each on nodes of its own, so that whatever else this machine does hits both. The samples that
count are compared step by step, out of files that the recipe writes itself.

What is counted as wall time: of every hop, from the moment the batch script's process has begun (`hop` begins)
to its end record, or to the last trace that a killed one left (its last step); queueing, Slurm's delays between
two hops and node failures' time-outs are not counted. So Python's start, imports, data, checkpoints, and steps
that were done twice are the extra.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "slurm"))
sys.path.append(str(Path(__file__).resolve().parents[1]))

from outliving_tools import (
    Bench,
    committed_samples,
    ended,
    hop_process,
    job_of,
    preempt,
    steps_begun,
    wait_until,
    weights,
)

from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder
from hpcmass.slurm.records import Hop, read_hops

GOAL = 0.15
PATIENCE_S = 3600.0
LIMIT_M = 60
# Where the undisturbed run is alone; the other one has all other nodes of `cpu` and `gpu`.
SITE = """
[targets.quiet]
kind = "slurm"
partition = "cpu"
cores = 4
sbatch = { nodelist = "cn3" }

[targets.rough]
kind = "slurm"
partition = "preempt"
cores = 4
sbatch = { exclude = "cn3" }
"""


def in_hops_s(run: RunFolder) -> float:
    """Seconds of all hops, without what lies between them."""
    hops = read_hops(run.path)
    return sum(_end(run, hop) - (hop.began or 0.0) for hop in hops)


def _end(run: RunFolder, hop: Hop) -> float:
    """When a hop ended: by its own record, or by the last trace of one that was killed."""
    files = list((run.path / "seen").glob(f"{hop.job_id}-{hop.restart}-*.jsonl"))
    last = max((file.stat().st_mtime for file in files), default=hop.began or 0.0)
    following = [other.began for other in read_hops(run.path) if other.hop == hop.hop + 1]
    written = hop.ended or last
    # The end of a killed hop is written by the next one, when that begins.
    return last if following and written >= (following[0] or 0.0) else written


def next_hop(run: RunFolder, number: int, more: int) -> None:
    """Wait until hop `number` has done some steps."""

    def there() -> bool:
        hops = read_hops(run.path)
        if hops and hops[-1].hop > number:
            raise AssertionError(f"hop {number} is over already: {hops}")
        if not hops or hops[-1].hop < number:
            return False
        file = run.path / "seen" / f"{hops[-1].job_id}-{hops[-1].restart}-0.jsonl"
        return file.exists() and len(file.read_text().splitlines()) >= more

    wait_until(there, f"hop {number}", PATIENCE_S)


def cut_five_times(bench: Bench, cluster: Cluster, run: RunFolder, steps: int) -> None:
    """The five ways to lose a job, one a hop; the time limit last, since its moment is not ours."""
    next_hop(run, 1, steps)
    preempt(bench, run)
    next_hop(run, 2, steps)
    node = read_hops(run.path)[-1].host
    cluster.kill_node(node)
    next_hop(run, 3, steps)
    cluster.start_node(node)
    os.kill(hop_process(run), signal.SIGTERM)
    next_hop(run, 4, steps)
    cluster.run("scontrol", "requeue", job_of(run))
    next_hop(run, 5, steps)
    # Shortens the limit of the running job: it has the rest of a minute, or a minute more.
    begun = read_hops(run.path)[-1].began or time.time()
    minutes = int((time.time() - begun) // 60) + 2
    cluster.run("scontrol", "update", f"JobId={job_of(run)}", f"TimeLimit={minutes}")
    next_hop(run, 6, 0)
    cluster.run("scontrol", "update", f"JobId={job_of(run)}", f"TimeLimit={LIMIT_M}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a run of five minutes instead of half an hour")
    quick = parser.parse_args().quick
    epochs, pause = (60, 0.5) if quick else (300, 0.5)
    folder = Path(tempfile.mkdtemp(prefix="hpcmass-bench-"))
    cluster = Cluster.up(folder / "c", accounting=False)
    try:
        for name in ("SLURM_CONF", "PATH"):
            os.environ[name] = cluster.env[name]
        bench = Bench(cluster, folder / "project", epochs=epochs)
        with open(bench.site, "a") as site:
            site.write(SITE)
        options = {"pause": pause, "train": "checkpoint_every_steps = 20"}
        whole = bench.submit("whole", **options, resources={"target": "quiet", "time": f"{LIMIT_M}m"})
        cut = bench.submit("cut", **options, resources={"target": "rough", "time": f"{LIMIT_M}m"})
        cut_five_times(bench, cluster, cut, epochs * 10 // 8)
        last = wait_until(lambda: ended(cut), "the run that was cut", PATIENCE_S)
        wait_until(lambda: ended(whole), "the undisturbed run", PATIENCE_S)
        report(whole, cut, last)
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


def report(whole: RunFolder, cut: RunFolder, last: Hop) -> None:
    """Print what was found."""
    for hop in read_hops(cut.path):
        seconds = _end(cut, hop) - (hop.began or 0.0)
        print(f"hop {hop.hop}: {hop.cause:12} steps {hop.from_step}–{hop.step}, {seconds:.1f} s")
    samples = committed_samples(cut) == committed_samples(whole)
    same = weights(cut) == weights(whole)
    base, wall = in_hops_s(whole), in_hops_s(cut)
    extra = wall / base - 1
    print(f"undisturbed {base:.1f} s, cut {wall:.1f} s in {last.hop} hops; steps begun {steps_begun(cut)}")
    print(f"committed samples identical: {samples}; weights bit-identical: {same}")
    met = samples and last.cause == "completed" and extra <= GOAL
    print(
        json.dumps(
            {
                "name": "five hops, extra wall beside queueing",
                "value": round(extra, 4),
                "unit": "of the undisturbed run",
                "goal": f"<= {GOAL}, identical samples",
                "met": met,
            }
        )
    )


if __name__ == "__main__":
    main()
