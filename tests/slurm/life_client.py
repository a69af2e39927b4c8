"""A process of clients of one deployment, until its standard input ends.

    python life_client.py PROJECT DEPLOYMENT RATE [SHIFT]

It asks for images of `data/digits/test`, one a request, at times drawn beforehand (RATE a second); with SHIFT, that
much is added to every pixel, each request has an id, and its label is posted. Prints `ready` after the first
answer, and at the end one line of JSON: `sent`, `wrong` (no probabilities of ten classes), `right`, `failed`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time

import numpy as np

import hpcmass
from hpcmass.errors import HpcmassError
from hpcmass.serve.client import Client

THREADS = 4


def main() -> None:
    project, name, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
    shift = float(sys.argv[4]) if len(sys.argv) > 4 else None
    data = hpcmass.open_dataset(f"{project}/data/digits/test").batch(range(250))
    images, digits = data["image"], data["label"]
    client, over, failed = Client(name, project=project), threading.Event(), []
    counts = {"sent": 0, "wrong": 0, "right": 0}
    lock = threading.Lock()

    def ask(seed: int, number: int, place: int) -> None:
        image = images[place : place + 1] + np.float32(shift or 0)
        known = None if shift is None else f"{os.getpid()}-{seed}-{number}"
        said = client.infer({"image": image}, known)["probabilities"]
        well = said.shape == (1, 10) and abs(float(said.sum()) - 1) < 1e-3
        with lock:
            counts["wrong"] += not well
            counts["right"] += int(said.argmax()) == int(digits[place])
        if known is not None:
            client.label(known, int(digits[place]))

    def work(seed: int) -> None:
        draw, due, number = random.Random(seed), time.perf_counter(), 0
        while not over.is_set():
            due += draw.expovariate(rate / THREADS)
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            number += 1
            try:
                ask(seed, number, draw.randrange(250))
            except HpcmassError as error:
                failed.append(str(error))
            with lock:
                counts["sent"] += 1

    ask(-1, 0, 0)
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for one in workers:
        one.start()
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    for one in workers:
        one.join()
    print(json.dumps({**counts, "failed": failed[:5]}))


if __name__ == "__main__":
    main()
