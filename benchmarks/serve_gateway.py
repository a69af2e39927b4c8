"""What the gateway adds to one replica's latency, and how long a load step takes until a replica more is ready.

    python benchmarks/serve_gateway.py [--quick]

A deployment of the MNIST CNN with one replica. Clients in another process send at Poisson times, binary tensors,
one image a request, alternately to the replica itself and to the gateway before it; a figure is the median over
rounds of the difference of two neighbours. Then the deployment may have two replicas, and 16 clients that each
send their next request when they have an answer begin at once: seconds until the second replica gets requests.
Goals: 0.5 ms (p50) and 2 ms (p99) added; 5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from serve_replica import load, write_bundle

from hpcmass.config import Project
from hpcmass.serve.deployment import Deployment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, seconds = (2, 1.0) if quick else (5, 3.0)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "project"
        Project.create(root, "bench")
        bundle = write_bundle(root / "mnist")

        def hpcmass(*words: str) -> None:
            subprocess.run(
                [sys.executable, "-m", "hpcmass", *words, "--project", str(root)],
                check=True, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

        image = np.random.default_rng(0).integers(0, 256, (1, 28, 28), dtype=np.uint8)
        one = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
        head = json.dumps({"inputs": [{**one, "parameters": {"binary_data_size": image.size}}],
                           "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()  # fmt: skip
        body = root / "body"
        body.write_bytes(head + image.tobytes())
        hpcmass("deploy", str(bundle), "--replicas", "1", "--slo-p99-ms", "10")
        try:
            deployment = Deployment(root / "deployments" / "mnist")
            measure(deployment, body, [f"Inference-Header-Content-Length: {len(head)}"], rounds, seconds)
            hpcmass("deploy", str(bundle), "--replicas", "1:2", "--slo-p99-ms", "10")
            step(deployment, body, [f"Inference-Header-Content-Length: {len(head)}"])
        finally:
            hpcmass("undeploy", "mnist")


def ports(deployment: Deployment) -> tuple[int, int]:
    gateway = int(deployment.endpoint()["url"].rpartition(":")[2])  # type: ignore[index]
    return int(deployment.replicas()[0].endpoint["port"]), gateway  # type: ignore[index]


def measure(deployment: Deployment, body: Path, lines: list[str], rounds: int, seconds: float) -> None:
    direct, through = ports(deployment)
    bearer = f"Authorization: Bearer {(deployment.path / 'gateway' / 'token').read_text()}"
    for port in (direct, through):
        load(port, body, 50, 1.0, 8, 0, *lines, bearer)
    for rate in (100, 300, 600):
        rows = []
        for seed in range(rounds):
            pair = {}
            for what in ("direct", "through") if seed % 2 else ("through", "direct"):
                pair[what] = load(
                    direct if what == "direct" else through, body, rate, seconds, 8, seed, *lines, bearer
                )
                assert pair[what]["others"] == 0, pair
            rows.append(pair)
        told = {
            f"{which}_{what}": round(statistics.median(row[what][which] for row in rows), 3)
            for which in ("p50_ms", "p99_ms") for what in ("direct", "through")
        }  # fmt: skip
        for which in ("p50_ms", "p99_ms"):
            told[f"added_{which}"] = round(
                statistics.median(row["through"][which] - row["direct"][which] for row in rows), 3
            )
        print(json.dumps({"figure": "gateway", "rate": rate, **told}), flush=True)


def step(deployment: Deployment, body: Path, lines: list[str]) -> None:
    _, through = ports(deployment)
    begun = time.time()
    said: dict = {}
    work = threading.Thread(target=lambda: said.update(load(through, body, 0, 15.0, 16, 0, "closed", *lines)))
    work.start()
    found = None
    while found is None and time.time() < begun + 15:
        events = [one for one in deployment.events() if one["time"] > begun]
        found = next((one for one in events if one["kind"] == "replica-ready"), None)
        time.sleep(0.02)
    work.join()
    scaled = next(
        (one["time"] - begun for one in deployment.events() if one["kind"] == "scaled" and one["time"] > begun),
        None,
    )
    print(json.dumps({
        "figure": "load step", "decided_s": scaled, "ready_s": found and found["time"] - begun,
        "rate": said["rate"], "others": said["others"],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
