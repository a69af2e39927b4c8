"""A process of clients that ask at times drawn beforehand, until its standard input ends.

    python load_client.py PROJECT DEPLOYMENT RATE THREADS

Each request has values of its own, and the answer is held against them. Prints `ready` when the first one was
answered, and at the end one line of JSON: `sent`, `ok`, `wrong`, `failed` (texts), `p50_ms`, `p99_ms`, `max_ms`.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time

import numpy as np

from hpcmass.errors import HpcmassError
from hpcmass.serve.client import Client


def main() -> None:
    project, name, rate, threads = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    over = threading.Event()
    took: list[float] = []
    failed: list[str] = []
    wrong = 0
    client = Client(name, project=project)
    ask = lambda k: client.infer(x=np.zeros((1, 4), np.float32), k=np.array([k], np.int64))["y"]  # noqa: E731
    bias = ask(0)

    def work(seed: int) -> None:
        nonlocal wrong
        draw = random.Random(seed)
        due = time.perf_counter()
        while not over.is_set():
            due += draw.expovariate(rate / threads)
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            k = draw.randrange(100, 1_000_000)
            try:
                wrong += not np.array_equal(ask(k), bias + np.float32(k))
            except HpcmassError as error:
                failed.append(str(error))
            took.append(time.perf_counter() - due)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for one in workers:
        one.start()
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    for one in workers:
        one.join()
    took.sort()
    at = lambda share: round(1e3 * took[min(len(took) - 1, int(share * len(took)))], 3) if took else None  # noqa: E731
    found = {"sent": len(took), "ok": len(took) - len(failed) - wrong, "wrong": wrong, "failed": failed[:5]}
    print(json.dumps({**found, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1)}))


if __name__ == "__main__":
    main()
