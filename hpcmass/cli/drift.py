"""`hpcmass drift`."""

from __future__ import annotations

import shlex
from typing import Any

import click

from hpcmass.cli.console import day, dump, table, visible
from hpcmass.cli.options import project_option


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    from hpcmass.config.duration import parse_duration

    try:
        return None if value is None else float(parse_duration(value))
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("drift")
@click.argument("deployment")
@click.option("--period", "period_s", default="1d", show_default=True, callback=_seconds, metavar="TIME",
              help="How much time a look takes in: a day has all that its rhythm brings.")  # fmt: skip
@click.option("--since", "since_s", callback=_seconds, metavar="TIME",
              help="Look at the last TIME instead, however little of it was seen.")  # fmt: skip
@click.option("--alpha", default=0.01, show_default=True, type=click.FloatRange(0, 0.5, min_open=True),
              help="Chance of a false alarm in 30 days.")  # fmt: skip
@click.option("--every", "every_s", callback=_seconds, metavar="TIME", help="Go on looking, until interrupted.")
@click.option("--alert", metavar="COMMAND", help="Run this when drift, errors or low accuracy begin; no shell.")
@click.option("--cooldown", "cooldown_s", default="1h", show_default=True, callback=_seconds, metavar="TIME",
              help="An event that comes back within this time is not told again.")  # fmt: skip
@click.option("--error-rate", default=0.01, show_default=True, type=click.FloatRange(0, 1),
              help="Share of failed requests that is an event.")  # fmt: skip
@click.option("--min-accuracy", type=click.FloatRange(0, 1), help="Live accuracy below which is an event.")
@click.option("--all", "everything", is_flag=True, help="Every test, not only those that came nearest.")
@click.option("--json", "as_json", is_flag=True, help="The verdict as JSON.")
@project_option
def command(
    deployment: str,
    period_s: float,
    since_s: float | None,
    alpha: float,
    every_s: float | None,
    alert: str | None,
    cooldown_s: float,
    error_rate: float,
    min_accuracy: float | None,
    everything: bool,
    as_json: bool,
    project_root: str | None,
) -> int | None:
    """Hold what a deployment is asked and answers against the training data.

    DEPLOYMENT is a deployment's name, or the folder of `hpcmass serve --monitor`. Ends with 1 on drift.
    """
    from hpcmass.errors import HpcmassError
    from hpcmass.workflow.drifting import Watch, check, keep_checking, monitor_of

    try:
        words = shlex.split(alert or "")
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--alert") from None
    asked = Watch(
        period_s=period_s, since_s=since_s, alpha=alpha, error_rate=error_rate, min_accuracy=min_accuracy,
        command=words, cooldown_s=cooldown_s,
    )  # fmt: skip
    watched = monitor_of(deployment, project_root)

    def say(found: Any, told: list[str]) -> None:
        if isinstance(found, HpcmassError):
            click.echo(visible(str(found)), err=True)
            return
        _show(found, everything=everything, as_json=as_json)
        for line in told:
            click.echo(f"alert: {visible(line)}", err=as_json)

    if every_s is not None:
        keep_checking(watched, asked, every_s, say)
    verdict, told = check(watched, asked)
    say(verdict, told)
    return 1 if verdict.state == "drift" else None


def _show(verdict: Any, *, everything: bool, as_json: bool) -> None:
    if as_json:
        dump(verdict.to_json())
        return
    rows = [
        (one.feature, one.result.test, one.result.effect, one.floor, f"{one.result.p:.2g}",
         round(one.result.n), "drift" if one.drift else "")
        for one in verdict.findings if everything or one.drift
    ][: None if everything else 20]  # fmt: skip
    if rows:
        table(rows, ["feature", "test", "effect", "least", "p", "samples", ""])
    span = f"{day(verdict.since)} to {day(verdict.until)}"
    line = f"{verdict.state}: version {visible(verdict.version)}, {verdict.requests} requests, {span}"
    if verdict.why:
        line += f" ({verdict.why})"
    elif verdict.tests:
        line += f"; {verdict.tests} tests, each at p ≤ {verdict.level:.1g}"
    click.echo(line)
