"""What a probe's job runs on its first node: tries, measures, and writes down what it saw as it goes.

    probe_program SETTINGS.json

Every part is an attempt of its own with a limit: one that hangs or aborts is a line of the report.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from hpcmass.files import make_dir, replace_json
from hpcmass.launch import find_mpiexec
from hpcmass.launch.attempts import Attempt, attempts, best, srun_words, verdict
from hpcmass.launch.command import module_command
from hpcmass.launch.topology import node_facts, node_name
from hpcmass.slurm.site_facts import parse_pmi

RANK = "hpcmass.train.probe_rank"
_FILE_BYTES, _BLOCK, _SMALL_FILES = 128 << 20, 4 << 20, 300


@dataclass(frozen=True)
class Settings:
    """What a probe is asked for.

    Attributes:
        report: The file to write.
        work: A folder on the shared file system for the ranks' records.
        nodes, ranks, per_node, threads: The layout of the job.
        folders: Folders to measure by name; they may name variables such as `$TMPDIR`.
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
    limit_s: float = 90.0


def main() -> NoReturn:
    """Probe as the settings file says."""
    settings = Settings(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    probe(settings)
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
        "started": time.time(),
        "complete": False,
    }

    def keep(**values: Any) -> None:
        report.update(values)
        replace_json(Path(settings.report), report)

    keep()
    in_slurm = "SLURM_JOB_ID" in os.environ
    keep(topology=_topology(settings) if in_slurm else [node_facts()])
    ways = attempts(
        nodes=settings.nodes,
        ranks=settings.ranks,
        per_node=settings.per_node,
        threads=settings.threads,
        pmis=_pmis() if in_slurm else (),
        mpiexec=find_mpiexec(),
    )
    starts: list[dict[str, Any]] = []
    for way in ways:
        starts.append(_start(settings, way))
        keep(starts=starts)
    chosen = best(starts)
    keep(chosen=None if chosen is None else {"launcher": chosen["launcher"], "pmi": chosen["pmi"]})
    keep(files={name: _speed(text) for name, text in settings.folders.items()})
    for way in ways:
        if chosen is not None and way.name == chosen["name"]:
            keep(torch=_backend(settings, way, "torch"))
            keep(horovod=_backend(settings, way, "horovod"))
    keep(ended=time.time(), complete=True)
    return report


def _pmis() -> tuple[str, ...]:
    done = subprocess.run(["srun", "--mpi=list"], capture_output=True, text=True, check=False)
    return parse_pmi(done.stdout + done.stderr)


def _topology(settings: Settings) -> list[dict[str, Any]]:
    """What each node says of itself."""
    words = srun_words(nodes=settings.nodes, ranks=settings.nodes, per_node=1, threads=1, pmi="none")
    records, _, said = run_ranks(settings, tuple(words), "node", settings.nodes)
    found = [record["facts"] for record in records if "facts" in record]
    return sorted(found, key=lambda facts: str(facts["node"])) or [{**node_facts(), "others": said}]


def _start(settings: Settings, way: Attempt) -> dict[str, Any]:
    """One way to start MPI ranks: whether it is right, how long it takes, how fast its ranks talk."""
    started = time.monotonic()
    records, code, said = run_ranks(settings, way.prefix, "mpi", settings.ranks)
    right, words = verdict(records, settings.ranks, code, said)
    before = ""
    if not right and _crashed(records, settings.ranks, code):
        # Some MPI crash now and then where nodes are very busy: what works the second time is told so.
        before, started = words, time.monotonic()
        records, code, said = run_ranks(settings, way.prefix, "mpi", settings.ranks)
        right, words = verdict(records, settings.ranks, code, said)
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


def _backend(settings: Settings, way: Attempt, name: str) -> dict[str, Any]:
    """Whether torch.distributed, or Horovod, sums rightly over the ranks; what importing it cost."""
    records, code, said = run_ranks(settings, way.prefix, name, settings.ranks)
    right, why = _summed(settings, records, code, said)
    found: dict[str, Any] = {}
    if not right and _crashed(records, settings.ranks, code):
        found["first"] = why
        records, code, said = run_ranks(settings, way.prefix, name, settings.ranks)
        right, why = _summed(settings, records, code, said)
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


def _summed(
    settings: Settings, records: Sequence[dict[str, Any]], code: int | None, said: str
) -> tuple[bool, str]:
    """Whether all ranks found the right sum, and if not why."""
    if len(records) == settings.ranks and all(record.get("right") for record in records) and code == 0:
        return True, ""
    errors = [str(record["error"]) for record in records if "error" in record]
    reached = sorted({str(record.get("step")) for record in records})
    hung = f"hung; its ranks had come to: {', '.join(reached)}" if code is None else said
    return False, errors[0] if errors else hung or f"ended with {code}"


def _crashed(records: Sequence[dict[str, Any]], ranks: int, code: int | None) -> bool:
    """Whether all ranks were started, none refused anything, and one was killed by a signal on its way."""
    told = any("error" in record for record in records)
    return len(records) == ranks and code not in (None, 0) and not told


def run_ranks(
    settings: Settings, prefix: Sequence[str], what: str, ranks: int
) -> tuple[list[dict[str, Any]], int | None, str]:
    """Start ranks of `train.probe_rank`.

    Returns:
        What they left, how the launcher ended (None: it had to be ended), and what its output says.
    """
    folder = Path(settings.work) / f"{what}-{time.time_ns()}"
    make_dir(folder)
    command = [*prefix, *module_command(RANK), what, str(ranks), str(folder)]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(settings.threads),
        # As everywhere in hpcmass: nodes of containers and small clusters run as root.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    with open(folder / "output.log", "w+b") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = child.wait(settings.limit_s)
        except subprocess.TimeoutExpired:
            _end(child)
        out.seek(0)
        lines = [line.strip() for line in out.read().decode(errors="replace").splitlines() if line.strip()]
    records = []
    for file in sorted(folder.glob("*.json")):
        with contextlib.suppress(ValueError, OSError):
            records.append(json.loads(file.read_text(encoding="utf-8")))
    return records, code, _telling(lines)


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


def _end(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM, which launchers hand on to their ranks, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(15)
            return


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
