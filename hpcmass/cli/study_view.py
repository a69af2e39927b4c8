"""A study as lines of text, for any width: the table of `hpcmass sweep` and `hpcmass watch STUDY`. Pure."""

from __future__ import annotations

import time

from hpcmass.cli.console import text
from hpcmass.cli.lines import amount, bar, columns, fit, shown, spark
from hpcmass.config.duration import parse_duration, span
from hpcmass.sweep.standing import LATELY_S, Running, Standing

Line = tuple[str, str]  # the text and its style

_NAMES = 10  # columns of the names of facts


def render(one: Standing, wide: int, rows: int) -> list[Line]:
    """The picture; never more than `rows`, of which the trials that run take what is left."""
    lines: list[Line] = [
        (fit(headline(one), wide - 9) + time.strftime(" %H:%M:%S", time.localtime(one.now)), "bold")
    ]
    share = one.done / one.planned if one.planned else 0.0
    left = _left(one)
    lines.append((fit(f"{bar(share, max(10, min(50, wide - 40)))} {100 * share:.0f} %{left}", wide), ""))
    facts = [
        *_best(one, wide),
        ("speed", _speed(one)),
        ("workers", _workers(one)),
        ("used", used(one)),
        ("driver", f"process {one.driver.pid} on {one.driver.host}" if one.driver else "none at work"),
        *([("ended", one.ended)] if one.ended and one.driver is None else []),
        *([("lost", ", ".join(f"{name} {count}" for name, count in one.causes.items()))] if one.causes else []),
    ]
    lines += [(fit(f"{name:<{_NAMES}}{words}", wide), "") for name, words in facts]
    lines += _targets(one, wide)
    room = rows - len(lines) - 2
    if one.running and room > 0:
        lines += [("", ""), *_running(one, wide, room)]
    return lines[:rows]


def headline(one: Standing) -> str:
    """Such as `digits: 34 of 200 trials: 30 complete, 3 pruned, 1 failed, 8 running`."""
    counts = {name: one.counts.get(name, 0) for name in ("complete", "pruned", "failed")}
    counts["running"] = len(one.running)
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count or name != "pruned")
    return f"{one.name}: {one.done} of {one.planned} trials: {told}" + (
        f", {one.waiting} wait" if one.waiting else ""
    )


def plain(one: Standing) -> str:
    """The same in one line, for a log."""
    best = _best(one, 10_000)[0][1].split("  ")
    facts = [headline(one), f"best {' '.join(best[:2])}" if one.best or one.front else "no best yet"]
    if one.per_s is not None:
        facts.append(_speed(one))
    if one.workers is not None:
        facts.append(f"workers {_workers(one)}")
    if one.node_s is not None:
        facts.append(used(one))
    return time.strftime("%H:%M:%S  ", time.localtime(one.now)) + shown("; ".join(facts))


def used(one: Standing) -> str:
    """What was used of the budget; what is not on record is said to be not known."""
    hours = "not known" if one.node_s is None else f"{one.node_s / 3600:.4g}"
    limit = " (no limit)" if one.node_hours_limit is None else f" of {one.node_hours_limit:g}"
    words = f"node-hours {hours}{limit}"
    if one.reserved_s:
        words += f", {one.reserved_s / 3600:.4g} more reserved"
    if one.wall_s is not None:
        words += f"; wall time {span(one.wall_s)}" + (f" of {one.wall_limit}" if one.wall_limit else "")
    return words


def _left(one: Standing) -> str:
    todo = one.planned - one.done
    if todo <= 0 or one.driver is None:
        return ""
    if one.per_s is None:
        return ", time left not known yet"
    left_s = todo / one.per_s
    if one.wall_limit is not None and one.wall_s is not None:
        left_s = min(left_s, max(0.0, parse_duration(one.wall_limit) - one.wall_s))
    return f", about {span(left_s)} left"


def _best(one: Standing, wide: int) -> list[tuple[str, str]]:
    (name, direction), *others = one.objectives
    if others:
        names = ", ".join(name for name, _ in one.objectives)
        front = f"{one.front} trial{'s' * (one.front != 1)} on the Pareto front of {names}"
        return [("best", front if one.front else f"none yet (the Pareto front of {names})")]
    if one.best is None:
        return [("best", f"none yet (to {direction} {name})")]
    goal = f"  ({one.value_limit:g} is enough)" if one.value_limit is not None else ""
    curve = f"  {spark(one.course, 16)}" if len(one.course) > 2 and wide >= 100 else ""
    return [
        (
            "best",
            f"{name} {amount(one.best.value)}  trial {one.best.number}{curve}{goal}  {text(one.best.params)}",
        )
    ]


def _speed(one: Standing) -> str:
    if one.per_s is None:
        return "not known yet"
    minutes = one.per_s * 60
    return f"{amount(minutes)} trials a minute" if minutes >= 1 else f"{amount(minutes * 60)} trials an hour"


def _workers(one: Standing) -> str:
    if one.workers is None or one.idle is None:
        return f"{len(one.running)} busy; how many are idle is not known"
    return (
        f"{len(one.running)} busy, {one.idle} idle, of {one.workers} that worked in the last {span(LATELY_S)}"
    )


def _targets(one: Standing, wide: int) -> list[Line]:
    if len(one.targets) < 2:
        return []
    rows = [[name, str(running), str(ended)] for name, (running, ended) in one.targets.items()]
    table = columns(rows, ["target", "running", "ended"], right=(1, 2))
    return [("", ""), *((fit(line, wide), "dim" if not place else "") for place, line in enumerate(table))]


def _running(one: Standing, wide: int, room: int) -> list[Line]:
    name = one.objectives[0][0]
    some = one.running if len(one.running) <= room else one.running[: max(0, room - 1)]
    rows = [
        [
            str(trial.number),
            trial.target or "not known",
            f"{trial.step}/{trial.total_steps}" if trial.total_steps else str(trial.step),
            amount(trial.value) or "none yet",
            "not known" if trial.since is None else span(max(0.0, one.now - trial.since)),
            _again(trial) + text(trial.params),
        ]
        for trial in some
    ]
    table = columns(rows, ["running", "target", "step", name, "for", "params"], right=(0, 2, 3, 4))
    lines = [(fit(line, wide), "dim" if not place else "green") for place, line in enumerate(table)]
    hidden = len(one.running) - len(some)
    return [*lines, (fit(f"… and {hidden} more", wide), "dim")] if hidden else lines


def _again(trial: Running) -> str:
    return f"attempt {trial.attempt}: " if trial.attempt > 1 else ""
