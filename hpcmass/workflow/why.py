"""Why a run is in its state: what its ranks and Slurm say, its hops so far, and the next step to take."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hpcmass.runs import Explanation, RunFolder, State, explain, log_tail
from hpcmass.runs.tail import batch_logs
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.judge import Phase
from hpcmass.slurm.reasons import next_step, plain_end
from hpcmass.slurm.records import Hop
from hpcmass.workflow.state import Reading, RunView, ask_jobs, clock, read_run, view

if TYPE_CHECKING:
    from hpcmass.slurm.client import Slurm

_OOM = re.compile(r"oom[-_ ]?kill|out of memory|Exceeded job memory limit|Cannot allocate memory", re.I)
_LIMIT = re.compile(r"DUE TO TIME LIMIT|TIME LIMIT \*\*\*", re.I)
_OOM_ADVICE = (
    "it ran out of memory: more memory (resources.memory_gb), more nodes, a smaller global_batch, more "
    "accumulation, or a smaller model; then hpcmass rerun RUN"
)
_HOPS_SHOWN = 12


@dataclass(frozen=True)
class Why:
    """The whole explanation of a run.

    Attributes:
        folder: What the run folder alone says.
        slurm: What Slurm says of its jobs, a line each.
        hops: Its hops so far, a line each.
        advice: What to do, most useful first.
        batch_tail: The end of the batch script's output, where the ranks left no log.
    """

    view: RunView
    folder: Explanation
    slurm: list[str] = field(default_factory=list)
    hops: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    batch_tail: str = ""

    def lines(self) -> list[str]:
        """The explanation as text, a line each."""
        if not self.view.reading.jobs and self.view.phase.value == self.folder.state.value:
            return self.folder.lines()
        shown = replace(self.folder, advice=[]).lines()
        if not self.folder.attempts:
            del shown[1]  # That it has done no step says nothing.
        reason = self.view.verdict.reason or self.folder.headline
        shown[0] = f"{self.view.name}: {self.view.phase.value}: {reason}"
        if self.folder.attempts and self.view.phase is not Phase(self.folder.state.value):
            shown.insert(1, f"its folder says {self.folder.state.value}: {self.folder.headline}")
        if self.view.last_known:
            shown.append(f"last known: {self.view.last_known}")
        for title, lines in (("Slurm:", self.slurm), ("hops:", self.hops)):
            if lines:
                shown += ["", title, *("  " + line for line in lines)]
        if self.batch_tail:
            shown += ["", "the end of its job's output:"]
            shown += ["  " + line for line in self.batch_tail.splitlines()]
        if self.advice:
            shown += ["", *(f"- {line}" for line in self.advice)]
        return shown


def explain_run(run: RunFolder, slurm: Slurm | None) -> Why:
    """Explain a run, asking Slurm about its jobs where it has any.

    Raises:
        NotFound: There is no such run.
        CorruptError: Its status cannot be read.
    """
    reading = read_run(run)
    answer = ask_jobs(reading.jobs, slurm)
    found = view(reading, answer)
    folder = explain(run)
    if not reading.jobs and not reading.intent:
        return Why(found, folder, advice=folder.advice)
    outputs = list(batch_logs(run.path).values())
    tail = log_tail(outputs[-1], lines=20) if outputs else ""
    oom = _out_of_memory(reading, found, folder, tail)
    lines = [_job_line(job) for job in reading.jobs_in(answer)] if answer.jobs else []
    if answer.silent:
        lines.append(f"does not answer: {answer.silent}")
    if answer.accounting is False:
        lines.append("keeps no accounting: exit codes, memory and CPU time of ended jobs are not known")
    lines += found.verdict.notes
    if oom:
        lines.append(oom)
    bad = found.phase in (Phase.FAILED, Phase.UNKNOWN, Phase.CANCELLED)
    return Why(
        view=found,
        folder=folder,
        slurm=lines,
        hops=[_hop_line(hop) for hop in reading.hops[-_HOPS_SHOWN:]],
        advice=_advice(found, folder, oom, tail),
        batch_tail=tail if bad and not folder.log_tail and not _has_trace(folder) else "",
    )


def _has_trace(folder: Explanation) -> bool:
    return folder.first_error is not None and bool(folder.first_error.traceback)


def _job_line(job: JobInfo) -> str:
    where = f" on {', '.join(job.nodes)}" if job.nodes else ""
    if job.state is JobState.UNKNOWN:
        return f"job {job.job_id}: nothing is known ({job.reason or 'Slurm does not know it'})"
    if not job.state.ended:
        since = f" since {clock(job.started)}" if job.started and job.state is JobState.RUNNING else ""
        reason = f", reason {job.reason}" if job.reason and job.reason != "None" else ""
        return f"job {job.job_id} is {job.state.value}{where}{since}{reason}"
    facts = [f"job {job.job_id}: {plain_end(job)}{where}"]
    used = dict(job.used)
    if used.get("max_rss_bytes"):
        memory = f"largest task {used['max_rss_bytes'] / 1e9:.2f} GB"
        if used.get("memory_asked_bytes"):
            memory += f" of {used['memory_asked_bytes'] / 1e9:.2f} GB asked for in all"
        facts.append(memory)
    if used.get("cpu_s") is not None and used.get("elapsed_s") and used.get("cpus"):
        facts.append(f"CPU used {100 * used['cpu_s'] / (used['elapsed_s'] * used['cpus']):.0f} %")
    return "; ".join(facts)


def _hop_line(hop: Hop) -> str:
    where = f" on {', '.join(hop.nodes)}" if hop.nodes else ""
    ranks = f"{hop.ranks} rank{'s' * (hop.ranks != 1)}"
    line = f"{hop.hop}: job {hop.job_id}{where}, {ranks}, from {clock(hop.began)}, step {hop.from_step}"
    if hop.ended is None:
        return f"{line}, no end written yet"
    cause = hop.cause or hop.state
    line += f" to {clock(hop.ended)}, step {hop.step if hop.step is not None else '?'}: "
    line += hop.reason if hop.reason.startswith(cause) else f"{cause} ({hop.reason})" if hop.reason else cause
    return line + (f"; next: {hop.next}" if hop.next and hop.next != "none" else "")


def _out_of_memory(reading: Reading, found: RunView, folder: Explanation, tail: str) -> str:
    """Whether memory was the end of it, one sentence with the evidence; empty where nothing says so."""
    job, status = found.job, reading.status
    if status.state is State.COMPLETED or found.phase not in (Phase.FAILED, Phase.UNKNOWN, Phase.REQUEUED):
        return ""
    if job is not None and job.state is JobState.OUT_OF_MEMORY:
        return "Slurm ended it for its memory (OUT_OF_MEMORY)"
    error = folder.first_error
    said = f"{error.error} {error.message}" if error is not None else ""
    for text, where in ((tail, "the job's output"), (folder.log_tail, "the rank's log"), (said, "its error")):
        match = _OOM.search(text)
        if match:
            return f"memory ran out: {where} says '{match[0]}'"
    killed = re.search(r"\bsignal 9\b|SIGKILL|exit code 137", f"{said} {status.reason or ''}") or (
        job is not None and (job.signal == 9 or job.exit_code == 137)
    )
    share = _memory_share(reading, job)
    if killed and share is not None and share > 0.9:
        return (
            f"memory probably ran out: it was killed when it used {100 * share:.0f} % of what it had asked for"
        )
    return ""


def _memory_share(reading: Reading, job: JobInfo | None) -> float | None:
    """The largest task's memory, times the ranks of a node, against what was asked for on a node."""
    used = dict(job.used) if job is not None else {}
    if not used.get("max_rss_bytes") or not used.get("memory_asked_bytes"):
        return None
    layout = reading.submissions[-1].layout if reading.submissions else {}
    nodes = used.get("nodes") or layout.get("nodes") or 1
    per_node = layout.get("ranks_per_node") or 1
    return float(used["max_rss_bytes"] * per_node / (used["memory_asked_bytes"] / nodes))


def _advice(found: RunView, folder: Explanation, oom: str, tail: str) -> list[str]:
    name, advice = found.name, []
    if found.phase in (Phase.QUEUED, Phase.REQUEUED, Phase.RUNNING, Phase.COMPLETED, Phase.UNKNOWN):
        advice = [found.verdict.advice]
        if found.phase is Phase.UNKNOWN:
            # Slurm answers and does not know it: looking again would not help.
            lost = found.verdict.final and found.reading.submissions
            advice += [
                *folder.advice[:-1],
                "hpcmass rerun RUN" if lost else "look again later: hpcmass status RUN",
            ]
    else:
        ended = "" if found.job is None else next_step(found.job.state, begun=found.status.attempt > 0)
        own = [line for line in folder.advice if not line.startswith("run the same command again")]
        advice = [_OOM_ADVICE if oom else "", *own, found.verdict.advice, "" if oom else ended]
        if _LIMIT.search(tail) and found.job is not None and found.job.state is not JobState.TIMEOUT:
            advice.append(next_step(JobState.TIMEOUT, begun=True))
        if found.phase is Phase.FAILED and not found.status.attempt and not ended:
            advice.append(
                "mend it, then submit the job again; hpcmass rerun RUN starts the very same once more"
            )
        if not any("hpcmass rerun" in line for line in advice):
            again = next((line for line in folder.advice if line.startswith("run the same command")), "")
            advice.append("hpcmass rerun RUN: " + again.partition(": ")[2] if again else "hpcmass rerun RUN")
    kept = dict.fromkeys(line.replace("RUN", name) for line in advice if line)
    return list(kept)
