"""What a gateway counts: latencies of the last seconds, and of all time, in buckets 12 % apart."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SECONDS = 10  # of which rate and latency are told
BOUNDS = tuple(1e-4 * 1.12**i for i in range(118))  # 0.1 ms to about a minute, in seconds


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Of counts by `BOUNDS`, the upper end of the bucket with the quantile, in seconds; None of none."""
    total = sum(counts)
    if not total:
        return None
    left = share * total
    for place, count in enumerate(counts):
        left -= count
        if left <= 0 and count:
            return BOUNDS[min(place, len(BOUNDS) - 1)]
    return BOUNDS[-1]


@dataclass(frozen=True)
class Summary:
    """Of the last seconds: answers a second, latency in ms, errors (5xx, replica gone) and refusals (429)."""

    rate: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    errors: int = 0
    refused: int = 0


class Window:
    """Counts of the last whole seconds; `tick` is called once a second."""

    __slots__ = ("_errors", "_now", "_past", "_refused", "total", "total_errors")

    def __init__(self) -> None:
        self._past: deque[tuple[list[int], int, int]] = deque(maxlen=SECONDS)
        self._now = [0] * (len(BOUNDS) + 1)
        self._errors = self._refused = 0
        self.total = [0] * (len(BOUNDS) + 1)
        self.total_errors = 0

    def observe(self, seconds: float) -> None:
        """Count an answer."""
        place = bisect_left(BOUNDS, seconds)
        self._now[place] += 1
        self.total[place] += 1

    def error(self) -> None:
        """Count an error."""
        self._errors += 1
        self.total_errors += 1

    def refuse(self) -> None:
        """Count a refusal."""
        self._refused += 1

    def tick(self) -> None:
        """A second is over."""
        self._past.append((self._now, self._errors, self._refused))
        self._now = [0] * (len(BOUNDS) + 1)
        self._errors = self._refused = 0

    def summary(self, seconds: int = SECONDS) -> Summary:
        """Of the last whole seconds."""
        last = list(self._past)[-seconds:]
        if not last:
            return Summary()
        counts = [sum(column) for column in zip(*(one[0] for one in last), strict=True)]
        p50, p99 = quantile(counts, 0.5), quantile(counts, 0.99)
        return Summary(
            sum(counts) / len(last),
            None if p50 is None else 1e3 * p50,
            None if p99 is None else 1e3 * p99,
            sum(one[1] for one in last),
            sum(one[2] for one in last),
        )


def page(
    counters: Iterable[tuple[str, str, int]],
    gauges: Iterable[tuple[str, str, float]],
    window: Window,
    total_s: float,
) -> str:
    """The page of `/metrics` of a gateway.

    Args:
        counters: Name without `hpcmass_gateway_`, labels, value; also `gauges`.
        gauges: As the counters.
        window: Whose counts of all time are given as a histogram.
        total_s: Sum of all its observations.
    """
    lines: list[str] = []
    seen: set[str] = set()
    for kind, rows in (("counter", counters), ("gauge", gauges)):
        for name, labels, value in rows:
            whole = f"hpcmass_gateway_{name}"
            if whole not in seen:
                seen.add(whole)
                lines.append(f"# TYPE {whole} {kind}")
            lines.append(f"{whole}{labels} {value:.12g}")
    lines.append("# TYPE hpcmass_gateway_request_seconds histogram")
    count = 0
    for place, bound in enumerate(BOUNDS):
        count += window.total[place]
        if place % 6 == 5:  # about a factor of two
            lines.append(f'hpcmass_gateway_request_seconds_bucket{{le="{bound:.4g}"}} {count}')
    count += window.total[-1]
    lines.append(f'hpcmass_gateway_request_seconds_bucket{{le="+Inf"}} {count}')
    lines.append(f"hpcmass_gateway_request_seconds_sum {total_s:.9g}")
    lines.append(f"hpcmass_gateway_request_seconds_count {count}")
    return "\n".join(lines) + "\n"
