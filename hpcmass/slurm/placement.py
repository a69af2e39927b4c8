"""Where a job should run: what each target would take and cost, and which one serves the goal. Pure.

A number that is not known is None all the way through: it is shown as unknown, and a candidate that lacks a
number that the goal needs is never taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hpcmass.config import Layout, Resources, Site, layout_of
from hpcmass.config.duration import span
from hpcmass.errors import ConfigError

# Nobody can know when a preemptible job is ended. It is counted as if it were once in so many seconds, and has
# to be better by this share than a target that keeps its jobs.
PREEMPTED_EVERY_S = 3600.0
PREEMPTIBLE_MARGIN = 0.05
# Estimates that differ by less are the same: measurements of a minute are no better.
AS_EARLY = 0.05


@dataclass(frozen=True)
class Speed:
    """What was measured of one job on one target with one layout.

    Attributes:
        samples_per_s: Training samples a second over all ranks, without evaluations.
        startup_s: From the job's start to its first steps: interpreter, imports, data, the ranks' meeting.
        end_s: A validation, a checkpoint and what comes after the last step.
        assumed: Where the numbers come from if they were not measured; empty: they were.
    """

    samples_per_s: float
    startup_s: float = 0.0
    end_s: float = 0.0
    assumed: str = ""


@dataclass(frozen=True)
class Work:
    """What is left to do.

    Attributes:
        samples: Training samples, over all epochs left.
        evaluations: Validations with checkpoints on the way.
    """

    samples: int
    evaluations: int = 1


@dataclass(frozen=True)
class Queue:
    """The queue of one target as it stands.

    Attributes:
        start_s: Seconds from now to the expected start; None: not known.
        words: Slurm's own words, or who said why not.
        impossible: Whether Slurm says that the job can never start there.
        idle_nodes, pending_jobs: Of the partition; None: not known. Slurm's expected start counts them in.
    """

    start_s: float | None = None
    words: str = ""
    impossible: bool = False
    idle_nodes: int | None = None
    pending_jobs: int | None = None


@dataclass(frozen=True)
class Goal:
    """What the choice is to serve. Without any: to finish first.

    Attributes:
        deadline_s: Seconds from now in which it must have finished: the cheapest of those that do.
        budget: What it may cost, in the site's unit of price, or in node-hours with `node_hours`: of those that
            cost no more the one that finishes first (with a deadline too: the cheapest).
    """

    deadline_s: float | None = None
    budget: float | None = None
    node_hours: bool = False


@dataclass(frozen=True)
class Candidate:
    """One target.

    Attributes:
        refusal: Why it cannot be taken at all; empty where it can.
        start_s: Seconds from now to the expected start.
        run_s: Seconds on the nodes, over all hops, with start-up, evaluations and checkpoints.
        hops: Jobs one after the other, because the run is longer than a job may be.
        finish_s: Seconds from now to the end: every hop waits as the first one does.
        node_hours, price: Of `run_s`; the price in the site's unit.
        notes: What the numbers rest on.
    """

    target: str
    layout: Layout | None = None
    refusal: str = ""
    start_s: float | None = None
    run_s: float | None = None
    hops: int | None = None
    finish_s: float | None = None
    node_hours: float | None = None
    price: float | None = None
    preemptible: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The target to take, or None, why, and all candidates: the best first, those refused last."""

    target: str | None
    reason: str
    candidates: tuple[Candidate, ...] = field(default_factory=tuple)

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that is taken."""
        return next((each for each in self.candidates if each.target == self.target), None)


def layouts(resources: Resources, site: Site) -> list[Candidate]:
    """All targets of a site: with the job's layout there, or the reason why it has none."""
    found = []
    for name, target in site.targets.items():
        if target.kind != "slurm":
            found.append(Candidate(name, refusal="is not run by Slurm"))
            continue
        try:
            layout = layout_of(resources, target, name=name)
        except ConfigError as error:
            found.append(Candidate(name, refusal=error.message, preemptible=target.preemptible))
            continue
        found.append(Candidate(name, layout, preemptible=target.preemptible))
    return found


def estimate(
    candidate: Candidate, work: Work | None, speed: Speed | None, queue: Queue, price: float | None
) -> Candidate:
    """A candidate with its numbers.

    Args:
        candidate: From `layouts`, not refused.
        work: What is left to do; None: not known.
        speed: What was measured of it there; None: nothing.
        queue: The queue as it stands.
        price: Of a node and hour, in the site's unit.
    """
    layout = candidate.layout
    if candidate.refusal or layout is None:
        return candidate
    if queue.impossible:
        return replace(candidate, refusal=f"Slurm would never start it: {queue.words}")
    notes = list(_queue_notes(queue))
    start = queue.start_s
    known = replace(candidate, start_s=start, notes=tuple(notes))
    if work is None or speed is None:
        return replace(known, notes=(*notes, "its speed there was never measured (hpcmass plan --calibrate)"))
    if speed.assumed:
        notes.append(speed.assumed)
    hops, run = _run(work, speed, layout)
    if hops is None:
        return replace(
            known,
            refusal=f"a wall time of {span(layout.time_s)} is too short: starting takes "
            f"{span(speed.startup_s)}, and stopping cleanly {span(speed.end_s)}",
        )
    cuts = 0.0
    if candidate.preemptible:
        cuts = run / PREEMPTED_EVERY_S
        run += cuts * (speed.startup_s + speed.end_s)
        notes.append(
            f"jobs there may be ended at any time: counted as once every {span(PREEMPTED_EVERY_S)} (assumed)"
        )
    if hops > 1:
        notes.append(
            f"{hops} jobs of {span(layout.time_s)} one after the other; each is expected to wait as the first"
        )
    node_hours = run * layout.nodes / 3600
    return replace(
        known,
        run_s=run,
        hops=hops,
        finish_s=None if start is None else run + (hops + cuts) * start,
        node_hours=node_hours,
        price=None if price is None else node_hours * price,
        notes=tuple(notes),
    )


def _run(work: Work, speed: Speed, layout: Layout) -> tuple[int | None, float]:
    """Hops, and seconds on the nodes over all of them; None where a hop is too short for anything."""
    useful = layout.time_s - speed.startup_s - speed.end_s
    busy = work.samples / speed.samples_per_s + max(0, work.evaluations - 1) * speed.end_s
    if useful <= 0:
        return None, 0.0
    hops = max(1, math.ceil(busy / useful - 1e-9))
    return hops, busy + hops * (speed.startup_s + speed.end_s)


def _queue_notes(queue: Queue) -> list[str]:
    notes = []
    if queue.start_s is None:
        notes.append(f"when it would start is not known{f': {queue.words}' if queue.words else ''}")
    if queue.pending_jobs:
        jobs = "1 job waits" if queue.pending_jobs == 1 else f"{queue.pending_jobs} jobs wait"
        notes.append(f"{jobs} there; {queue.idle_nodes or 0} nodes are idle")
    return notes


def choose(candidates: Sequence[Candidate], goal: Goal) -> Choice:
    """Take the candidate that serves the goal, and say why.

    A candidate without a number that the goal needs is not taken. Of those that finish as early, within what
    estimates are worth, the one is taken that keeps its jobs, then the cheapest, then the earliest.
    """
    possible = [each for each in candidates if not each.refusal]
    known = [each for each in possible if each.finish_s is not None]
    needs_cost = goal.deadline_s is not None or goal.budget is not None
    unknown = [
        each.target
        for each in possible
        if each.finish_s is None or (needs_cost and math.isinf(_cost(each, goal)))
    ]
    ranked = _ranked([each for each in known if _fits(each, goal)], goal)
    taken = {each.target for each in ranked}
    rest = _ranked([each for each in known if each.target not in taken], goal)
    unsure = [each for each in possible if each.finish_s is None]
    refused = [each for each in candidates if each.refusal]
    everything = (*ranked, *rest, *unsure, *refused)
    if ranked:
        return Choice(ranked[0].target, _why(ranked, goal, unknown), everything)
    return Choice(None, _why_none(known, unsure, refused, goal), everything)


def _ranked(candidates: Sequence[Candidate], goal: Goal) -> list[Candidate]:
    """The best first."""

    def finish(each: Candidate) -> float:
        margin = 1 + PREEMPTIBLE_MARGIN if each.preemptible else 1.0
        return (each.finish_s if each.finish_s is not None else math.inf) * margin

    if goal.deadline_s is not None:
        return sorted(candidates, key=lambda each: (_cost(each, goal), each.preemptible, finish(each)))
    first = min(map(finish, candidates), default=0.0)
    early = [each for each in candidates if finish(each) <= first * (1 + AS_EARLY)]
    late = [each for each in candidates if finish(each) > first * (1 + AS_EARLY)]
    return [
        *sorted(early, key=lambda each: (each.preemptible, _cost(each, goal), finish(each))),
        *sorted(late, key=lambda each: (finish(each), _cost(each, goal))),
    ]


def _cost(each: Candidate, goal: Goal) -> float:
    value = each.node_hours if goal.node_hours else each.price
    return math.inf if value is None else value


def _fits(each: Candidate, goal: Goal) -> bool:
    if goal.deadline_s is not None and (each.finish_s is None or each.finish_s > goal.deadline_s):
        return False
    if goal.deadline_s is not None and math.isinf(_cost(each, goal)):
        return False
    return goal.budget is None or _cost(each, goal) <= goal.budget


def _why(ranked: Sequence[Candidate], goal: Goal, unknown: Sequence[str]) -> str:
    best = ranked[0]
    parts = []
    if goal.deadline_s is not None:
        parts.append(f"the cheapest that finishes within {span(goal.deadline_s)}")
    elif any((other.finish_s or 0.0) < (best.finish_s or 0.0) for other in ranked):
        parts.append("finishes as early as any, within what estimates are worth")
    else:
        parts.append("finishes first")
    if goal.budget is not None:
        parts.append(f"costs no more than {_amount(goal.budget, goal)}")
    text = f"{best.target}: {' and '.join(parts)} (in {span(best.finish_s)}"
    text += f", for {_amount(_cost(best, goal), goal)})" if math.isfinite(_cost(best, goal)) else ")"
    if len(ranked) > 1:
        text += f"; next {ranked[1].target} (in {span(ranked[1].finish_s)})"
    if unknown:
        text += f". Not compared, since unknown: {', '.join(unknown)}"
    return text


def _why_none(
    known: Sequence[Candidate], unsure: Sequence[Candidate], refused: Sequence[Candidate], goal: Goal
) -> str:
    if known:
        earliest = min(known, key=lambda each: each.finish_s or 0.0)
        text = f"no target serves the goal; {earliest.target} would finish first, in {span(earliest.finish_s)}"
        priced = [each for each in known if math.isfinite(_cost(each, goal))]
        if priced:
            cheap = min(priced, key=lambda each: _cost(each, goal))
            text += f"; {cheap.target} would cost least, {_amount(_cost(cheap, goal), goal)}"
        elif goal.deadline_s is not None or goal.budget is not None:
            text += "; no target has a price (price_per_node_hour in the site file; --node-hours needs none)"
        return text
    if unsure:
        return (
            f"nothing can be compared: of {', '.join(each.target for each in unsure)} not all numbers are known"
        )
    return "no target can give what the job asks for" if refused else "the site has no targets"


def _amount(value: float, goal: Goal) -> str:
    return f"{value:.3g} node-hours" if goal.node_hours else f"{value:.3g}"
