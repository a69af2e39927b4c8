"""What the tests and the benchmark of outliving share: a run that logs itself what it trained on.

The recipe's `transform` writes the sample ids of every step into a file of its rank and hop. Which of those
steps count follows from the hops: a step after the one that the next hop went on from was taken back.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.config import Project
from hpcmass.data import shard
from hpcmass.devcluster import Cluster
from hpcmass.runs import RunFolder
from hpcmass.slurm.records import Hop, read_hops, read_submissions
from hpcmass.workflow.submit import submit
from hpcmass.workflow.training import train

RECIPE = """
import json, os, pathlib, time
import torch

PAUSE, BREAKS = None, ""


def build_model(params):
    global PAUSE, BREAKS
    PAUSE, BREAKS = params["pause"], params["breaks"]
    layers = [torch.nn.Linear(6, params["width"]), torch.nn.Tanh(), torch.nn.Dropout(0.1)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(params["width"], 2))


def transform(batch, train):
    if train:
        name = "-".join(os.environ.get(key, "0") for key in (
            "HPCMASS_SLURM_JOB", "HPCMASS_SLURM_RESTART", "HPCMASS_RANK"))
        folder = pathlib.Path(__file__).resolve().parent / "seen"
        folder.mkdir(exist_ok=True)
        with open(folder / f"{name}.jsonl", "a") as file:
            file.write(json.dumps([int(one) for one in batch["sample_id"]]) + "\\n")
        time.sleep(PAUSE)
        exec(BREAKS)
    return batch
"""
# What a run does in `transform`, behind each step of a hop that it has logged; laid down with the run, since a
# run that has begun waits for no test. It goes on slowly from step 16 of a hop on until there is a file `go`.
HOLD = """
hold = len((folder / f"{name}.jsonl").read_text().splitlines()) > 15
if hold and not (folder.parent / "go").exists():
    time.sleep(2)
"""
JOB = """\
name = "{name}"
recipe = "recipe.py"

[data]
train = "data/tiny/train"
valid = "data/tiny/valid"

[params]
pause = {pause}
breaks = {breaks}
width = 16

[train]
epochs = {epochs}
global_batch = 12
lr = 0.01
log_every_steps = 5
backend = "{backend}"
{train}

[resources]
{resources}
"""


def make_project(root: Path, samples: int = 120) -> Project:
    """A project on a folder that all nodes see, with a small dataset and the logging recipe."""
    project = Project.create(root, "outliving")
    rng = np.random.default_rng(0)
    for split, count in (("train", samples), ("valid", 24)):
        x = rng.normal(size=(count, 6)).astype("float32")
        np.savez(root / "raw.npz", x=x, y=(x.sum(1) > 0).astype("int64"))
        shard(root / "raw.npz", project.data / "tiny" / split, inputs=["x"], targets=["y"], shards=3, workers=1)
    (root / "recipe.py").write_text(RECIPE)
    return project


def job_file(
    project: Project,
    name: str,
    *,
    pause: float,
    epochs: int,
    resources: Mapping[str, Any],
    backend: str = "auto",
    train: str = "",
    breaks: str = "",
) -> Path:
    """A job of 10 steps an epoch (120 samples); `breaks`: what it does in every step besides."""
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in resources.items())
    path = project.root / f"{name}.toml"
    text = JOB.format(
        name=name, pause=pause, breaks=json.dumps(breaks), epochs=epochs, backend=backend, train=train,
        resources=lines,
    )  # fmt: skip
    path.write_text(text)
    return path


class Bench:
    """A project on a cluster, its runs, and the undisturbed run that they are held against."""

    def __init__(self, cluster: Cluster, root: Path, *, epochs: int = 8) -> None:
        self.cluster, self.epochs = cluster, epochs
        self.project = make_project(root)
        self.site = root / "site.toml"
        more = '\n[targets.norequeue]\nkind = "slurm"\npartition = "cpu"\ncores = 4\nrequeue = false\n'
        self.site.write_text(cluster.site_file.read_text() + more)

    def submit(self, name: str, *, pause: float = 0.1, **options: Any) -> RunFolder:
        """Submit a run of `epochs` × 10 steps, each `pause` seconds long."""
        resources = {"ranks": 2, "threads_per_rank": 1, "time": "5m", **options.pop("resources", {})}
        options = {"epochs": self.epochs, "backend": "torch", **options}
        after = options.pop("after", ())
        file = job_file(self.project, name, pause=pause, resources=resources, **options)
        return RunFolder(submit(file, self.project, site_file=self.site, after=after).runs[0])

    def undisturbed(self, ranks: int = 2) -> RunFolder:
        """The same run without Slurm and without a break."""
        run = RunFolder(self.project.run_path(f"undisturbed-{ranks}"))
        if not run.model.exists():
            resources = {"ranks": ranks, "threads_per_rank": 1}
            file = job_file(
                self.project, run.path.name, pause=0, epochs=self.epochs, backend="torch", resources=resources
            )
            train(file, self.project, console=False)
            # The recipe that ran lies in the project, and so does what it wrote.
            shutil.move(self.project.root / "seen", run.path / "seen")
        return run

    def check_same(self, run: RunFolder, *, ranks: int = 2) -> None:
        """Its committed samples are those of the undisturbed run, and so are its weights, bit by bit."""
        mine, whole = committed_samples(run), committed_samples(self.undisturbed(ranks))
        assert sorted(whole) == list(range(1, 10 * self.epochs + 1))
        assert sorted(mine) == sorted(whole)
        assert mine == whole
        assert weights(run) == weights(self.undisturbed(ranks))

    def told(self, run: RunFolder) -> str:
        """What is known of a run, for whoever reads why a test failed."""
        outputs = sorted((run.path / "slurm").glob("out-*.log"))
        said = "\n".join(file.read_text(errors="replace")[-2000:] for file in outputs)
        queue = self.cluster.run("squeue", "-o", "%i %j %T %r %M %N").stdout
        hops = "\n".join(map(str, read_hops(run.path)))
        return f"{queue}{hops}\n{run.status()}\n{said}"

    def job_state(self, job_id: str) -> str:
        """What squeue says of a job; empty where it is gone. An answer that did not come says nothing of it."""
        done = self.cluster.run("squeue", "-h", "-j", job_id, "-o", "%T")
        if done.returncode == 0 or "Invalid job id" in done.stderr:
            return done.stdout.strip()
        return "not known"


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str], limit_s: float = 400.0) -> Any:
    """Poll for a state; the first true answer."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if answer := condition():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"not within {limit_s:g} s: {what if isinstance(what, str) else what()}")


def job_of(run: RunFolder) -> str:
    """The id of the job that was submitted last."""
    return read_submissions(run.path)[-1].job_id


def let_go(run: RunFolder) -> None:
    """Let a run that is held (`HOLD`) go on quickly: once the hop that was to be cut short has ended."""
    (run.path / "go").touch()


def hop_process(run: RunFolder) -> int:
    """The process of the newest hop of a run."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"hop" in words and str(run.path).encode() in words:
                found.append(int(entry.name))
    return max(found)


def preempt(bench: Bench, run: RunFolder) -> None:
    """Take the nodes of a run's job in a partition of a higher tier, for a moment."""
    for node in read_hops(run.path)[-1].nodes:
        partition = "gpu" if node.startswith("gn") else "cpu"
        words = ["-p", partition, "-w", node, "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 2"]
        assert bench.cluster.run("sbatch", *words).returncode == 0


def ended(run: RunFolder) -> Hop | None:
    """The last hop, where it has ended and nothing follows it."""
    hops = read_hops(run.path)
    return hops[-1] if hops and hops[-1].cause and hops[-1].next == "none" else None


def wait_ended(bench: Bench, run: RunFolder, limit_s: float = 400.0) -> Hop:
    """Wait for the end of a run; its last hop."""
    last: Hop = wait_until(lambda: ended(run), lambda: f"the run's end\n{bench.told(run)}", limit_s)
    return last


def hop_ended(run: RunFolder, number: int) -> Hop | None:
    """Hop `number`, where it has ended."""
    return next((hop for hop in read_hops(run.path) if hop.hop == number and hop.cause), None)


def steps_begun(run: RunFolder) -> int:
    """Steps begun in all hops, by the recipe's own files of rank 0."""
    return sum(len(file.read_text().splitlines()) for file in (run.path / "seen").glob("*-0.jsonl"))


def steps_of_ranks(run: RunFolder, hop: Hop) -> dict[int, int]:
    """The step that each rank of a hop had begun last, by the recipe's own files."""
    files = (run.path / "seen").glob(f"{hop.job_id}-{hop.restart}-*.jsonl")
    return {
        int(file.stem.rpartition("-")[2]): hop.from_step + len(file.read_text().splitlines()) for file in files
    }


def committed_samples(run: RunFolder) -> dict[int, list[int]]:
    """Sample ids by step, of the steps that count, out of the recipe's own files."""
    hops = read_hops(run.path) or [Hop(1, job_id="0")]
    found: dict[int, list[int]] = {}
    for hop in hops:
        for step in [step for step in found if step > hop.from_step]:
            del found[step]
        seen: dict[int, list[int]] = defaultdict(list)
        for file in sorted((run.path / "seen").glob(f"{hop.job_id}-{hop.restart}-*.jsonl")):
            for number, line in enumerate(file.read_text().splitlines()):
                seen[hop.from_step + 1 + number] += json.loads(line)
        found |= {step: sorted(ids) for step, ids in seen.items()}
    return found


def weights(run: RunFolder) -> bytes:
    """The final weights, byte for byte."""
    return (run.model / "weights.safetensors").read_bytes()
