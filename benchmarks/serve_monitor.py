"""What a monitor costs a replica: processor time a request, and latency, with and without, taking turns.

    python benchmarks/serve_monitor.py [--quick]

Two replicas of the MNIST CNN (28 x 28 uint8, one a request, JSON with an id, so that every answer is kept) get
the same open-loop load in turn. The monitored one has windows of 5 s in place of 60: twelve times as often as
it would be, the features of 256 images are summed up. Goal: a few per cent of the processor time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from serve_replica import load, write_bundle

RATE = 300.0


def counted(port: int) -> tuple[float, float]:
    """Processor seconds of a replica, and the requests it has answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    names = ("process_cpu_seconds_total", "hpcmass_inferences_total")
    cpu, n = (float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1]) for name in names)  # type: ignore[index]
    return cpu, n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    rounds, seconds = (2, 5.0) if parser.parse_args().quick else (6, 10.0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = write_bundle(folder / "mnist")
        image = np.random.default_rng(0).integers(0, 256, (1, 28, 28), dtype=np.uint8)
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": image.ravel().tolist()}
        body = folder / "body"
        body.write_text(json.dumps({"id": "order-1", "inputs": [tensor]}))
        ways = {"plain": [], "monitored": ["--monitor", str(folder / "mon"), "--window", "5"]}
        replicas = {}
        for name, words in ways.items():
            command = [sys.executable, "-m", "hpcmass", "serve", str(bundle), "--port", "0", "--notice", "0"]
            replicas[name] = subprocess.Popen(
                [*command, "--endpoint", str(folder / name), *words], stdout=sys.stderr, env=environment
            )
        try:
            measure(folder, list(ways), body, rounds, seconds)
        finally:
            for one in replicas.values():
                one.send_signal(signal.SIGTERM)
            for one in replicas.values():
                one.wait()


def measure(folder: Path, names: list[str], body: Path, rounds: int, seconds: float) -> None:
    ports = {}
    for name in names:
        while not (folder / name).exists() or json.loads((folder / name).read_text())["state"] != "ready":
            time.sleep(0.1)
        ports[name] = json.loads((folder / name).read_text())["port"]
        load(ports[name], body, RATE, 1.0, 16, 0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else names[::-1]:
            before = counted(ports[name])
            said = load(ports[name], body, RATE, seconds, 16, number)
            after = counted(ports[name])
            each = 1e6 * (after[0] - before[0]) / (after[1] - before[1])
            found[name].append({"us": each, "p50": said["p50_ms"], "p99": said["p99_ms"]})
    result = {}
    for name, each in found.items():
        us, p50, p99 = (statistics.median(one[key] for one in each) for key in ("us", "p50", "p99"))
        print(f"{name:10} {us:7.1f} us of processor time a request, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        result |= {f"{name}_us": us, f"{name}_p50_ms": p50, f"{name}_p99_ms": p99}
    ratio = statistics.median(
        b["us"] / a["us"] for a, b in zip(found["plain"], found["monitored"], strict=True)
    )
    print(f"processor time with a monitor against without: {ratio:.3f}")
    print(json.dumps({**result, "ratio_cpu": ratio}))


if __name__ == "__main__":
    main()
