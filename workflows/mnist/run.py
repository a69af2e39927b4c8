"""The main job of demo.py on a cluster, on CPU and GPU targets at once; run again, it resumes what is there.

    hpcmass slurm up
    python workflows/mnist/run.py --site site-configs/devcluster.toml

Parsl runs every step on the site's targets: shards, a sweep whose trials go wherever there is room, the best
one again on several nodes, its evaluation, its version in the catalogue. With `--driver job` this script itself
is a job, which goes on over its time limits. README.md beside this file says more.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

# mpiexec and Parsl's programs are beside the interpreter.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

import parsl
from demo import CUT, HERE, final_job, open_demo, predict, promote, raw_images, say, search, show, tell

import hpcmass
from hpcmass.config import Job, Project, job_to_toml, load_job
from hpcmass.devcluster import Cluster
from hpcmass.errors import HpcmassError, LeaseHeld, NotFound
from hpcmass.evaluate import Evaluation
from hpcmass.files import Lease, read_json, read_records, replace
from hpcmass.runs import RunFolder
from hpcmass.workflow import api, apps
from hpcmass.workflow.drive import note_driver, submit_driver

# More trials at once than either kind of node has room for; --quick: small enough for a test on two cores.
SETS = ("sweep.parallel=8", "resources.threads_per_rank=2")
QUICK = ("sweep.trials=8", "train.epochs=1", "train.global_batch=32", "sweep.space.trees.high=80")


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--site", type=Path, required=True, metavar="FILE", help="the site file")
    add("--project", type=Path, default=Path("mnist-cluster"), metavar="FOLDER",
        help="where everything goes, on a file system that the nodes see [%(default)s]")  # fmt: skip
    add("--targets", default="cpu,gpu", metavar="NAMES", help="the targets [%(default)s]")
    add("--nodes", type=int, default=2, help="of the last training, a rank each [%(default)s]")
    add("--driver", choices=["here", "job"], default="here", help="run this script here, or as a Slurm job")
    add("--driver-target", metavar="NAME", help="where that job runs [the site's default]")
    add("--quick", action="store_true", help="8 trials of one epoch")
    return parser.parse_args(words)


def join_cluster(file: Path, name: str) -> None:
    """Speak to the development cluster that a site file is of, where the shell does not yet.

    Raises:
        NotFound: It does not run.
    """
    beside = file.absolute().parent
    if (beside / "state.json").is_file():
        cluster = Cluster.open(beside)
    elif name == "devcluster" and "SLURM_CONF" not in os.environ:
        cluster = Cluster.open()
    else:
        return
    if cluster.status().down:
        raise NotFound("the development cluster is down", where=cluster.folder, hint="hpcmass slurm up")
    os.environ.update({key: cluster.env[key] for key in ("SLURM_CONF", "PATH")})


class Main:
    """The job on one site's targets: the first takes what needs CPUs, the last evaluates."""

    def __init__(self, site: hpcmass.Site, project: Project, targets: list[str], nodes: int, job: Job) -> None:
        self.site, self.project, self.targets, self.nodes, self.job = site, project, targets, nodes, job
        self.config = {"run_dir": project.root / "parsl", "nodes": nodes, "poll_s": 5.0}

    def shard(self) -> None:
        """The images → HDF5 shards, cut on a node."""
        say(1, "5,000 MNIST images into HDF5 shards: train, valid, test, stratified by digit")
        if (self.project.data / "mnist").exists():
            print("resumed: data/mnist is there already")
            return
        raw, root, where = raw_images(self.project), self.project.root, self.targets[0]
        with parsl.load(self.site.parsl_config(targets=[where], **self.config)):
            print("cut into", apps.shard([raw], "data/mnist", project=root, executor=where, **CUT).result())

    def search(self) -> Any:
        """The sweep, on all targets side by side."""
        result = search(self.project, self.job, self.site)
        slots = (record for file in self.project.studies.glob("mnist/trials/*/slots.jsonl")
                 for record in read_records(file) if record["kind"] == "begin")  # fmt: skip
        counts = Counter(f"{slot['target']} ({slot['node']})" for slot in slots)
        print("slots used: " + ", ".join(f"{count} on {where}" for where, count in sorted(counts.items())))
        return result

    def finish(self, best: Any) -> tuple[Evaluation, Any]:
        """The best one again over several nodes, evaluated, registered: apps that wait for each other."""
        first, last, root = self.targets[0], self.targets[-1], self.project.root
        file, catalogue = root / "mnist-final.toml", api.open_catalogue(self.project)
        run = RunFolder(self.project.run_path("mnist-final"))
        say(3, f"the best one again, on train + valid, on {self.nodes} MPI ranks, a node each")
        replace(file, job_to_toml(final_job(self.job, best, self.nodes)))
        with parsl.load(self.site.parsl_config(targets=list(dict.fromkeys([first, last])), **self.config)):
            wide = first if self.nodes == 1 else f"{first}-nodes"
            trained = apps.train(file, project=root, run="mnist-final", executor=wide, ranks=self.nodes)
            score = apps.evaluate(trained, self.project.data / "mnist" / "test", project=root, executor=last)
            version = apps.register(trained, project=root, name="mnist", executor=first, evaluation=score)
            places = read_json(Path(trained.result()) / "ranks" / f"attempt-{run.status().attempt}.json")
            for rank in places["ranks"]:
                print(f"rank {rank['rank']} ran on {rank['host']}")
            say(4, f"the untouched test split, on {last}")
            evaluation = Evaluation.from_json(read_json(Path(score.result())))
            show(self.project, run, evaluation, best)
            say(5, "a version in the catalogue, and the alias 'production'")
            kept = catalogue.get(version.result())
            promote(self.project, kept, why="workflows/mnist/run.py")
        return evaluation, kept


def main() -> None:
    began, arguments = time.monotonic(), arguments_of()
    site = hpcmass.Site.load(arguments.site)
    join_cluster(arguments.site, site.name)
    project = open_demo(arguments.project)
    targets = [name.strip() for name in arguments.targets.split(",")]
    words = [sys.executable, str(HERE / "run.py"), "--site", str(arguments.site.absolute()), "--targets",
             arguments.targets, "--nodes", str(arguments.nodes), "--project", str(project.root),
             *(["--driver-target", arguments.driver_target] if arguments.driver_target else []),
             *(["--quick"] if arguments.quick else [])]  # fmt: skip
    leases = [project.root / "lease", project.study_path("mnist") / "lease"]
    driver: dict[str, Any] = {"site": site, "target": arguments.driver_target, "leases": leases}
    if arguments.driver == "job":
        job_id = submit_driver(project.root, words, name="hpcmass-mnist", **driver)
        print(f"the driver is job {job_id}; its output lies in {project.root / 'driver'}")
        return
    job = load_job(HERE / "job.toml", (*SETS, f"sweep.targets={json.dumps(targets)}",
                                       *(QUICK if arguments.quick else ())))  # fmt: skip
    with Lease(project.root / "lease"):
        note_driver(project.root, words, **driver)
        work = Main(site, project, targets, arguments.nodes, job)
        work.shard()
        result = work.search()
        evaluation, version = work.finish(result.best)
        predict(project)
        tell(project, evaluation, version, began)


def stop(number: int, _frame: Any) -> None:
    """End in order: blocks are given back on the way out."""
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except LeaseHeld as error:
        sys.exit(f"error: another driver works here: {error}")
    except HpcmassError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run it again to go on")
