"""Requests a second at p99 <= 10 ms: one replica against LitServe, MLServer, Ray Serve, FastAPI and a bare loop.

    python benchmarks/serve_peers.py --peer-python /tmp/peers/bin/python [--quick] [--only fastapi,ray]

The same MNIST CNN as one ONNX file, the same ONNX Runtime with one thread, the same JSON, the same client
(`_openloop.py`: Poisson arrivals over 32 connections, latencies from when a request was due). All servers run, one
is asked at a time, in turns. In a turn the rate is looked for: from what 16 clients in a closed loop reach, down
by a fifth until p99 is at most 10 ms, everything was answered with 200 and the load offered was sent; then the
step is halved twice. A rate gets a second try, and a figure is the best of the rounds, since other work of
the machine makes it worse and never better. A peer that no --peer-python has is left out, and the reason printed.
Make that environment with:

    uv pip install onnxruntime numpy orjson uvloop httptools uvicorn fastapi litserve mlserver

and one more for Ray Serve, whose protobuf is another than MLServer's: onnxruntime numpy orjson 'ray[serve]'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from serve_replica import favour, free_port, load, write_bundle

HERE = Path(__file__).parent
NEEDS = {
    "bare": "uvicorn", "fastapi": "fastapi", "litserve": "litserve", "mlserver": "mlserver", "ray": "ray.serve",
}  # fmt: skip
P99_MS = 10.0
PATH = "/v2/models/mnist/infer"


def onnx_of(bundle: Path) -> Path:
    from hpcmass.workflow.onnx_forms import onnx_form

    return onnx_form(bundle)


def missing(python: str, module: str) -> str | None:
    """Why a peer cannot be measured."""
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it cannot be imported"])[-1]


def start(kind: str, python: str, onnx: Path, port: int, log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if kind == "hpcmass":
        command = [sys.executable, "-m", "hpcmass", "serve", str(onnx), "--port", str(port), "--notice", "0"]
    else:
        command = [python, str(HERE / "_serve_peers.py"), kind, str(port), str(onnx / "model.onnx")]
    with log.open("wb") as out:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            cwd=log.parent,
        )


def wait(port: int, body: bytes, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 40
    while time.monotonic() < end and process.poll() is None:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}{PATH}", body, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                found = json.loads(answer.read())["outputs"][0]["data"]
                assert abs(sum(found) - 1) < 1e-3, found
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"it does not answer: {log.read_text()[-1500:]}")


def stop(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    time.sleep(0.5)


def good(port: int, body: Path, rate: float, seconds: float) -> bool:
    """Whether a rate is answered in time, all of it."""
    for seed in (0, 1):
        found = load(port, body, rate, seconds, 32, seed, "Content-Type: application/json")
        whole = not found["others"] and found["ok"] == found["sent"] and found["sent"] >= 0.9 * rate * seconds
        if whole and found["p99_ms"] <= P99_MS:
            return True
    return False


def sustained(port: int, body: Path, seconds: float) -> tuple[float, float]:
    """The rate at saturation, and the largest one found at which p99 is at most 10 ms."""
    line = "Content-Type: application/json"
    top = load(port, body, 0, seconds, 16, 0, "closed", line)["rate"]
    rate, step = 0.95 * top, 0.8
    while not good(port, body, rate, seconds):
        rate *= step
        if rate < 0.05 * top:
            return top, 0.0
    best = rate
    for _ in range(2):
        step **= 0.5
        if rate / step < top and good(port, body, best / step, seconds):
            best /= step
    return top, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer-python", action="append", help="Python of an environment with peers; repeatable."
    )
    parser.add_argument("--only", help="Peers, with commas between.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    favour(os.getpid())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers are to end as well
    rounds, seconds = (1, 1.0) if given.quick else (given.rounds, 1.5)
    pythons = {"hpcmass": sys.executable}
    for kind in given.only.split(",") if given.only else list(NEEDS):
        why = {python: missing(python, NEEDS[kind]) for python in given.peer_python or [sys.executable]}
        if (able := next((python for python, reason in why.items() if reason is None), None)) is not None:
            pythons[kind] = able
        else:
            print(f"{kind} is left out: {next(iter(why.values()))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        onnx = folder / "mnist"
        onnx.symlink_to(onnx_of(write_bundle(folder / "torch")))
        image = np.random.default_rng(0).integers(0, 256, (1, 28, 28), dtype=np.uint8)
        one = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": image.ravel().tolist()}
        body = folder / "json"
        body.write_text(json.dumps({"inputs": [one]}, separators=(",", ":")))
        running: dict[str, tuple[int, subprocess.Popen]] = {}
        try:
            for kind, python in pythons.items():
                port, log = free_port(), folder / f"{kind}.log"
                running[kind] = port, start(kind, python, onnx, port, log)
                try:
                    wait(port, body.read_bytes(), running[kind][1], log)
                except RuntimeError as error:
                    print(f"{kind} is left out: {error}")
                    stop(running.pop(kind)[1])
            measure({kind: port for kind, (port, _) in running.items()}, body, rounds, seconds)
        finally:
            for _, process in running.values():
                stop(process)


def measure(ports: dict[str, int], body: Path, rounds: int, seconds: float) -> None:
    tops: dict[str, list[float]] = {kind: [] for kind in ports}
    rates: dict[str, list[float]] = {kind: [] for kind in ports}
    for number in range(rounds):
        for kind in ports if number % 2 == 0 else reversed(ports):
            top, rate = sustained(ports[kind], body, seconds)
            tops[kind].append(top)
            rates[kind].append(rate)
            print(f"round {number}: {kind:9} {top:7.0f}/s saturated, {rate:7.0f}/s at p99 <= 10 ms", flush=True)
    tell(list(ports), tops, rates)


def tell(kinds: list[str], tops: dict[str, list[float]], rates: dict[str, list[float]]) -> None:
    found = {kind: max(rates[kind]) for kind in kinds}
    result: dict[str, float] = {f"{kind}_per_s": rate for kind, rate in found.items()}
    result |= {f"{kind}_saturated_per_s": max(tops[kind]) for kind in kinds}
    peers = [kind for kind in kinds if kind not in ("hpcmass", "bare")]
    if peers:
        best = max(peers, key=found.__getitem__)
        result["ratio_best"] = found["hpcmass"] / max(found[best], 1e-9)
        print(f"hpcmass against the best peer ({best}): {result['ratio_best']:.2f} (goal 2)")
    if "bare" in kinds:
        result["ratio_bare"] = found["hpcmass"] / max(found["bare"], 1e-9)
        print(f"hpcmass against the bare loop: {result['ratio_bare']:.2f} (goal 0.8)")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
