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
stopping = []
signal.signal(signal.SIGUSR1, lambda *_: stopping.append(1))
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
if sys.argv[4] == "meet":  # Both kinds of node are to be at work at once, however late a block comes.
    board = pathlib.Path("meet")
    board.mkdir(exist_ok=True)
    (board / socket.gethostname()[:2]).touch()
    while len(os.listdir(board)) < 2 and not stopping:
        time.sleep(0.05)
log = open(run / "places.jsonl", "a")
while step < steps:
    begin = time.time()
    time.sleep(pause)
    while sys.argv[4] == "hold" and step >= 2 and not os.path.exists("go") and not stopping:
        time.sleep(0.05)
    if stopping:
        sys.exit(0)  # A script that stops because it was asked to, ends well.
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
    way: str = "-",
    **sweep: object,
) -> Path:
    """A job whose trials are SCRIPT; further keys of `[sweep]` as TOML values.

    `way`: `meet`, trials begin when there are some on both kinds of node; `hold`, their third step is done when
    there is a file `go` in the project.
    """
    (project / "where.py").write_text(SCRIPT)
    more = "\n".join(f"{name} = {json.dumps(value)}" for name, value in sweep.items())
    file = project / "sweep.toml"
    file.write_text(f"""
name = "where"
command = ["python", "where.py", "{{x}}", "{{steps}}", "{{pause}}", "{{way}}"]

[params]
steps = {steps}
pause = {pause_s}
way = "{way}"

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
                start_new_session=True,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait(self, seconds: float = 600) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the driver did not end:\n{self.output}") from None

    def until(self, condition: Callable[[], object], seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.output
            assert self.process.poll() is None, self.output
            time.sleep(0.1)


def until(condition: Callable[[], object], seconds: float, what: str | Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what if isinstance(what, str) else what()
        time.sleep(0.2)


def queue(cluster, fields: str) -> list[list[str]]:
    """squeue's lines, in words; an answer that did not come is none that is empty."""
    for _ in range(10):
        done = cluster.run("squeue", "-h", "-o", fields)
        if done.returncode == 0:
            return [line.split() for line in done.stdout.splitlines()]
        time.sleep(1.0)
    raise AssertionError(f"squeue does not answer: {done.stderr}")


def blocks(cluster) -> list[str]:
    """Jobs that Slurm has of hpcmass's blocks; one that was cancelled is being ended for some moments."""
    jobs = queue(cluster, "%A %T %j")
    return [number for number, state, name, *_ in jobs if name.startswith("hpcmass-") and state != "COMPLETING"]


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


def check_given(study: Path, cluster) -> None:
    """No slot and no GPU was ever given twice at one time, and Slurm gave that job that node meanwhile."""
    held = slots(study)
    by_slot: dict[tuple, list] = {}
    for each in held:
        end = each["end"]
        if end is None:  # A lost worker's ended with its block at the latest; sacct tells whole seconds.
            job_end = accounted(cluster, each["job_id"])["End"] if cluster.has_accounting else 0.0
            end = max(each["time"], job_end - 1)
        span = (each["time"], end, each)
        by_slot.setdefault((each["host"], each["slot"]), []).append(span)
        if each["gpus"]:
            by_slot.setdefault((each["host"], "gpu", each["gpus"]), []).append(span)
    for key, spans in by_slot.items():
        spans.sort(key=lambda span: span[0])
        for one, other in itertools.pairwise(spans):
            assert one[1] <= other[0] + 0.01, (key, one, other)
    if not cluster.has_accounting:
        return
    for job_id in {each["job_id"] for each in held}:
        mine = [each for each in held if each["job_id"] == job_id]
        job = accounted(cluster, job_id)
        assert {each["host"] for each in mine} == {job["NodeList"]}, (job, mine)
        assert min(each["time"] for each in mine) >= job["Start"] - 1, (job, mine)
        assert max(each["end"] or 0 for each in mine) <= job["End"] + 1, (job, mine)
        if any(each["gpus"] for each in mine):
            assert "gres/gpu=2" in job["AllocTRES"], job


def accounted(cluster, job_id: str) -> dict:
    """What sacct says of a job that has ended; it lags."""
    fields = ("NodeList", "AllocTRES", "Start", "End")
    words = ("env", "SLURM_TIME_FORMAT=%s", "sacct", "-j", job_id, "-X", "-n", "-P", "-o", ",".join(fields))
    found: dict = {}

    def known() -> bool:
        values = cluster.run(*words).stdout.strip().split("|")
        found.update(zip(fields, values, strict=False))
        return len(values) == len(fields) and values[2].isdigit() and values[3].isdigit()

    until(known, 180, lambda: f"sacct does not know the job: {found}")
    return {**found, "Start": float(found["Start"]), "End": float(found["End"])}


def check_overlap(study: Path, cluster) -> None:
    """CPU and GPU nodes were at work at one time, as the workers say and as Slurm does."""
    held = [each for each in slots(study) if each["end"]]
    cpu = [each for each in held if each["target"] == "cpu"]
    gpu = [each for each in held if each["target"] == "gpu"]
    pairs = [(c, g) for c in cpu for g in gpu if c["time"] < g["end"] and g["time"] < c["end"]]
    assert pairs, held
    assert {each["host"][:2] for each in cpu} == {"cn"}
    assert {each["host"][:2] for each in gpu} == {"gn"}
    assert all(each["gpus"] in ("0", "1") for each in gpu), gpu
    if cluster.has_accounting:
        one, other = (accounted(cluster, each["job_id"]) for each in pairs[0])
        assert one["Start"] <= other["End"]
        assert other["Start"] <= one["End"]


def tagged_processes(folder: Path) -> list[tuple[int, str]]:
    """Live processes of the drivers that wrote a `blocks.jsonl` below a folder: interchanges, pilots, workers, ranks.

    Told by the tag in their environment, on this machine and in the nodes' namespaces; watchdogs have none.
    """
    drivers = {record["driver"] for file in folder.rglob("blocks.jsonl") for record in read_records(file)}
    tags = [f"{name}={driver}".encode() for name in ("HPCMASS_DRIVER", "HPCMASS_BLOCK") for driver in drivers]
    found = []
    for entry in os.listdir("/proc"):
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes() if entry.isdigit() else b""
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ") if environment else b""
        except OSError:
            continue
        if command and any(tag in environment for tag in tags):
            found.append((int(entry), command.decode(errors="replace")))
    return found


def check_slots(study: Path, cluster) -> None:
    """Run folders, the ranks' own logs and Slurm agree, and no slot was ever given twice at one time."""
    check_given(study, cluster)
    held = slots(study)
    last = max(record["end"] for record in places(study))
    for record in places(study):  # The rank says the same place as the worker that ran it.
        ran = [
            s
            for s in held
            if s["trial"] == record["trial"]
            and s["time"] <= record["begin"]
            and (s["end"] or last) >= record["end"] - 0.01
        ]
        assert {(s["host"], s["gpus"]) for s in ran} == {(record["host"], record["gpus"])}, (record, ran)


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
