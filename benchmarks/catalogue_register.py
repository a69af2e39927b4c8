#!/usr/bin/env python3
"""Registrations a second with many writers of one name, against the plain writing of the same bytes.

The reference writes what a registration has to write (its new blobs and its version's file, sizes alike) as
plain as is safe: temporary, fsync, link, unlink; no digest, no numbering, no fsync of the folder. Rounds of
both are interleaved on the same file system; the result is the median of the rounds' ratios.
Goal: ratio 0.3 or better. The last line is JSON.

python benchmarks/catalogue_register.py [--writers 8] [--count 25] [--rounds 5] [--kib 100] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from hpcmass.catalogue import Catalogue

GOAL = 0.3


def make_bundle(folder: Path, writer: int, number: int, weights_bytes: int) -> None:
    """Two files that are new each time and one that is always the same."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps({"writer": writer, "number": number, "fill": "x" * 900}))
    (folder / "weights.safetensors").write_bytes(os.urandom(weights_bytes))
    (folder / "recipe.py").write_text("# the same in all\n" * 100)


def register(root: Path, writer: int, folders: list[Path]) -> None:
    """What is measured."""
    catalogue = Catalogue(root / "catalogue")
    for folder in folders:
        catalogue.register("model", folder, metrics={"accuracy": 0.97}, lineage={"writer": writer})


def plain(root: Path, writer: int, folders: list[Path]) -> None:
    """The reference: the same bytes, plainly."""
    target = root / "plain"
    target.mkdir(exist_ok=True)
    for number, folder in enumerate(folders):
        contents = {
            "model": (folder / "model.json").read_bytes(),
            "weights": (folder / "weights.safetensors").read_bytes(),
            "version": b"x" * 750,
        }
        for name, data in contents.items():
            final = target / f"{folder.parent.name}-{number}-{name}"
            temporary = target / f".{final.name}"
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(handle, data)
            os.fsync(handle)
            os.close(handle)
            os.link(temporary, final)
            os.unlink(temporary)


def work(
    kind: str, root: Path, round_number: int, writer: int, count: int, size: int, barrier: Barrier
) -> None:
    """One writer of one round."""
    folders = [root / f"{kind}-{round_number}-{writer}" / str(number) for number in range(count)]
    for number, folder in enumerate(folders):
        make_bundle(folder, writer, number + 1000 * round_number, size)
    barrier.wait()
    (register if kind == "register" else plain)(root, writer, folders)
    barrier.wait()


def measure(kind: str, root: Path, round_number: int, args: argparse.Namespace) -> float:
    """Registrations (or what the reference writes for one) a second, of all writers together."""
    barrier = multiprocessing.Barrier(args.writers + 1)
    rest = (args.count, args.kib * 1024, barrier)
    processes = [
        multiprocessing.Process(target=work, args=(kind, root, round_number, writer, *rest))
        for writer in range(args.writers)
    ]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return float(args.writers * args.count / seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--count", type=int, default=25, help="registrations a writer and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kib", type=int, default=100, help="KiB of weights")
    parser.add_argument("--dir", default=None, help="where to write; default: the temporary folder")
    parser.add_argument("--quick", action="store_true", help="5 registrations a writer, 3 rounds")
    args = parser.parse_args()
    if args.quick:
        args.count, args.rounds = 5, 3
    multiprocessing.set_start_method("fork")
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        root = Path(folder)
        rates: dict[str, list[float]] = {"plain": [], "register": []}
        for round_number in range(args.rounds):
            for kind, found in rates.items():
                found.append(measure(kind, root, round_number, args))
            print(f"round {round_number}: " + ", ".join(f"{k} {v[-1]:.0f}/s" for k, v in rates.items()))
        catalogue = Catalogue(root / "catalogue")
        total = args.writers * args.count * args.rounds
        start = time.perf_counter()
        versions = catalogue.list("model")
        list_s = time.perf_counter() - start
        assert [v.version for v in versions] == list(range(1, total + 1))
        assert catalogue.verify().ok
    ratio = statistics.median(r / p for r, p in zip(rates["register"], rates["plain"], strict=True))
    result = {
        "name": "catalogue_register",
        "unit": "of plain durable writes",
        "writers": args.writers,
        "registrations_per_s": round(statistics.median(rates["register"]), 1),
        "plain_per_s": round(statistics.median(rates["plain"]), 1),
        "ratio": round(ratio, 3),
        "goal": GOAL,
        "met": ratio >= GOAL,
        "versions": total,
        "list_ms": round(1000 * list_s, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
