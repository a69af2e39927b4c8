"""What a probe's job runs on its first node: tries, measures, and writes down what it saw as it goes.

    probe_program SETTINGS.json

Every part is an attempt of its own with a limit: one that hangs or aborts is a line of the report.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from hpcmass.config import Layout, Target
from hpcmass.errors import HpcmassError
from hpcmass.files import make_dir, replace_json
from hpcmass.launch import Outcome, find_mpiexec, plan_ranks, read_allocation, supervise, usable_cores
from hpcmass.launch.attempts import Attempt, attempts, best, proven, verdict
from hpcmass.launch.command import module_command
from hpcmass.launch.topology import node_facts, node_name
from hpcmass.slurm.site_facts import parse_pmi
from hpcmass.workflow.containers import image_prefix

RANK = "hpcmass.train.probe_rank"
_FILE_BYTES, _BLOCK, _SMALL_FILES = 128 << 20, 4 << 20, 300


@dataclass(frozen=True)
class Settings:
    """What a probe is asked for.

    Attributes:
        report: The file to write.
        work: A folder on the shared file system for the ranks' records.
        nodes, ranks, per_node, threads: The layout of the job.
        gpus_per_node: What the job asked for.
        folders: Folders to measure by name; they may name variables such as `$TMPDIR`.
        options: The target's keys, for ranks are started as its runs start theirs.
        limit_s: For one attempt.
    """

    site: str
    target: str
    report: str
    work: str
    nodes: int
    ranks: int
    per_node: int
    threads: int
    folders: dict[str, str]
    gpus_per_node: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    limit_s: float = 90.0


class Ranks:
    """Starts the ranks of a probe in just the way in which a run of the target would start its own.

    Attributes:
        container: The words in front of a rank's command, where the target has an image.
        mpiexec: That of this environment.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.target = Target.model_validate(settings.options)
        self.allocation = read_allocation(os.environ)
        self.mpiexec = find_mpiexec()
        work = make_dir(Path(settings.work))
        self.container = image_prefix(self.target, [work], work)
        self.layout = Layout(
            settings.nodes, settings.ranks, settings.per_node, settings.threads, settings.gpus_per_node, None, 0
        )

    def start(self, way: Attempt, what: str) -> tuple[list[dict[str, Any]], int | None, str]:
        """Start ranks of `train.probe_rank`.

        Returns:
            What they left, how the launcher ended (None: it had to be ended), and what its output says.
        """
        target = self.target.model_copy(update={"launcher": way.launcher, "pmi": way.pmi})
        return self._run(target, self.layout, what, self.container)

    def nodes(self) -> tuple[list[dict[str, Any]], int | None, str]:
        """One process a node that says what the node is; outside the image, and without any MPI."""
        layout = self.layout
        whole = Layout(
            layout.nodes, layout.nodes, 1, layout.ranks_per_node * layout.threads_per_rank, 0, None, 0
        )
        return self._run(self.target.model_copy(update={"launcher": "spawn", "pmi": None}), whole, "node", [])

    def _run(
        self, target: Target, layout: Layout, what: str, container: Sequence[str]
    ) -> tuple[list[dict[str, Any]], int | None, str]:
        folder = make_dir(Path(self.settings.work) / f"{what}-{time.time_ns()}")
        command = [*module_command(RANK, in_container=bool(container)), what, str(layout.ranks), str(folder)]
        until = time.monotonic() + self.settings.limit_s

        def look() -> None:
            if time.monotonic() > until:
                raise _TooLong

        def log(rank: int) -> Path:
            return folder / f"rank-{rank}.log"

        said: list[str] = []
        code: int | None = None
        try:
            plan = plan_ranks(
                command, layout.ranks, target,
                threads_per_rank=layout.threads_per_rank, cores=usable_cores(), mpiexec=self.mpiexec,
                env=os.environ, layout=layout, allocation=self.allocation, container=container,
            )  # fmt: skip
            if plan.launcher == "srun":
                # Not to wait for a step that an earlier attempt left hanging.
                plan = replace(plan, argv=[plan.argv[0], "--overlap", *plan.argv[1:]])
            outcome = supervise(plan, log_file=log, each_poll=look, shared=folder, cwd=folder)
        except _TooLong:
            pass
        except HpcmassError as error:
            code, said = 1, [str(error)]
        else:
            if outcome.signalled is not None:  # the whole probe is being ended, not this attempt
                sys.exit(128 + outcome.signalled)
            code, said = _exit_code(outcome), outcome.launcher_tail.splitlines()
        for rank in range(layout.ranks):
            with contextlib.suppress(OSError):
                said += log(rank).read_text(errors="replace").splitlines()
        lines = [line.strip() for line in said if line.strip()]
        records = []
        for file in sorted(folder.glob("*.json")):
            with contextlib.suppress(ValueError, OSError):
                records.append(json.loads(file.read_text(encoding="utf-8")))
        return records, code, _telling(lines)


class _TooLong(Exception):
    """An attempt's time is over."""


def _exit_code(outcome: Outcome) -> int:
    """Of the launcher, or of the first rank that failed under one which does not tell."""
    failed = outcome.first_failure
    if outcome.launcher_exit or failed is None:
        return outcome.launcher_exit
    return failed.exit_code if failed.exit_code is not None else 128 + (failed.signal or 0)


def main() -> NoReturn:
    """Probe as the settings file says."""
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        probe(settings)
    except HpcmassError as error:
        # In one line: the last one of the job's output is what the probe tells of it.
        sys.exit(" ".join(f"hpcmass: {error}".split()))
    sys.exit(0)


def probe(settings: Settings) -> dict[str, Any]:
    """All parts, in the order of their worth; the report is on disk after each."""
    report: dict[str, Any] = {
        "format": 1,
        "site": settings.site,
        "target": settings.target,
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "nodes": settings.nodes,
        "ranks": settings.ranks,
        "container": settings.options.get("container"),
        "started": time.time(),
        "complete": False,
    }

    def keep(**values: Any) -> None:
        report.update(values)
        replace_json(Path(settings.report), report)

    keep()
    ranks = Ranks(settings)
    in_slurm = ranks.allocation is not None
    keep(topology=_topology(ranks) if in_slurm else [node_facts()])
    ways = attempts(pmis=_pmis() if in_slurm else (), mpiexec=ranks.mpiexec)
    starts: list[dict[str, Any]] = []
    for way in ways:
        starts.append(_start(ranks, way))
        keep(starts=starts)
    works = best(starts)
    keep(chosen=proven(starts, settings.ranks))
    keep(files={name: _speed(text) for name, text in settings.folders.items()})
    for way in ways:
        if works is not None and way.name == works["name"]:
            keep(torch=_backend(ranks, way, "torch"))
            keep(horovod=_backend(ranks, way, "horovod"))
    keep(ended=time.time(), complete=True)
    return report


def _pmis() -> tuple[str, ...]:
    done = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, check=False)
    return parse_pmi(done.stdout + done.stderr)


def _topology(ranks: Ranks) -> list[dict[str, Any]]:
    """What each node says of itself."""
    records, _, said = ranks.nodes()
    found = [record["facts"] for record in records if "facts" in record]
    return sorted(found, key=lambda facts: str(facts["node"])) or [{**node_facts(), "others": said}]


def _start(ranks: Ranks, way: Attempt) -> dict[str, Any]:
    """One way to start MPI ranks: whether it is right, how long it takes, how fast its ranks talk."""
    started, count = time.monotonic(), ranks.layout.ranks
    records, code, said = ranks.start(way, "mpi")
    right, words = verdict(records, count, code, said)
    before = ""
    if not right and _crashed(records, count, code):
        # Some MPI crash now and then where nodes are very busy: what works the second time is told so.
        before, started = words, time.monotonic()
        records, code, said = ranks.start(way, "mpi")
        right, words = verdict(records, count, code, said)
        words += f" (the second time; the first: {before})" if right else ""
    first = next((record for record in records if record.get("rank") == 0), {})
    return {
        "name": way.name,
        "launcher": way.launcher,
        "pmi": way.pmi,
        "right": right,
        "verdict": words,
        "seconds": round(time.monotonic() - started, 2),
        "library": first.get("library"),
        "libmpi": first.get("libmpi"),
        "measured": first.get("measured") if right else None,
        "binding": [
            {key: record.get(key) for key in ("rank", "node", "cores", "visible")}
            for record in sorted(records, key=lambda record: record.get("rank", -1))
        ],
    }


def _backend(ranks: Ranks, way: Attempt, name: str) -> dict[str, Any]:
    """Whether torch.distributed, or Horovod, sums rightly over the ranks; what importing it cost."""
    count = ranks.layout.ranks
    records, code, said = ranks.start(way, name)
    right, why = _summed(count, records, code, said)
    found: dict[str, Any] = {}
    if not right and _crashed(records, count, code):
        found["first"] = why
        records, code, said = ranks.start(way, name)
        right, why = _summed(count, records, code, said)
    found |= {"works": right, "by": way.name}
    if not right:
        found["why"] = why
    devices = sorted({str(record["device"]).split(":")[0] for record in records if "device" in record})
    if devices:
        found["devices"] = devices
    if name == "torch":
        found["backend"] = "nccl" if devices == ["cuda"] else "gloo"
        found["gpus_seen"] = sorted({len(record.get("gpus", ())) for record in records})
        for key in ("import_s", "alive_s"):
            values = [record[key] for record in records if key in record]
            if values:
                found[key] = {"median": statistics.median(values), "slowest": max(values)}
    else:
        found["libmpi"] = sorted({path for record in records for path in record.get("libmpi", ())})
        found["libmpi_of_mpi4py"] = sorted(
            {p for record in records for p in record.get("libmpi_of_mpi4py", ())}
        )
    return found


def _summed(ranks: int, records: Sequence[dict[str, Any]], code: int | None, said: str) -> tuple[bool, str]:
    """Whether all ranks found the right sum, and if not why."""
    if len(records) == ranks and all(record.get("right") for record in records) and code == 0:
        return True, ""
    errors = [str(record["error"]) for record in records if "error" in record]
    reached = sorted({str(record.get("step")) for record in records})
    hung = f"hung; its ranks had come to: {', '.join(reached)}" if code is None else said
    return False, errors[0] if errors else hung or f"ended with {code}"


def _crashed(records: Sequence[dict[str, Any]], ranks: int, code: int | None) -> bool:
    """Whether all ranks were started, none refused anything, and one was killed by a signal on its way."""
    told = any("error" in record for record in records)
    return len(records) == ranks and code not in (None, 0) and not told


def _telling(lines: Sequence[str]) -> str:
    """The line of a launcher's output that says most: a crash, an error of srun or an MPI, else the last."""
    for pattern in (
        r"Signal: \D",  # Open MPI's handler, before its list of addresses
        r"srun: error: .*task.*: (?!Killed|Terminated|Exited)",
        r"(?i)error(?!.* CANCELLED )(?!.*\* STEP )(?! message)",
    ):
        for line in lines:
            if len(line) < 400 and re.search(pattern, line):
                return line
    return lines[-1][:400] if lines else ""


def _speed(text: str) -> dict[str, Any]:
    """Write, read back (past the page cache, as far as the kernel lets go of it) and make small files."""
    folder = Path(os.path.expandvars(text))
    if "$" in str(folder):
        return {"folder": str(folder), "why": "names a variable that is not set in the job"}
    mine = folder / f".hpcmass-probe-{node_name()}-{os.getpid()}"
    try:
        mine.mkdir(parents=True)
        try:
            return {"folder": str(folder), "node": node_name(), **_large(mine / "large"), **_small(mine)}
        finally:
            for file in mine.iterdir():
                file.unlink()
            mine.rmdir()
    except OSError as error:
        return {"folder": str(folder), "why": error.strerror or str(error)}


def _large(file: Path) -> dict[str, float]:
    block = os.urandom(_BLOCK)
    started = time.perf_counter()
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for _ in range(_FILE_BYTES // _BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(handle, view) :]
        os.fsync(handle)
        written = time.perf_counter()
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(handle, 0, os.SEEK_SET)
        began = time.perf_counter()
        while os.read(handle, _BLOCK):
            pass
        ended = time.perf_counter()
    finally:
        os.close(handle)
    return {
        "write_mb_s": _FILE_BYTES / 1e6 / (written - started),
        "read_mb_s": _FILE_BYTES / 1e6 / (ended - began),
    }


def _small(folder: Path) -> dict[str, float]:
    started = time.perf_counter()
    for number in range(_SMALL_FILES):
        handle = os.open(folder / f"small-{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(handle, b"x")
        os.close(handle)
    made = time.perf_counter()
    for number in range(_SMALL_FILES):
        os.stat(folder / f"small-{number}")
    looked = time.perf_counter()
    return {"creates_s": _SMALL_FILES / (made - started), "stats_s": _SMALL_FILES / (looked - made)}


def write_settings(settings: Settings, file: Path) -> None:
    """Leave the settings for `main`."""
    replace_json(file, asdict(settings))
