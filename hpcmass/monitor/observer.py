"""What a replica holds: it sees requests and answers, and writes windows.

Rates, latencies and status codes are differences of what the replica counts anyway, so they cost nothing a
request. Features are taken of a uniform random sample of each window's requests (a reservoir), summed up
once a window in a thread and in small pieces.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpcmass.errors import HpcmassError
from hpcmass.monitor.answers import Answers
from hpcmass.monitor.baseline import Baseline
from hpcmass.monitor.facts import write_facts
from hpcmass.monitor.features import Watched
from hpcmass.monitor.kept import WRITE_S, Kept
from hpcmass.monitor.sketch import Sketch
from hpcmass.monitor.windows import Window, WindowFiles

log = logging.getLogger("hpcmass.monitor")
Arrays = Mapping[str, Any]
SAMPLE = 256  # requests of a window whose features are taken
ROWS = 4  # samples of one of them
_PIECE = 64  # samples summed up at once: about a millisecond
_PAUSE_S = 0.004


class Counts(Protocol):
    """What a replica counts (`serve.metrics.Metrics`)."""

    answers: dict[int, int]
    inferences: int
    rows: int

    @property
    def request_s(self) -> Any:
        """A histogram with `counts` and `sum`."""


@dataclass
class Taken:
    """A request that is watched: copies of some of its samples, then of their outputs."""

    slot: int
    window: int
    picked: list[int]
    inputs: dict[str, Any]
    outputs: dict[str, Any] = field(default_factory=dict)
    identity: str | None = None


class Monitor:
    """Sees what one replica answers.

    Args:
        folder: Where it writes.
        replica: The replica's name, of which no other lives.
        version: The model's, as text.
        window_s: Length of a window.
        sample: Requests of a window whose features are taken.
        answers: How many answers with an `id` are kept, to be joined with labels; 0: none.
        keep: How many raw samples are kept an hour, for another training; 0: none.
        model: The model's name.
    """

    def __init__(
        self,
        folder: Path,
        replica: str,
        version: str,
        *,
        window_s: float = 60.0,
        sample: int = SAMPLE,
        answers: int = 1_000_000,
        keep: int = 0,
        model: str = "",
    ) -> None:
        self.folder, self.replica, self.version = folder, replica, version
        self.window_s, self.sample, self.model = window_s, sample, model
        self.files = WindowFiles(folder, replica)
        self.answers = Answers(folder, replica, version, answers)
        self.kept = Kept(folder, replica, keep, min(WRITE_S, 10 * window_s))
        self._watched: Watched | None = None
        self._baseline: Baseline | None = None
        self._counts: Counts | None = None
        self._before: dict[str, Any] = {}
        self._slots: list[Taken | None] = []
        self._seen = self._number = 0
        self._start = time.time()
        self._random = random.Random()

    def begin(self, counts: Counts, watched: Watched, baseline: Baseline | None) -> None:
        """The model is there: from now on requests are seen."""
        self._counts, self._watched, self._baseline = counts, watched, baseline
        self._before = _snapshot(counts)
        self._start = time.time()
        _safely(lambda: write_facts(self.folder, self.version, watched, self.model))

    # -- a request: microseconds ------------------------------------------------------------------------
    def take(self, arrays: Arrays, rows: int) -> Taken | None:
        """See a request before it is computed: a computation may change its arrays.

        Args:
            arrays: Inputs by name, (rows, ...).
            rows: Samples.
        """
        if self._watched is None:
            return None
        self._seen += 1
        slot = len(self._slots)
        if slot >= self.sample:
            slot = int(self._random.random() * self._seen)
            if slot >= self.sample:
                return None
        else:
            self._slots.append(None)
        picked = self._random.sample(range(rows), min(ROWS, rows)) if rows > 1 else [0]
        return Taken(slot, self._number, picked, {name: value[picked] for name, value in arrays.items()})

    def done(self, taken: Taken | None, identity: str | None, outputs: Arrays) -> None:
        """See what was answered.

        Args:
            taken: What `take` gave.
            identity: The request's own, by which labels come later.
            outputs: By name, (rows, ...).
        """
        watched = self._watched
        if watched is None:
            return
        if taken is not None and taken.window == self._number:
            taken.outputs = {one.name: outputs[one.name][taken.picked] for one in watched.outputs}
            taken.identity = identity
            self._slots[taken.slot] = taken
        if identity is not None:
            self.answers.add(identity, outputs[watched.outputs[0].name], watched.classes)

    def label(self, identity: str, label: Any) -> None:
        """Keep a label that has come for an answer of any replica."""
        self.answers.label(identity, label)

    # -- once a window ------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Write windows until it is cancelled, and the last one then."""
        try:
            while True:
                await asyncio.sleep(min(1.0, self.window_s))
                if self.answers.waiting:
                    await asyncio.to_thread(_safely, self.answers.write)
                if time.time() >= self._start + self.window_s:
                    await asyncio.to_thread(_safely, self._written(self._cut()))
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Write what there is."""
        if self._watched is not None:
            _safely(self.answers.write)
            _safely(self._written(self._cut(), pause_s=0.0))
            _safely(self.kept.write)

    def _cut(self) -> tuple[Window, list[Taken]]:
        """End the window and begin the next; on the thread of the event loop."""
        assert self._counts is not None
        now, after, before = time.time(), _snapshot(self._counts), self._before
        window = Window(self.replica, self.version, self._start, now)
        window.requests = after["inferences"] - before["inferences"]
        window.rows = after["rows"] - before["rows"]
        codes = {code: n - before["answers"].get(code, 0) for code, n in after["answers"].items()}
        window.answers = {str(code): n for code, n in sorted(codes.items()) if n}
        counts = [a - b for a, b in zip(after["latency"], before["latency"], strict=True)]
        window.latency, window.latency_s = counts, after["latency_s"] - before["latency_s"]
        taken = [one for one in self._slots if one is not None]
        self._slots, self._seen, self._start, self._before = [], 0, now, after
        self._number += 1
        return window, taken

    def _written(self, cut: tuple[Window, list[Taken]], pause_s: float = _PAUSE_S) -> Callable[[], None]:
        window, taken = cut

        def write() -> None:
            window.features, window.sampled = self._features(taken, pause_s)
            self.files.append(window)
            if self.kept.limit:
                for one in taken:
                    self.kept.see(one.identity, one.picked, one.inputs)
                self.kept.turn(window.end)

        return write

    def _features(self, taken: list[Taken], pause_s: float) -> tuple[dict[str, Sketch], int]:
        watched, baseline = self._watched, self._baseline
        assert watched is not None
        total: dict[str, Sketch] = {}
        rows = 0
        inputs = [{n: v[i] for n, v in one.inputs.items()} for one in taken for i in range(len(one.picked))]
        outputs = [{n: v[i] for n, v in one.outputs.items()} for one in taken for i in range(len(one.picked))]
        for start in range(0, len(inputs), _PIECE):
            piece = slice(start, start + _PIECE)
            found = {**watched.of_inputs(inputs[piece]), **watched.of_outputs(outputs[piece])}
            for name, values in found.items():
                one = Sketch.of(values, None) if baseline is None else baseline.sketch(name, values)
                total.setdefault(name, Sketch()).merge(one)
            rows += len(inputs[piece])
            time.sleep(pause_s)
        return total, rows


def _snapshot(counts: Counts) -> dict[str, Any]:
    return {
        "answers": dict(counts.answers),
        "inferences": counts.inferences,
        "rows": counts.rows,
        "latency": list(counts.request_s.counts),
        "latency_s": counts.request_s.sum,
    }


def _safely(write: Callable[[], None]) -> None:
    """A folder that cannot be written must not end a replica; it is said, and tried again."""
    try:
        write()
    except HpcmassError as error:
        log.warning("the monitor cannot write: %s", error.message)
    except Exception:
        log.exception("the monitor failed")
