"""The view of `hpcmass watch` as lines of text, for any width. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hpcmass.cli.lines import amount, bar, fit, spark
from hpcmass.cli.status import about, nodes_text
from hpcmass.config.duration import span
from hpcmass.slurm.judge import Phase
from hpcmass.workflow.state import RunView, clock
from hpcmass.workflow.usage import Usage

_STYLES = {
    Phase.RUNNING: "green",
    Phase.COMPLETED: "bold green",
    Phase.QUEUED: "yellow",
    Phase.REQUEUED: "yellow",
    Phase.FAILED: "bold red",
    Phase.CANCELLED: "magenta",
    Phase.STOPPED: "magenta",
    Phase.UNKNOWN: "bold red",
    Phase.CREATED: "dim",
}


@dataclass(frozen=True)
class Curves:
    """Values of late, oldest first.

    Attributes:
        shares: Where the time of the last steps went.
        pace: What made steps slow of late.
    """

    loss: Sequence[float] = ()
    samples_per_s: Sequence[float] = ()
    shares: str = ""
    pace: Sequence[str] = ()


@dataclass(frozen=True)
class Rank:
    """One rank as it is shown; `where` is its host, with the ids of its GPUs."""

    rank: int
    where: str
    note: str = ""


@dataclass(frozen=True)
class Screen:
    """All that one picture shows.

    Attributes:
        notes: Lines below everything, such as that Slurm does not answer.
    """

    views: Sequence[RunView]
    usage: Mapping[str, Usage] = field(default_factory=dict)
    curves: Mapping[str, Curves] = field(default_factory=dict)
    ranks: Mapping[str, Sequence[Rank]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    now: float = 0.0


Line = tuple[str, str]  # the text and its style


def render(screen: Screen, columns: int, rows: int) -> list[Line]:
    """The picture: one run in detail, several as a list with a line each; never more than `rows`."""
    lines = _one(screen, screen.views[0], columns) if len(screen.views) == 1 else _list(screen, columns)
    lines += [(fit(note, columns), "red") for note in screen.notes]
    if len(lines) > rows:
        hidden = len(lines) - rows + 1
        lines = [
            *lines[: rows - 1],
            (fit(f"… and {hidden} more lines (a taller window shows them)", columns), "dim"),
        ]
    return lines


def _list(screen: Screen, columns: int) -> list[Line]:
    counts = {phase: sum(one.phase is phase for one in screen.views) for phase in Phase}
    told = ", ".join(f"{count} {phase.value.lower()}" for phase, count in counts.items() if count)
    lines: list[Line] = [(fit(f"{len(screen.views)} runs: {told}", columns - 9) + " " + _time(screen), "bold")]
    wide = max(8, min(28, max(len(one.name) for one in screen.views), columns // 3))
    for one in screen.views:
        head = f"{fit(one.name, wide)} {one.phase.value:<9} "
        lines.append((fit(head + _short(screen, one, columns - wide - 11), columns), _STYLES[one.phase]))
    return lines


def _short(screen: Screen, one: RunView, columns: int) -> str:
    if one.phase is not Phase.RUNNING or not one.status.step:
        return about(one)
    status, curves = one.status, screen.curves.get(one.name, Curves())
    share = f"{bar(status.step / status.total_steps, 8)} " if status.total_steps else ""
    steps = f"{status.step}/{status.total_steps}" if status.total_steps else f"step {status.step}"
    facts = [f"{share}{steps}"]
    if one.reading.loss is not None:
        facts.append(f"loss {amount(one.reading.loss)} {spark(curves.loss, 8)}")
    if one.reading.samples_per_s is not None:
        facts.append(f"{amount(one.reading.samples_per_s)}/s")
    if one.left_s is not None:
        facts.append(f"{span(one.left_s)} left")
    facts.append(nodes_text(one.nodes, 2))
    return "  ".join(fact for fact in facts if fact)


def _one(screen: Screen, one: RunView, columns: int) -> list[Line]:
    job = f"job {one.job.job_id}" + (f" on {one.job.partition}" if one.job.partition else "") if one.job else ""
    title = "  ".join(part for part in (one.name, one.phase.value, job) if part)
    lines: list[Line] = [(fit(title, columns - 9) + " " + _time(screen), _STYLES[one.phase])]
    status = one.status
    if status.total_steps:
        wide = max(10, min(40, columns - 46))
        text = f"{bar(status.step / status.total_steps, wide)} step {status.step} of {status.total_steps}"
        text += f", epoch {status.epoch + 1}" + (f", {span(one.left_s)} left" if one.left_s is not None else "")
        lines.append((fit(text, columns), ""))
    facts = [
        ("state", _state(one)),
        *([] if status.total_steps or not status.step else [("step", str(status.step))]),
        *_learning(screen, one, columns),
        ("ranks", _ranks(one)),
        *[("", _rank(rank)) for rank in _some(screen.ranks.get(one.name, ()))],
        *_efficiency(screen.usage.get(one.name)),
        ("time", _time_left(screen, one)),
        ("hop", _hop(one)),
        *[("note", note) for note in one.verdict.notes],
        ("do", one.verdict.advice if one.phase is not Phase.RUNNING else ""),
    ]
    lines += [(fit(f"{name:<10}{text}", columns), "") for name, text in facts if text]
    return lines


def _state(one: RunView) -> str:
    known = f" (last known: {one.last_known})" if one.last_known else ""
    return one.verdict.reason.replace("\n", " ") + known if one.verdict.reason else ""


def _learning(screen: Screen, one: RunView, columns: int) -> list[tuple[str, str]]:
    curves, wide = screen.curves.get(one.name, Curves()), max(8, min(40, columns - 26))
    facts = []
    if one.reading.loss is not None:
        facts.append(("loss", f"{amount(one.reading.loss):<12}{spark(curves.loss, wide)}"))
    if one.reading.samples_per_s is not None:
        facts.append(
            ("samples/s", f"{amount(one.reading.samples_per_s):<12}{spark(curves.samples_per_s, wide)}")
        )
    if one.phase is Phase.RUNNING:
        facts += [("step is", curves.shares), *(("slow", line) for line in curves.pace)]
    if one.status.metrics:
        facts.append(
            ("valid", "  ".join(f"{name} {amount(value)}" for name, value in one.status.metrics.items()))
        )
    return facts


def _ranks(one: RunView) -> str:
    status = one.status
    if not status.ranks:
        return f"on {nodes_text(one.nodes)}" if one.nodes else ""
    return f"{status.ranks} ({status.backend}) on {nodes_text(one.nodes)}" if one.nodes else str(status.ranks)


def _some(ranks: Sequence[Rank], most: int = 12) -> list[Rank | int]:
    if len(ranks) <= most:
        return list(ranks)
    return [*ranks[: most - 1], len(ranks) - most + 1]


def _rank(rank: Rank | int) -> str:
    if isinstance(rank, int):
        return f"… and {rank} more"
    return f"{rank.rank:>3}  {rank.where}" + (f"  {rank.note}" if rank.note else "")


def _efficiency(usage: Usage | None) -> list[tuple[str, str]]:
    if usage is None:
        return []
    facts = []
    if usage.cpus is not None:
        text = f"{usage.cpus:.1f} cores in use"
        if usage.cpus_asked:
            share = usage.cpus / usage.cpus_asked
            text = f"{usage.cpus:.1f} of {usage.cpus_asked:g} cores  {bar(share, 10)} {100 * share:.0f} %"
        facts.append(("CPU", f"{text}  ({usage.source})"))
    if usage.memory_bytes is not None:
        text = f"{usage.memory_bytes / 1e9:.2f} GB"
        if usage.memory_asked_bytes:
            share = usage.memory_bytes / usage.memory_asked_bytes
            text += f" of {usage.memory_asked_bytes / 1e9:.2f} GB  {bar(share, 10)} {100 * share:.0f} %"
        facts.append(("memory", text))
    for gpu in usage.gpus[:8]:
        memory = f"{gpu.memory_bytes / 1e9:.1f} of {gpu.memory_total_bytes / 1e9:.1f} GB"
        facts.append((f"GPU {gpu.index}", f"{bar(gpu.busy, 10)} {100 * gpu.busy:.0f} %  {memory}"))
    return facts


def _time_left(screen: Screen, one: RunView) -> str:
    if one.phase in (Phase.QUEUED, Phase.REQUEUED):
        since = one.job.submitted if one.job is not None else None
        waited = f"waiting for {span(screen.now - since)}" if since else "waiting"
        expected = f", start expected {clock(one.expected_start)}" if one.expected_start else ""
        return waited + expected
    if one.ends is not None:
        return f"limit at {clock(one.ends)}, {span(one.ends - screen.now)} left"
    if one.verdict.final and one.status.ended and one.status.started:
        return (
            f"ended at {clock(one.status.ended)}, {span(one.status.ended - one.status.started)} after its start"
        )
    return ""


def _hop(one: RunView) -> str:
    if not one.reading.hops:
        return ""
    text = str(len(one.reading.hops))
    return f"{text}; next: {one.next_hop}" if one.next_hop else text


def _time(screen: Screen) -> str:
    return time.strftime("%H:%M:%S", time.localtime(screen.now))
