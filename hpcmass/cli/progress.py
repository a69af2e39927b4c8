"""Progress on a terminal as a bar, and in a log as plain lines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from hpcmass.cli.console import text

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress, TaskID
    from typing_extensions import Self

    from hpcmass.cli.study_live import LiveTable

_LINE_EVERY_S = 15.0


class Bar:
    """A bar that counts up to `total`, or a line now and then where the output is no terminal."""

    def __init__(self, title: str, total: float, unit: str = "") -> None:
        self.title, self.total, self.unit = title, total, unit
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._progress.start()
            self._task = self._progress.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def to(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Show how far it is, and a note beside it."""
        if total is not None:
            self.total = total
        if self._progress is not None and self._task is not None:
            fields: dict[str, Any] = {} if note is None else {"note": note}
            self._progress.update(self._task, completed=done, total=self.total, **fields)
        elif time.monotonic() - self._said > _LINE_EVERY_S:
            self._said = time.monotonic()
            click.echo(f"{self.title} {done:.0f}/{self.total:.0f} {self.unit} {note or ''}".rstrip())

    def line(self, words: str) -> None:
        """Print a line above the bar."""
        if self._progress is not None:
            self._progress.console.print(words, markup=False, highlight=False)
        else:
            click.echo(words)


class SweepProgress(Bar):
    """Shows the events of a study: a line a trial that ends, and on a terminal the live table below them."""

    def __init__(self, metric: str, direction: str, trials: int, folder: Path | None = None) -> None:
        super().__init__("sweep", trials, "trials")
        self._folder = folder
        self._table: LiveTable | None = None
        self.metric, self.direction = metric, direction
        self.best: float | None = None
        self.running: set[int] = set()

    def __enter__(self) -> Self:
        if self._folder is None or not sys.stdout.isatty():
            return super().__enter__()
        from hpcmass.cli.study_live import LiveTable

        self._table = LiveTable(self._folder)
        self._table.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._table is not None:
            self._table.close()
        super().__exit__(kind, error, trace)

    def line(self, words: str) -> None:
        """Print a line above the table, or the bar."""
        if self._table is not None:
            self._table.line(words)
        else:
            super().line(words)

    def to(self, done: float, total: float | None = None, note: str | None = None) -> None:
        """Show how far it is, where the table does not."""
        if self._table is None:
            super().to(done, total, note)

    def event(self, event: Any) -> None:
        """Take one event of the driver."""
        if event.kind in ("started", "attached", "retried"):
            self.running.add(event.number)
        if event.kind == "paused":
            self.running.discard(event.number)
        if event.kind in ("complete", "pruned", "failed"):
            self.running.discard(event.number)
            self._note_best(event)
            self.line(self._told(event))
        if event.kind == "opened" and event.finished:
            self.line(f"goes on: {event.finished} of {event.trials} trials are done {event.message}".rstrip())
        elif event.kind == "opened" and event.message:
            self.line(event.message)
        if event.kind == "attached":
            self.line(f"trial {event.number:>3}  attached: it still runs, as an earlier driver began it")
        if event.kind == "retried":
            self.line(f"trial {event.number:>3}  again: {event.message}")
        best = "" if self.best is None else f"best {self.metric} {self.best:.4f}"
        self.to(event.finished, event.trials, f"{best}  running {len(self.running)}")

    def _note_best(self, event: Any) -> None:
        if event.kind != "complete" or event.value is None:
            return
        better = max if self.direction == "maximize" else min
        self.best = event.value if self.best is None else better(self.best, event.value)

    def _told(self, event: Any) -> str:
        value = "" if event.value is None else f"{self.metric} {event.value:.4f}"
        reason = f"  ({event.message})" if event.message and event.kind == "failed" else ""
        params = "  ".join(f"{name}={text(value)}" for name, value in event.params.items())
        return f"trial {event.number:>3}  {event.kind:<8}  {value:<16}  {params}{reason}"
