"""One replica of the MNIST CNN under load from another process, beside a loop that does nothing else.

    python benchmarks/serve_replica.py [--quick]

One request is one image of 28 x 28 uint8, one thread computes. The bare loop is uvicorn (uvloop, httptools)
with a raw ASGI function: orjson, the array, ONNX Runtime with the replica's own ONNX file, orjson. Both are fed by 16 clients that
each send their next request when they have an answer, in JSON and (the replica) with binary tensors; the two
take turns, a figure is the median over rounds. Then the replica alone at 60 % of its own saturation, with
Poisson arrivals, latencies counted from when a request was due (and both
at 60 % of the bare loop's: what the machine does to anybody). Goals: p99 of the replica at most 10 ms; rate against the bare loop 0.8 or more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
MNIST = HERE.parent / "workflows" / "mnist" / "recipe.py"
PEERS = HERE / "_serve_peers.py"  # its `bare`


def write_bundle(folder: Path) -> Path:
    from hpcmass.train.bundle_writer import model_state, write_weights
    from hpcmass.train.recipe import load_recipe
    from hpcmass.train.signature import FieldSpec, Signature

    recipe = load_recipe(MNIST)
    params = {"family": "cnn", "width": 16}
    classes = tuple(map(str, range(10)))
    signature = Signature(
        (FieldSpec("image", "uint8", (28, 28)),), (FieldSpec("probabilities", "float32", (10,)),),
        classes, "classification", ("label",),
    )  # fmt: skip
    return write_weights(
        folder, model_state(recipe.build_model(params, None)), recipe.source, params, signature
    )


def load(port: int, body: Path, *words: object) -> dict:
    command = [sys.executable, str(HERE / "_openloop.py"), str(port), "/v2/models/mnist/infer", str(body)]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def favour(pid: int) -> None:
    """Give a process's session the cores first, where root may: else other work of the machine is measured."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-15")


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def main() -> None:
    from hpcmass.workflow.onnx_forms import onnx_form

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    rounds, seconds = (3, 0.7) if quick else (5, 3.0)
    favour(os.getpid())  # all of them are of this session
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = write_bundle(folder / "mnist")
        image = np.random.default_rng(0).integers(0, 256, (1, 28, 28), dtype=np.uint8)
        one = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
        text, binary = folder / "json", folder / "binary"
        text.write_text(
            json.dumps({"inputs": [{**one, "data": image.ravel().tolist()}]}, separators=(",", ":"))
        )
        head = json.dumps({"inputs": [{**one, "parameters": {"binary_data_size": image.size}}],
                           "parameters": {"binary_data_output": True}}, separators=(",", ":")).encode()  # fmt: skip
        binary.write_bytes(head + image.tobytes())
        port, endpoint = free_port(), folder / "endpoint.json"
        command = [sys.executable, "-m", "hpcmass", "serve", str(bundle), "--port", "0", "--endpoint"]
        replica = subprocess.Popen(
            [*command, str(endpoint), "--notice", "0"], stdout=sys.stderr, env=environment
        )
        onnx = onnx_form(bundle) / "model.onnx"
        bare = subprocess.Popen([sys.executable, str(PEERS), "bare", str(port), str(onnx)], env=environment)
        try:
            measure(
                endpoint, port, text, binary, f"Inference-Header-Content-Length: {len(head)}", rounds, seconds
            )
        finally:
            replica.send_signal(signal.SIGTERM)
            bare.kill()
            replica.wait()
            bare.wait()


def measure(
    endpoint: Path, bare: int, text: Path, binary: Path, line: str, rounds: int, seconds: float
) -> None:
    while not endpoint.exists() or json.loads(endpoint.read_text())["state"] != "ready":
        time.sleep(0.1)
    port = json.loads(endpoint.read_text())["port"]
    while True:
        try:
            load(bare, text, 0, 0.2, 1, 0, "closed")
            break
        except subprocess.CalledProcessError:
            time.sleep(0.2)
    found: dict[str, list[float]] = {"replica_json": [], "replica_binary": [], "bare_json": []}
    for number in range(rounds):
        found["replica_json"].append(load(port, text, 0, seconds, 16, number, "closed")["rate"])
        found["bare_json"].append(load(bare, text, 0, seconds, 16, number, "closed")["rate"])
        found["replica_binary"].append(load(port, binary, 0, seconds, 16, number, "closed", line)["rate"])
    rates = {name: statistics.median(each) for name, each in found.items()}
    ratio = statistics.median(a / b for a, b in zip(found["replica_json"], found["bare_json"], strict=True))
    for name, rate in rates.items():
        print(f"{name:16} {rate:8.0f} requests/s, closed loop of 16 clients")
    print(f"replica against the bare loop: {ratio:.2f} (goal 0.8)")
    result = {"ratio_bare": ratio, **{f"{name}_per_s": rate for name, rate in rates.items()}}
    ways = {
        "replica_json": (port, text, 0.6 * rates["replica_json"], []),
        "replica_binary": (port, binary, 0.6 * rates["replica_binary"], [line]),
        "bare_json": (bare, text, 0.6 * rates["bare_json"], []),
        "replica_json_at_bare": (port, text, 0.6 * rates["bare_json"], []),
    }
    open_loop: dict[str, list[dict]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, (to, body, rate, lines) in ways.items():
            open_loop[name].append(load(to, body, rate, seconds, 32, number, *lines))
    for name, each in open_loop.items():
        p50, p99 = (statistics.median(one[key] for one in each) for key in ("p50_ms", "p99_ms"))
        others = sum(one["others"] for one in each)
        print(
            f"{name:20} {ways[name][2]:6.0f}/s: p50 {p50:.2f} ms, p99 {p99:.2f} ms, {others} not answered with 200"
        )
        result |= {f"{name}_p50_ms": p50, f"{name}_p99_ms": p99, f"{name}_others": others}
    print(
        "goal: p99 of replica_json and replica_binary at most 10 ms, with two cores free for replica and client"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
