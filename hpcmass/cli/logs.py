"""`hpcmass logs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from hpcmass.cli.options import project_option

if TYPE_CHECKING:
    from hpcmass.runs.tail import LogName

_POLL_S = 0.5


@click.command("logs")
@click.argument("run")
@click.option(
    "-f", "--follow", is_flag=True, help="Go on with what comes, over all hops, until the run is over."
)
@click.option("--rank", "ranks", metavar="R", multiple=True, help="A rank, or 'all' (repeatable) [default: 0].")
@click.option("--attempt", type=click.IntRange(min=1), help="A start of the run [default: the newest].")
@click.option("--slurm", "batch", is_flag=True, help="The output of the batch scripts instead.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Last lines of each log to begin with.",
)
@click.option("--all", "whole", is_flag=True, help="All lines of each log.")
@project_option
def command(
    run: str, follow: bool, ranks: tuple[str, ...], attempt: int | None, batch: bool, lines: int, whole: bool,
    project_root: str | None,
) -> int:  # fmt: skip
    """Show the output of a run's ranks; of several, each line begins with its rank.

    RUN is a run's name, STUDY/NUMBER for a trial, a folder, or the id of a Slurm job. Following survives hops,
    further attempts, and a log that is cut. Where the ranks have no logs of their own, the batch script's
    output is shown.
    """
    from hpcmass.cli.status import slurm_for
    from hpcmass.errors import ConfigError, NotFound
    from hpcmass.runs.tail import LogFollower, batch_logs, rank_logs
    from hpcmass.workflow.follow import Follower, until_over
    from hpcmass.workflow.projects import maybe_project
    from hpcmass.workflow.select import select_runs
    from hpcmass.workflow.state import read_run

    chosen = select_runs([run], maybe_project(project_root))
    if len(chosen) > 1:
        raise ConfigError(f"'{run}' names {len(chosen)} runs", where="RUN", hint="name one of them")
    folder = chosen[0]
    wanted = _ranks(ranks)
    if not batch and not follow and not rank_logs(folder.path) and batch_logs(folder.path):
        click.echo("the ranks have no logs of their own; the output of the batch script:", err=True)
        batch = True
    follower = LogFollower(
        lambda: (batch_logs if batch else rank_logs)(folder.path),
        ranks=None if batch else wanted,
        attempt=None if batch else attempt,
        last=None if whole else lines,
    )
    printer = _Printer(several=wanted is None or len(wanted) > 1)
    printer.show(follower.read())
    if not follow:
        printer.show(follower.rest())
        if not printer.shown and not (batch_logs if batch else rank_logs)(folder.path):
            raise NotFound("the run has no log yet", where=folder.path, hint=f"hpcmass status {run}")
        return 0
    watched = Follower([folder], slurm_for(bool(read_run(folder).jobs)))
    for _ in until_over(watched, every_s=_POLL_S, sleep=_sleep):
        printer.show(follower.read())
    printer.show([*follower.read(), *follower.rest()])
    return 0


def _sleep(seconds: float) -> None:
    sys.stdout.flush()
    time.sleep(seconds)


def _ranks(words: Iterable[str]) -> list[int] | None:
    """The ranks asked for; None: all."""
    from hpcmass.errors import ConfigError

    words = list(words)
    if "all" in words:
        return None
    for word in words:
        if not word.isdecimal():
            raise ConfigError(f"{word!r} is no rank", where="--rank", hint="a number from 0, or 'all'")
    return [int(word) for word in words] or [0]


class _Printer:
    """Prints lines, with a heading where the attempt or job changes."""

    def __init__(self, *, several: bool) -> None:
        self.several = several
        self.shown = 0
        self._attempt: int | None = None

    def show(self, lines: Iterable[tuple[LogName, str]]) -> None:
        for name, line in lines:
            if self._attempt is not None and name.attempt != self._attempt:
                title = name.title if name.batch else f"attempt {name.attempt}"
                click.echo(f"== {title}")
            self._attempt = name.attempt
            prefix = f"[{name.rank}] " if self.several and not name.batch else ""
            click.echo(prefix + line)
            self.shown += 1
