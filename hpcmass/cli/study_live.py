"""The live table of a study: on a terminal a picture that is drawn again, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from hpcmass.errors import HpcmassError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console, ConsoleOptions
    from rich.live import Live
    from rich.text import Text

    from hpcmass.sweep.standing import Standing, StudyWatch

EVERY_S = 1.0
_LINE_EVERY_S = 15.0
# So long without a driver, where there was one, and the study is left: a job's next hop may take it up.
_GRACE_S = 30.0


class Picture:
    """What rich draws: the lines for whatever size the terminal has at that moment."""

    def __init__(self) -> None:
        self.standing: Standing | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Text]:
        from rich.text import Text

        from hpcmass.cli.study_view import render

        if self.standing is None:
            return
        # One row is left free, or the terminal would scroll with every picture.
        for words, style in render(self.standing, max(20, options.max_width), max(4, console.size.height - 1)):
            yield Text(words, style=style, no_wrap=True, overflow="crop", end="\n")


class LiveTable:
    """A picture at the foot of the terminal, kept up by a thread that reads the study's folder."""

    def __init__(self, folder: Path, every_s: float = EVERY_S) -> None:
        self._folder, self._every_s = folder, every_s
        self._picture = Picture()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="hpcmass-table", daemon=True)
        self._live: Live | None = None

    def open(self) -> None:
        """Begin to draw."""
        from rich.console import Console
        from rich.live import Live

        console = Console(emoji=False, highlight=False, markup=False)
        self._live = Live(self._picture, console=console, refresh_per_second=2, transient=False)
        self._live.start()
        self._thread.start()

    def close(self) -> None:
        """Draw a last time and leave it there."""
        self._closing.set()
        if self._live is not None:
            self._thread.join()
            self._live.refresh()
            self._live.stop()

    def line(self, words: str) -> None:
        """Print a line above the picture."""
        if self._live is not None:
            self._live.console.print(words, markup=False, highlight=False)

    def _keep_up(self) -> None:
        watch: StudyWatch | None = None
        while True:
            last = self._closing.is_set()
            began = time.monotonic()
            try:
                watch = watch or self._watch()
                self._picture.standing = watch.look()
            except (HpcmassError, OSError):
                pass  # Not laid down yet, or the file system has a hiccup: it is looked at again.
            if last:
                return
            # A look takes at most a tenth of the time: this process has a study to drive.
            self._closing.wait(max(self._every_s, 10 * (time.monotonic() - began)))

    def _watch(self) -> StudyWatch:
        from hpcmass.sweep.standing import StudyWatch

        return StudyWatch(self._folder)


def watch_study(folder: Path, *, alternate: bool = False) -> None:
    """Show a study until it is over, or nobody drives it any more."""
    from hpcmass.cli.study_view import plain
    from hpcmass.sweep.standing import StudyWatch

    watch = StudyWatch(folder)
    if not sys.stdout.isatty():
        for one, said in _looks(watch, _LINE_EVERY_S):
            if said:
                click.echo(plain(one))
                sys.stdout.flush()
        _last_word(one)
        return
    from rich.console import Console
    from rich.live import Live

    picture = Picture()
    console = Console(emoji=False, highlight=False, markup=False)
    with Live(picture, console=console, screen=alternate, auto_refresh=True, refresh_per_second=2) as live:
        for one, _ in _looks(watch, 0.0):
            picture.standing = one
            live.refresh()
    if alternate:
        click.echo(plain(one))
    _last_word(one)


def _looks(watch: StudyWatch, line_every_s: float) -> Iterable[tuple[Standing, bool]]:
    """Look until it is over; with each look goes whether it is worth a line."""
    said_at, said_what, driven_at = float("-inf"), None, float("-inf")
    while True:
        one = watch.look()
        now = time.monotonic()
        driven_at = now if one.driver is not None or one.running else driven_at
        over = one.driver is None and not one.running
        over = over and (one.done >= one.planned or one.ended is not None or now - driven_at > _GRACE_S)
        what = (one.done, one.best, one.driver is None)
        say = (
            over or (now - said_at >= line_every_s and what != said_what) or now - said_at >= 20 * line_every_s
        )
        if say:
            said_at, said_what = now, what
        yield one, say
        if over:
            return
        time.sleep(EVERY_S)


def _last_word(one: Standing) -> None:
    if one.done < one.planned and one.driver is None:
        click.echo(f"nobody drives it; go on with: hpcmass sweep resume {one.name}")
