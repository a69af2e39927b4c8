"""`hpcmass watch`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from hpcmass.cli.options import project_option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console, ConsoleOptions
    from rich.text import Text

    from hpcmass.cli.watch_view import Curves, Rank, Screen
    from hpcmass.config import Project
    from hpcmass.workflow.follow import Follower
    from hpcmass.workflow.state import RunView
    from hpcmass.workflow.usage import Sampler

_EVERY_S = 1.0
_LINE_EVERY_S = 15.0
_NEWEST = 20


@click.command("watch")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--screen", "alternate", is_flag=True, help="On a screen of its own, gone when you leave.")
@project_option
def command(runs: tuple[str, ...], alternate: bool, project_root: str | None) -> int:
    """Watch runs, or a study, until they are over: queue, ranks, throughput, loss, time left, next hop.

    One run is shown in detail, several as a list; without RUN, those of the project that are not over. Run
    folders are looked at every second, Slurm ever more rarely while nothing changes. Ctrl-C leaves; the runs
    go on. Where the output is no terminal, a line is printed when something changes.

    A study by its name is shown as one: best, trials by state, throughput, workers, budget, and what runs. Its
    trials as runs are `STUDY/*`.
    """
    from hpcmass.cli.status import slurm_for
    from hpcmass.errors import HpcmassError
    from hpcmass.workflow.follow import Follower
    from hpcmass.workflow.projects import maybe_project, open_project
    from hpcmass.workflow.select import all_runs, select_runs
    from hpcmass.workflow.state import ask, look, read_run, view

    project = maybe_project(project_root) if runs else None
    if len(runs) == 1 and (study := _study(runs[0], project)) is not None:
        from hpcmass.cli.study_live import watch_study

        try:
            watch_study(study, alternate=alternate)
        except KeyboardInterrupt:
            click.echo()
        return 0
    if runs:
        chosen = select_runs(runs, project)
    else:
        looked = [(run, look(run)) for run in all_runs(open_project(project_root))[:_NEWEST]]
        for run, found in looked:
            if isinstance(found, HpcmassError):
                click.echo(f"cannot be read: {run.path}: {found.message}", err=True)
        readings = [found for _, found in looked if not isinstance(found, HpcmassError)]
        answer = ask(readings, slurm_for(any(one.jobs for one in readings)))
        views = [view(one, answer) for one in readings]
        chosen = [one.reading.run for one in views if not one.verdict.final]
        if not chosen:
            click.echo("no run is waiting or running")
            return 0
    follower = Follower(chosen, slurm_for(any(read_run(run).jobs for run in chosen)))
    try:
        if sys.stdout.isatty():
            _live(follower, alternate)
        else:
            _plain(follower)
    except KeyboardInterrupt:
        # The way to leave.
        click.echo()
    return 0


def _study(word: str, project: Project | None) -> Path | None:
    """The study of a name, or in a folder, where no run is called so."""
    from pathlib import Path

    from hpcmass.errors import NotFound
    from hpcmass.workflow.projects import find_run, find_study

    try:
        find_run(word, project)
    except NotFound:
        try:
            folder = Path(word) if project is None else find_study(word, project)
        except NotFound:
            return None
        return folder if (folder / "job.toml").is_file() and (folder / "trials").is_dir() else None
    return None


class _Picture:
    """What rich draws: the lines for whatever size the terminal has at that moment."""

    def __init__(self) -> None:
        self.screen: Screen | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Text]:
        from rich.text import Text

        from hpcmass.cli.watch_view import render

        if self.screen is None:
            return
        # One row is left free, or the terminal would scroll with every picture.
        for text, style in render(self.screen, max(20, options.max_width), max(4, console.size.height - 1)):
            yield Text(text, style=style, no_wrap=True, overflow="crop", end="\n")


def _live(follower: Follower, alternate: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from hpcmass.workflow.follow import until_over
    from hpcmass.workflow.usage import Sampler

    picture, sampler = _Picture(), Sampler(follower.slurm)
    console = Console(emoji=False, highlight=False, markup=False)
    with Live(picture, console=console, screen=alternate, auto_refresh=True, refresh_per_second=2) as live:
        polls = -1
        for views in until_over(follower, every_s=_EVERY_S):
            picture.screen = _screen(views, follower, sampler, ask=follower.polls != polls)
            polls = follower.polls
            live.refresh()
    if alternate and picture.screen is not None:
        for line in _last_words(picture.screen.views):
            click.echo(line)


def _screen(views: Sequence[RunView], follower: Follower, sampler: Sampler, *, ask: bool) -> Screen:
    from hpcmass.cli.watch_view import Screen

    notes = []
    if follower.silent_since is not None:
        since = time.strftime("%H:%M:%S", time.localtime(follower.silent_since))
        wait = follower.back_off.wait_s
        notes.append(f"Slurm has not answered since {since}; it is asked again every {wait:.0f} s")
    usage = sampler.sample(views, ask=ask)
    return Screen(
        views=views,
        usage=usage,
        curves={one.name: _curves(one) for one in views},
        ranks={one.name: _ranks(one) for one in views} if len(views) == 1 else {},
        notes=notes,
        now=time.time(),
    )


def _curves(one: RunView) -> Curves:
    from hpcmass.cli.watch_view import Curves
    from hpcmass.files import read_last_records
    from hpcmass.runs.pace import pace_lines, shares_in_words

    loss: list[float] = []
    speed: list[float] = []
    shares = ""
    records = read_last_records(one.reading.run.metrics_file, 65536)
    for record in records:
        shares = shares_in_words(record) or shares
        if record.get("kind") in ("train", "report"):
            for key, values in (("loss", loss), ("samples_per_s", speed)):
                if isinstance(record.get(key), (int, float)):
                    values.append(float(record[key]))
    return Curves(loss, speed, shares, pace_lines(records))


def _ranks(one: RunView) -> list[Rank]:
    """Where each rank of the newest attempt runs, with what it said before it ended badly."""
    from hpcmass.cli.watch_view import Rank
    from hpcmass.errors import HpcmassError
    from hpcmass.files import read_json

    run, attempt = one.reading.run, one.status.attempt
    try:
        places = read_json(run.path / "ranks" / f"attempt-{attempt}.json")["ranks"]
    except (HpcmassError, KeyError, TypeError):
        return []
    errors = {error.rank: error.message for error in run.errors(attempt)}
    ranks = []
    for place in places:
        gpus = f", GPU {place['gpus']}" if place.get("gpus") else ""
        number = int(place["rank"])
        where = f"{place['host']}{gpus}, process {place['pid']}"
        ranks.append(Rank(number, where, errors.get(number, "")))
    return ranks


def _plain(follower: Follower) -> None:
    from hpcmass.cli.status import about
    from hpcmass.workflow.follow import until_over

    told: dict[str, tuple[str, float]] = {}
    for views in until_over(follower, every_s=_EVERY_S):
        now = time.monotonic()
        for one in views:
            key = f"{one.phase.value} {one.verdict.reason if one.phase.value != 'RUNNING' else ''}"
            before = told.get(one.name)
            if (
                before is not None
                and before[0] == key
                and (one.verdict.final or now - before[1] < _LINE_EVERY_S)
            ):
                continue
            told[one.name] = (key, now)
            click.echo(_line(one, about(one)))
            sys.stdout.flush()


def _line(one: RunView, text: str) -> str:
    from hpcmass.cli.lines import amount, shown

    facts = [time.strftime("%H:%M:%S"), one.name, one.phase.value]
    if one.status.step:
        facts.append(
            f"step {one.status.step}" + (f"/{one.status.total_steps}" if one.status.total_steps else "")
        )
    if one.reading.loss is not None:
        facts.append(f"loss {amount(one.reading.loss)}")
    return shown("  ".join([*facts, text]).rstrip())


def _last_words(views: Sequence[RunView]) -> list[str]:
    from hpcmass.cli.status import lines_of

    return lines_of(list(views))
