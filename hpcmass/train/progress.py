"""What rank 0 tells: records and status of the run folder, events, and the user's console."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hpcmass.errors import LeaseHeld
from hpcmass.runs import RunFolder
from hpcmass.runs.pace import rank_in_words, step_in_words
from hpcmass.train.events import Events
from hpcmass.train.pace import Row, seconds_a_step, slow_rank, slow_step

STATUS_EVERY_S = 2.0
PLAIN_EVERY_S = 10.0
SLOW_EVERY_S = 60.0


class Screen:
    """One progress line on a terminal; plain lines at intervals elsewhere; nothing when switched off."""

    def __init__(self, title: str, total_steps: int, *, on: bool) -> None:
        self._title, self._total, self._on = title, total_steps, on
        self._rich: Progress | None = None
        self._task: TaskID | None = None
        self._terminal: TextIO | None = None
        self._last = 0.0

    def say(self, text: str) -> None:
        """A plain line that stays."""
        if not self._on:
            return
        if self._rich is not None and self._terminal is None:
            self._rich.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def start(self, step: int) -> None:
        """Begin, at `step`."""
        console = self._console() if self._on else None
        if console is not None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
            )
            here = (
                self._terminal is None
            )  # Else what is printed goes to the log, and from there to the terminal.
            self._rich = Progress(
                *columns,
                TimeRemainingColumn(),
                console=console,
                transient=True,
                redirect_stdout=here,
                redirect_stderr=here,
            )
            self._task = self._rich.add_task(self._title, total=self._total, completed=step, text="")
            self._rich.start()
        self._last = time.monotonic()

    def step(self, step: int, epoch: int, loss: float | None, samples_per_s: float | None) -> None:
        """After every step; the loss is known at log intervals only."""
        if self._rich is not None and self._task is not None:
            self._rich.update(self._task, completed=step)
            if loss is not None:
                text = f"epoch {epoch + 1}  step {step}/{self._total}  loss {loss:.4g}  "
                text += f"{samples_per_s:.0f} samples/s"
                self._rich.update(self._task, text=text)
        elif loss is not None and time.monotonic() - self._last >= PLAIN_EVERY_S:
            self._last = time.monotonic()
            self.say(
                f"{self._title}: epoch {epoch + 1} step {step}/{self._total} loss {loss:.4g} "
                f"{samples_per_s:.0f} samples/s"
            )

    def _console(self) -> Console | None:
        """The terminal: standard error, or that of the command which started this rank and keeps its output."""
        if sys.stderr.isatty():
            return Console(stderr=True)
        device = os.environ.get("HPCMASS_TTY")
        if device:
            with contextlib.suppress(OSError):
                handle = os.open(device, os.O_WRONLY | os.O_NOCTTY)
                self._terminal = open(handle, "w", encoding="utf-8")  # noqa: SIM115
                return Console(file=self._terminal, force_terminal=True)
        return None

    def close(self) -> None:
        """Take the line away."""
        if self._rich is not None:
            self._rich.stop()
            self._rich = None
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None


class Reporter:
    """Rank 0's sinks in one: `metrics.jsonl`, `status.json`, `events/`, the screen. Other ranks have none.

    A run that another process has taken over is not written to, and it is no error here: the ranks have to
    agree on it first, which they do at the next step or checkpoint.

    Attributes:
        at_first_step: Called once, after the first step.
    """

    def __init__(
        self, run: RunFolder, screen: Screen, *, from_step: int, total_steps: int = 0, hosts: Sequence[str] = ()
    ) -> None:
        """Prepare.

        Args:
            run: The run's folder.
            screen: The user's console.
            from_step: Where the attempt begins.
            total_steps: Of the run.
            hosts: Of each rank.
        """
        self._run, self._hosts = run, hosts
        self._slow_rank: int | None = None
        self._suspect: int | None = None
        self._slow_told = -SLOW_EVERY_S
        self._screen = screen
        self._total = total_steps
        self.at_first_step: Callable[[], object] | None = None
        self._events = Events(run.path / "events", purge_step=from_step + 1 if from_step else None)
        self._written = 0.0

    def step(self, step: int, epoch: int, samples_done: int) -> None:
        """After every optimiser step; the status file is written every few seconds only."""
        if self.at_first_step is not None:
            with contextlib.suppress(LeaseHeld):
                self.at_first_step()
            self.at_first_step = None
        self._screen.step(step, epoch, None, None)
        if time.monotonic() - self._written >= STATUS_EVERY_S:
            self.status(step, epoch, samples_done)

    def status(self, step: int, epoch: int, samples_done: int, **more: Any) -> None:
        """Write where the run is; not its state, which others may have ended while this process was stopped."""
        self._written = time.monotonic()
        with contextlib.suppress(LeaseHeld):
            self._run.update(
                step=step,
                total_steps=self._total,
                epoch=epoch,
                samples_done=samples_done,
                **more,
            )

    def train(self, step: int, epoch: int, values: Mapping[str, float], rows: Row) -> None:
        """A `train` record, and what there is to tell of slow steps and ranks.

        Args:
            step: Steps done.
            epoch: The epoch, from 0.
            values: `loss`, `lr`, `samples_per_s`, and more where there is.
            rows: `Pace.row` of every rank, shape (ranks, `pace.WIDTH`).
        """
        self._append({"kind": "train", "step": step, "epoch": epoch, **values, **seconds_a_step(rows)})
        self._screen.step(step, epoch, values["loss"], values["samples_per_s"])
        self._events.write(step, {**values, **seconds_a_step(rows)}, "train")
        self._pace(step, epoch, rows)

    def _pace(self, step: int, epoch: int, rows: Row) -> None:
        slow = slow_step(rows, self._hosts)
        if slow is not None:
            record = {"kind": "slow-step", **slow, "epoch": epoch}
            self._append(record)
            self._events.write(
                slow["step"], {"seconds": slow["seconds"], "rank": slow.get("rank", -1)}, "slow-step"
            )
            if time.monotonic() - self._slow_told >= SLOW_EVERY_S:
                self._slow_told = time.monotonic()
                self._screen.say(step_in_words(record))
        self._slow_rank_told(step, epoch, slow_rank(rows, self._hosts))

    def _slow_rank_told(self, step: int, epoch: int, found: dict[str, Any] | None) -> None:
        """Tell of a rank that was slow twice in a row, and that it is so no more."""
        rank = None if found is None else found["rank"]
        suspect, self._suspect = self._suspect, rank
        if rank == self._slow_rank or rank != suspect:
            return
        self._slow_rank = rank
        record = {"kind": "slow-rank", "step": step, "epoch": epoch, **(found or {"rank": None})}
        self._append(record)
        if found is not None:
            self._events.write(step, {"rank": found["rank"], "times": found["times"]}, "slow-rank")
            self._screen.say(rank_in_words(record))

    def valid(self, step: int, epoch: int, samples_done: int, metrics: Mapping[str, float]) -> None:
        """A `valid` record, and the same numbers in the status."""
        self._append({"kind": "valid", "step": step, "epoch": epoch, **metrics})
        self._events.write(step, metrics, "valid")
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self.status(step, epoch, samples_done, metrics=finite)
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self._screen.say(f"epoch {epoch + 1} step {step}: valid {text}")

    def shares(self, step: int, epoch: int, shares: Sequence[float]) -> None:
        """A `shares` record: the ranks' parts of a global batch have changed."""
        self._append({"kind": "shares", "step": step, "epoch": epoch, "shares": [round(s, 4) for s in shares]})

    def bad_loss(self, step: int, epoch: int, blame: list[dict[str, Any]]) -> None:
        """A `bad-loss` record: the samples of the ranks whose loss was NaN or infinite."""
        self._append({"kind": "bad-loss", "step": step, "epoch": epoch, "ranks": blame})

    def _append(self, record: dict[str, Any]) -> None:
        with contextlib.suppress(LeaseHeld):
            self._run.append(record)

    def say(self, text: str) -> None:
        """A line for the user."""
        self._screen.say(text)

    def close(self) -> None:
        """Flush the events and take the progress line away."""
        self._events.close()
        self._screen.close()
