"""What runs use while they run: CPU, memory and GPUs against what was asked for.

Of Slurm jobs by one `sstat` for all of them, where the cluster gathers it; of runs on this machine from the
processes themselves; of ended jobs what accounting kept.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpcmass.errors import SlurmError
from hpcmass.launch import usable_cores
from hpcmass.slurm.judge import Phase
from hpcmass.slurm.usage import Used, parse_sstat, sstat
from hpcmass.workflow.state import RunView

if TYPE_CHECKING:
    from hpcmass.slurm.client import Slurm


@dataclass(frozen=True)
class Gpu:
    """One GPU of this machine: how busy it is (0 to 1), and its memory."""

    index: int
    busy: float
    memory_bytes: float
    memory_total_bytes: float


@dataclass(frozen=True)
class Usage:
    """What one run uses.

    Attributes:
        cpus: CPU cores in use, since the look before, else on average since its job started.
        cpus_asked, memory_asked_bytes: Over all nodes; None where nothing was asked for.
        memory_bytes: Resident memory at its highest (of a run on this machine: now).
        gpus: GPUs of this machine; empty for runs elsewhere.
        source: Who measured it: `sstat`, `sacct` or `this machine`.
    """

    cpus: float | None = None
    cpus_asked: float | None = None
    memory_bytes: float | None = None
    memory_asked_bytes: float | None = None
    gpus: tuple[Gpu, ...] = ()
    source: str = ""


class Sampler:
    """Measures runs again and again."""

    def __init__(self, slurm: Slurm | None) -> None:
        self._slurm = slurm
        self._before: dict[str, tuple[float, float]] = {}  # by run: when, and CPU seconds by then
        self._kept: dict[str, Usage] = {}

    def sample(self, views: Sequence[RunView], *, ask: bool = True) -> dict[str, Usage]:
        """Usage by a run's name; a run of which nothing is known is left out.

        Args:
            views: The runs.
            ask: Whether sstat may be asked; else what it said last stands.
        """
        found: dict[str, Usage] = {}
        running = [one for one in views if one.phase is Phase.RUNNING]
        jobs = {one.name: _raw_id(one) for one in running if one.job is not None}
        told = self._sstat(list(jobs.values())) if ask and jobs else {}
        for one in views:
            job = jobs.get(one.name)
            if one not in running:
                self._before.pop(one.name, None)
                usage = _of_ended(one)
            elif job is not None:
                usage = self._of_job(one, told[job]) if job in told else self._kept.get(one.name)
            else:
                usage = self._of_processes(one)
            if usage is not None:
                found[one.name] = usage
        self._kept = dict(found)
        return found

    def _sstat(self, ids: list[str]) -> dict[str, Used]:
        if self._slurm is None:
            return {}
        try:
            return parse_sstat(self._slurm.run(sstat(ids), patience_s=0.0))
        except SlurmError:
            return {}

    def _of_job(self, one: RunView, used: Used) -> Usage:
        layout = one.reading.submissions[-1].layout if one.reading.submissions else {}
        memory, nodes = layout.get("memory_gb"), layout.get("nodes") or 1
        asked = (layout.get("ranks") or 0) * (layout.get("threads_per_rank") or 0)
        since = one.job.started if one.job is not None else None
        return Usage(
            cpus=self._rate(one.name, used.cpu_s, since),
            cpus_asked=float(asked) or None,
            memory_bytes=used.memory_bytes or None,
            memory_asked_bytes=memory * nodes * 1e9 if memory else None,
            source="sstat",
        )

    def _of_processes(self, one: RunView) -> Usage | None:
        owner = one.reading.owner
        if owner is None or owner.host != socket.gethostname() or not owner.alive():
            return None
        cpu_s = memory = 0.0
        for pid in _processes(one.reading.run.path.absolute(), owner.pid):
            seconds, resident = _measure(pid)
            cpu_s, memory = cpu_s + seconds, memory + resident
        cores = float(usable_cores())
        return Usage(self._rate(one.name, cpu_s, None), cores, memory or None, None, gpus(), "this machine")

    def _rate(self, name: str, cpu_s: float, since: float | None) -> float | None:
        now = time.time()
        before = self._before.get(name)
        if before is None or cpu_s < before[1]:  # A rank ended, or a hop began.
            self._before[name] = (now, cpu_s)
            return cpu_s / (now - since) if since is not None and now - since > 1 else None
        if now - before[0] < 1.0 or cpu_s == before[1]:
            # The measure itself is renewed only every few seconds.
            kept = self._kept.get(name)
            return kept.cpus if kept is not None else None
        self._before[name] = (now, cpu_s)
        return (cpu_s - before[1]) / (now - before[0])


def _raw_id(one: RunView) -> str:
    """The number of its job as sstat knows it: an array's element has one of its own."""
    reading = one.reading
    if reading.owner is not None and reading.owner.slurm_job_id:
        return reading.owner.slurm_job_id
    if reading.hops and reading.hops[-1].job_id:
        return reading.hops[-1].job_id
    return one.job.job_id if one.job is not None else ""


def _of_ended(one: RunView) -> Usage | None:
    used = dict(one.job.used) if one.job is not None else {}
    if not used.get("elapsed_s") or used.get("cpu_s") is None:
        return None
    return Usage(
        cpus=used["cpu_s"] / used["elapsed_s"],
        cpus_asked=used.get("cpus"),
        memory_bytes=used.get("max_rss_bytes"),
        memory_asked_bytes=used.get("memory_asked_bytes"),
        source="sacct",
    )


def _processes(run_path: Path, owner: int) -> Iterator[int]:
    """The owner of a run, and the ranks that were started with its folder's name."""
    yield owner
    wanted = os.fsencode(str(run_path))
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == owner:
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--run-folder" in words and wanted in words and b"train" in words:
            yield int(entry.name)


def _measure(pid: int) -> tuple[float, float]:
    """CPU seconds and resident bytes of a process; zeros where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK"), float(int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))


def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine as nvidia-smi tells them; none where it is not there or says nothing."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = "index,utilization.gpu,memory.used,memory.total"
    words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs out of nvidia-smi's lines, `0, 35, 1024, 81559`; one that does not say is left out."""
    found = []
    for line in text.splitlines():
        try:
            index, busy, used, total = (float(part) for part in line.split(","))
        except ValueError:
            continue
        found.append(Gpu(int(index), busy / 100, used * 1024**2, total * 1024**2))
    return tuple(found)
