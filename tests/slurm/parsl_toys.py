"""What the Parsl tests run: a script that says where it is, and sweeps as processes of their own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hpcmass.config import Target, load_site, site_to_toml
from hpcmass.files import read_records
from hpcmass.sweep.records import read_trials

# A trial that checkpoints a counter, reports, and writes down where and when each step ran.
SCRIPT = """
import json, os, pathlib, signal, socket, sys, time
import hpcmass

x, steps, pause = float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
run = pathlib.Path(os.environ["HPCMASS_RUN_DIR"])
state = run / "counter"
step = int(state.read_text()) if state.exists() else 0
if sys.argv[4] == "meet":  # Both kinds of node are to be at work at once.
    board = pathlib.Path("meet")
    board.mkdir(exist_ok=True)
    (board / socket.gethostname()[:2]).touch()
    until = time.time() + 90
    while len(os.listdir(board)) < 2 and time.time() < until:
        time.sleep(0.05)
stopping = []
signal.signal(signal.SIGUSR1, lambda *_: stopping.append(1))
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
log = open(run / "places.jsonl", "a")
while step < steps:
    begin = time.time()
    time.sleep(pause)
    if stopping:
        sys.exit(0 if step >= steps else 75)
    step += 1
    state.with_suffix(".new").write_text(str(step))
    os.replace(state.with_suffix(".new"), state)
    place = {"host": socket.gethostname(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "pid": os.getpid()}
    log.write(json.dumps({"step": step, **place, "begin": begin, "end": time.time()}) + "\\n")
    log.flush()
    hpcmass.report(step, loss=(x - 0.3) ** 2 + 1 / step)
"""


def write_job(
    project: Path,
    *,
    trials: int,
    parallel: int,
    steps: int = 3,
    pause_s: float = 0.2,
    meet: bool = False,
    **sweep: object,
) -> Path:
    """A job whose trials are SCRIPT; further keys of `[sweep]` as TOML values."""
    (project / "where.py").write_text(SCRIPT)
    more = "\n".join(f"{name} = {json.dumps(value)}" for name, value in sweep.items())
    file = project / "sweep.toml"
    file.write_text(f"""
name = "where"
command = ["python", "where.py", "{{x}}", "{{steps}}", "{{pause}}", "{{meet}}"]

[params]
steps = {steps}
pause = {pause_s}
meet = "{"meet" if meet else "-"}"

[sweep]
sampler = "random"
trials = {trials}
parallel = {parallel}
metric = "loss"
{more}

[sweep.space]
x = {{ type = "float", low = 0.0, high = 1.0 }}
""")
    return file


class Driver:
    """`hpcmass sweep` as a process of its own."""

    def __init__(self, project: Path, *words: str, env: dict[str, str], inside: bool = True) -> None:
        self.log = project / f"driver-{time.monotonic_ns()}.log"
        root = Path(__file__).parents[2]
        path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hpcmass", *words, *(["--project", str(project)] if inside else [])],
                env={**env, "PYTHONPATH": path}, stdout=log, stderr=subprocess.STDOUT, cwd=root,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 120) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the driver did not end:\n{self.output}") from None

    def until(self, condition: Callable[[], object], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.output
            assert self.process.poll() is None, self.output
            time.sleep(0.1)


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def blocks(cluster) -> list[str]:
    """Jobs that Slurm has of hpcmass's blocks."""
    out = cluster.run("squeue", "-h", "-o", "%A %j").stdout
    return [line.split()[0] for line in out.splitlines() if line.split()[1].startswith("hpcmass-")]


def places(study: Path) -> list[dict]:
    """Every step of every trial as the ranks themselves wrote it down."""
    return [
        {"trial": spec.number, **record}
        for spec, _ in read_trials(study)
        for record in read_records(spec.path / "places.jsonl")
    ]


def slots(study: Path) -> list[dict]:
    """Every holding of a slot, as the workers wrote it down; its end is None where the worker was lost."""
    found = []
    for spec, _ in read_trials(study):
        for record in read_records(spec.path / "slots.jsonl"):
            if record["kind"] == "begin":
                found.append({"trial": spec.number, **record, "end": None})
            else:
                mine = [s for s in found if s["trial"] == spec.number and s["attempt"] == record["attempt"]]
                mine[-1]["end"] = record["time"]
    return found


def check_slots(study: Path, cluster) -> None:
    """Run folders, the ranks' own logs and Slurm agree, and no slot was ever given twice at one time."""
    held = slots(study)
    last = max(record["end"] for record in places(study))
    by_slot: dict[tuple, list] = {}
    for each in held:
        by_slot.setdefault((each["host"], each["slot"]), []).append((each["time"], each["end"] or last, each))
        if each["gpus"]:
            by_slot.setdefault((each["host"], "gpu", each["gpus"]), []).append(
                (each["time"], each["end"] or last, each)
            )
    for key, spans in by_slot.items():
        spans.sort(key=lambda span: span[0])
        for one, other in itertools.pairwise(spans):
            assert one[1] <= other[0] + 0.01, (key, one, other)
    for record in places(study):  # The rank says the same place as the worker that ran it.
        ran = [
            s
            for s in held
            if s["trial"] == record["trial"]
            and s["time"] <= record["begin"]
            and (s["end"] or last) >= record["end"] - 0.01
        ]
        assert {(s["host"], s["gpus"]) for s in ran} == {(record["host"], record["gpus"])}, (record, ran)
    for job_id in {s["job_id"] for s in held}:  # Slurm gave that job that node.
        nodes = {s["host"] for s in held if s["job_id"] == job_id}
        if cluster.has_accounting:
            words = ("sacct", "-j", job_id, "-X", "-n", "-P", "-o", "NodeList,AllocTRES")
            until(lambda w=words: cluster.run(*w).stdout.strip(), 30, "sacct knows the job")  # It lags.
            line = cluster.run(*words).stdout
            assert nodes == {line.split("|")[0]}, (job_id, line)
            if any(s["gpus"] for s in held if s["job_id"] == job_id):
                assert "gres/gpu=2" in line, line


def site_of(cluster, project: Path, **keys: object) -> str:
    """The cluster's site file with other values for keys of its cpu and gpu targets."""
    site = load_site(cluster.site_file)
    targets = {
        name: Target.model_validate({**target.model_dump(), **(keys if name in ("cpu", "gpu") else {})})
        for name, target in site.targets.items()
    }
    file = project / "site.toml"
    file.write_text(site_to_toml(site.model_copy(update={"targets": targets})))
    return str(file)
