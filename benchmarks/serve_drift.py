"""Drift of simulated traffic: false alarms in clean days with a day's rhythm, and how soon a shift is found.

Three replicas write windows of ten minutes through the code that a real one uses; a look an hour, as
`hpcmass drift --every 1h` has it. What is asked follows a day's rhythm in its rate (1 : 9) and in its mix (every
feature has its own hour, 0.3 standard deviations up and down), wanders (a first-order autoregression by the
hour, 0.8, with a deviation of 0.05), and is another on weekends. The training data are 30 days of the same.

    python benchmarks/serve_drift.py [--days 10] [--repeat 3] [--quick]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from hpcmass.monitor.baseline import Baseline, keep_baseline
from hpcmass.monitor.drift import look
from hpcmass.monitor.windows import Window, WindowFiles

FEATURES, REPLICAS, WINDOW_S, SAMPLE = 12, 3, 600.0, 250
START = 1_800_000_000 // 86400 * 86400


class Traffic:
    """What is asked, by time; the classes that the model answers follow from it."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.phase = np.random.default_rng(5).uniform(0, 24, FEATURES)
        self.wander = np.zeros(FEATURES)

    def hour(self) -> None:
        """An hour has passed."""
        self.wander = 0.8 * self.wander + self.rng.normal(0, 0.05 * (1 - 0.64) ** 0.5, FEATURES)

    def rate(self, at: float) -> float:
        """Requests a second."""
        hour = at % 86400 / 3600
        weekend = (at // 86400) % 7 >= 5
        return (5 + 4 * np.sin((hour - 9) / 24 * 2 * np.pi)) * (0.5 if weekend else 1.0)

    def rows(self, at: float, n: int, shift: float = 0.0) -> dict[str, np.ndarray]:
        """Samples of a moment; `shift` of the first feature."""
        hour = at % 86400 / 3600
        level = 0.3 * np.sin((hour - self.phase) / 24 * 2 * np.pi) + self.wander
        if (at // 86400) % 7 >= 5:
            level = level + np.where(np.arange(FEATURES) < 3, 0.1, 0.0)
        x = self.rng.normal(level, 1.0, (n, FEATURES))
        x[:, 0] += shift
        x[:, 1] = np.exp(x[:, 1])  # skewed
        x[:, 2] = np.round(x[:, 2] * 2)  # whole numbers
        score = x[:, 0][:, None] * [0.6, 0.0, -0.6] + self.rng.gumbel(size=(n, 3)) * 0.7
        found = {f"in:x[{i}]": x[:, i] for i in range(FEATURES)}
        return {**found, "out:class": score.argmax(axis=1).astype(float)}


def reference(folder: Path, seed: int) -> Baseline:
    traffic = Traffic(seed)
    parts = []
    for hour in range(30 * 24):
        traffic.hour()
        at = START - 30 * 86400 + hour * 3600
        parts.append(traffic.rows(at, max(1, int(3 * traffic.rate(at)))))
    made = Baseline("1", classes=3)
    for name in parts[0]:
        made.add(name, np.concatenate([one[name] for one in parts]))
    return keep_baseline(folder, made)


def simulate(folder: Path, seed: int, days: int, shift: float, shifted_from: float) -> dict[str, object]:
    """Days of traffic with a look an hour: how many said drift, and when the first one did."""
    baseline, traffic = reference(folder, 1000 + seed), Traffic(seed)
    files = [WindowFiles(folder, f"r-{number}") for number in range(REPLICAS)]
    alarms, looks, first, seconds = 0, 0, None, 0.0
    for hour in range(days * 24):
        traffic.hour()
        for part in range(int(3600 / WINDOW_S)):
            at = START + hour * 3600 + part * WINDOW_S
            moved = shift if at >= START + shifted_from else 0.0
            for one in files:
                requests = int(traffic.rng.poisson(traffic.rate(at) * WINDOW_S / REPLICAS))
                rows = traffic.rows(at, min(SAMPLE, requests), moved)
                window = Window(one.replica, "1", at, at + WINDOW_S, requests, requests)
                window.sampled = len(rows["in:x[0]"])
                window.features = {name: baseline.sketch(name, values) for name, values in rows.items()}
                one.append(window)
        now = START + (hour + 1) * 3600
        if hour >= 23:
            begun = time.perf_counter()
            verdict = look(folder, now=float(now))
            seconds += time.perf_counter() - begun
            looks += 1
            if verdict.state == "drift":
                alarms += 1
                first = first if first is not None else (now, verdict.findings[0].feature)
    found_h = None if first is None else round((first[0] - START - shifted_from) / 3600, 1)
    feature = None if first is None else first[1]
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "looks": looks, "drift": alarms, "found_after_h": found_h, "feature": feature,
        "look_ms": round(1e3 * seconds / max(looks, 1), 1), "folder_mb": round(size / 2**20, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two days, once")
    given = parser.parse_args()
    if given.quick:
        given.days, given.repeat = 2, 1
    for seed in range(given.repeat):
        with tempfile.TemporaryDirectory() as folder:
            clean = simulate(Path(folder), seed, given.days, 0.0, 0.0)
        print(json.dumps({"case": "clean", "days": given.days, "seed": seed, **clean}), flush=True)
    for shift in (0.5, 1.0):
        with tempfile.TemporaryDirectory() as folder:
            found = simulate(Path(folder), 7, 4, shift, 2 * 86400.0)
        print(json.dumps({"case": f"shift of {shift} std after two days", **found}), flush=True)


if __name__ == "__main__":
    main()
