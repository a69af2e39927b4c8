"""Counters and histograms of one replica, written down as Prometheus reads them.

Plain integers that one thread changes: an observation costs well under a microsecond.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping

SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Histogram:
    """Counts of observations by upper bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, what: str) -> Iterable[str]:
        """As Prometheus has it, cumulative."""
        yield f"# HELP {name} {what}"
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            total += count
            yield f'{name}_bucket{{le="{bound:g}"}} {total}'
        total += self.counts[-1]
        yield f'{name}_bucket{{le="+Inf"}} {total}'
        yield f"{name}_sum {self.sum:.9g}"
        yield f"{name}_count {total}"


class Metrics:
    """What a replica counts."""

    def __init__(self) -> None:
        self.answers: dict[int, int] = {}
        self.inferences = 0
        self.rows = 0
        self.abandoned = 0
        self.broken = 0
        self.events = 0  # connections and pieces of data that came; for the batcher alone
        self.request_s = Histogram(SECONDS)
        self.queue_s = Histogram(SECONDS)
        self.batch_s = Histogram(SECONDS)
        self.batch_rows = Histogram(ROWS)
        self.started = time.time()

    def answered(self, status: int) -> None:
        """Count an answer by its status."""
        self.answers[status] = self.answers.get(status, 0) + 1

    def text(self, labels: Mapping[str, str], gauges: Mapping[str, float]) -> str:
        """The page of `/metrics`.

        Args:
            labels: Facts of the replica, given as labels of `hpcmass_replica_info`.
            gauges: What is counted elsewhere: value by name, without `hpcmass_`; labels may follow in braces.
        """
        said = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
        lines = ["# TYPE hpcmass_replica_info gauge", f"hpcmass_replica_info{{{said}}} 1"]
        lines.append("# HELP hpcmass_answers_total Answers by HTTP status, of all addresses.")
        lines.append("# TYPE hpcmass_answers_total counter")
        lines += [f'hpcmass_answers_total{{code="{code}"}} {n}' for code, n in sorted(self.answers.items())]
        for name, what, value in (
            ("inferences", "Requests for inference that were answered with outputs.", self.inferences),
            ("rows", "Samples computed for them.", self.rows),
            ("abandoned", "Requests whose client left before they were computed.", self.abandoned),
            ("broken_connections", "Connections ended for what was no HTTP, or came too slowly.", self.broken),
        ):
            lines.append(f"# HELP hpcmass_{name}_total {what}")
            lines += [f"# TYPE hpcmass_{name}_total counter", f"hpcmass_{name}_total {value}"]
        lines += self.request_s.lines(
            "hpcmass_request_seconds", "From a whole request for inference to its answer."
        )
        lines += self.queue_s.lines("hpcmass_queue_seconds", "Waiting for a batch.")
        lines += self.batch_s.lines("hpcmass_batch_seconds", "Computing one batch.")
        lines += self.batch_rows.lines("hpcmass_batch_rows", "Samples in one batch.")
        for name, number in {**gauges, **_process(self.started)}.items():
            whole = name if name.startswith("process_") else f"hpcmass_{name}"
            base = whole.partition("{")[0]
            told = f"# TYPE {base} {'counter' if base.endswith('_total') else 'gauge'}"
            if told not in lines[-2:]:  # those that differ in a label alone follow each other
                lines.append(told)
            lines.append(f"{whole} {number:.12g}")
        return "\n".join(lines) + "\n"


def _process(started: float) -> dict[str, float]:
    times = os.times()
    found = {"process_start_time_seconds": started, "process_cpu_seconds_total": times.user + times.system}
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        return found
    return {**found, "process_resident_memory_bytes": float(pages * os.sysconf("SC_PAGE_SIZE"))}


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
