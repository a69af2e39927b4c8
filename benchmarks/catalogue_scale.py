#!/usr/bin/env python3
"""The catalogue with very many versions: registering, searching, refreshing and rebuilding the index, listing.

    python benchmarks/catalogue_scale.py [--quick] [--versions 100000] [--mlflow PYTHON] [--dir FOLDER]

Registrations a second: 8 writers of one name, models of 10 kB (two files) that lie in folders, fsync on. MLflow
(an interpreter that has it, `--mlflow`, in an environment of its own; else it is left out) only notes a version of
a folder: it copies nothing. The plain reference writes each model's bytes and a record: temporary, fsync, link,
unlink. Turns are interleaved. Searches: `Catalogue.search`, with its look at the journals, p95 of 200 of each kind.
The last line is JSON; its ratio is registrations to the better of MLflow's stores (goal 20), or to the reference.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

from hpcmass.catalogue import Catalogue, Registration

WRITERS = 8
NAMES = 100

MLFLOW = """
import sys, time, os, logging
uri, writer, count, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
logging.disable(logging.CRITICAL)
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=uri, registry_uri=uri)
if writer == "make":
    client.create_registered_model("model")
    sys.exit()
print("ready", flush=True)
sys.stdin.readline()
done = 0
for i in range(count):
    try:
        client.create_model_version("model", source="file://" + folder, tags={"accuracy": str(i), "writer": writer})
        done += 1
    except Exception as error:
        print(type(error).__name__, str(error)[:200].replace(chr(10), " "), file=sys.stderr)
print(done, flush=True)
"""


def make_models(folder: Path, writer: int, count: int) -> list[Registration]:
    """Models of 10 kB in two files."""
    found = []
    for number in range(count):
        model = folder / f"{writer}-{number}"
        model.mkdir(parents=True)
        (model / "weights.safetensors").write_bytes(os.urandom(9_500))
        (model / "model.json").write_text(json.dumps({"writer": writer, "number": number, "fill": "x" * 450}))
        job = {"recipe": "mnist.py", "params": {"lr": number / 1000}, "train": {"epochs": 5}}
        found.append(Registration("model", model, {"accuracy": random.random()}, {"job": job}))
    return found


def many(root: Path, models: list[Registration]) -> None:
    """What is measured: calls of up to 250 models."""
    catalogue = Catalogue(root / "many")
    for first in range(0, len(models), 250):
        catalogue.register_many(models[first : first + 250])


def single(root: Path, models: list[Registration]) -> None:
    """One call a model."""
    catalogue = Catalogue(root / "single")
    for one in models[: max(5, len(models) // 25)]:
        catalogue.register(one.name, one.folder, metrics=one.metrics, lineage=one.lineage)


def plain(root: Path, models: list[Registration]) -> None:
    """The reference: the same bytes, a file a model."""
    (root / "plain").mkdir(exist_ok=True)
    for one in models[: max(5, len(models) // 25)]:
        data = b"".join(path.read_bytes() for path in one.folder.iterdir())
        data += json.dumps({"metrics": one.metrics, "lineage": one.lineage}).encode()
        temporary = root / "plain" / f".{one.folder.parent.name}-{one.folder.name}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(handle, data)
        os.fsync(handle)
        os.close(handle)
        os.link(temporary, root / "plain" / temporary.name[1:])
        os.unlink(temporary)


def work(kind: Callable[..., None], root: Path, models: list[Registration], barrier: Barrier) -> None:
    """One writer."""
    barrier.wait()
    kind(root, models)
    barrier.wait()


def rate(kind: Callable[..., None], root: Path, folders: list[list[Registration]]) -> float:
    """Registrations a second of all writers together."""
    barrier = multiprocessing.Barrier(WRITERS + 1)
    processes = [multiprocessing.Process(target=work, args=(kind, root, one, barrier)) for one in folders]
    for process in processes:
        process.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
        assert process.exitcode == 0
    count = len(folders[0]) if kind is many else max(5, len(folders[0]) // 25)
    return WRITERS * count / seconds


def mlflow_rate(python: str, uri: str, folder: Path, count: int) -> tuple[float, int]:
    """MLflow's registrations a second that succeeded, and how many failed."""
    # What a store warns of, or refuses without this, is not measured here.
    env = {**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true", "PYTHONWARNINGS": "ignore"}
    command = [python, "-c", MLFLOW, uri]
    subprocess.run([*command, "make", "0", str(folder)], check=True, env=env, capture_output=True)
    writers = [
        subprocess.Popen(
            [*command, str(writer), str(count), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )
        for writer in range(WRITERS)
    ]
    for process in writers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start = time.perf_counter()
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    done = sum(int(process.communicate()[0] or 0) for process in writers)
    return done / (time.perf_counter() - start), WRITERS * count - done


def registering(root: Path, args: argparse.Namespace) -> dict[str, object]:
    """Rates of all, interleaved."""
    found: dict[str, list[float]] = {"many": [], "single": [], "plain": []}
    peers: dict[str, list[float]] = {}
    failed: dict[str, int] = {}
    count, rounds = (250, args.rounds or 2) if args.quick else (500, args.rounds or 3)
    for turn in range(rounds):
        here = root / f"round-{turn}"
        folders = [make_models(here / "models", writer, count) for writer in range(WRITERS)]
        for kind in (many, single, plain):
            found[kind.__name__].append(rate(kind, here, folders))
        if args.mlflow:
            for store, uri in (("file", f"file://{here}/mlruns"), ("sqlite", f"sqlite:///{here}/mlflow.db")):
                try:
                    speed, lost = mlflow_rate(args.mlflow, uri, folders[0][0].folder, 5 if args.quick else 20)
                except subprocess.CalledProcessError as error:
                    print(f"MLflow, {store}: {error.stderr.decode()[-300:]}")
                    continue
                peers.setdefault(store, []).append(speed)
                failed[store] = failed.get(store, 0) + lost
        catalogue = Catalogue(here / "many")
        assert [one.version for one in catalogue.list("model")] == list(range(1, WRITERS * count + 1))
        assert catalogue.verify().ok
        files = sum(len(names) for _, _, names in os.walk(here / "many"))
        print(
            f"round {turn}, load {os.getloadavg()[0]:.0f}: "
            + ", ".join(f"{name} {speeds[-1]:.0f}/s" for name, speeds in {**found, **peers}.items())
            + f"; {files} files for {WRITERS * count} models"
        )
        shutil.rmtree(here)
    medians = {name: round(statistics.median(speeds), 1) for name, speeds in {**found, **peers}.items()}
    return {
        "registrations_per_s": medians,
        "mlflow_failed": failed,
        "files_for_models": [files, WRITERS * count],
    }


def fill(catalogue: Catalogue, count: int, folder: Path) -> None:
    """Versions of 100 names with eight metrics and twelve parameters each; all have the same small file."""
    folder.mkdir()
    (folder / "w").write_bytes(b"w" * 100)
    per = count // NAMES
    for name in range(NAMES):
        for first in range(0, per, 1000):
            catalogue.register_many(
                synthetic(f"model-{name}", folder) for _ in range(first, min(per, first + 1000))
            )
        catalogue.alias(f"model-{name}", "production", random.randint(1, per), why="")


def synthetic(name: str, folder: Path) -> Registration:
    """Something like a trial of a sweep."""
    metrics = {f"m{i}": random.random() for i in range(6)}
    metrics |= {"accuracy": random.random(), "loss": random.expovariate(1)}
    params = {f"p{i}": random.choice([1, 2, 4, 8]) for i in range(6)} | {"lr": 10 ** random.uniform(-5, 0)}
    job = {
        "recipe": f"r{random.randint(0, 9)}.py",
        "params": params,
        "train": {"batch": 64, "seed": 1, "amp": True},
    }
    datasets = {"train": f"{random.randint(0, 50):064x}"}
    return Registration(
        name, folder, metrics, {"job": job, "datasets": datasets, "run": f"runs/{random.random()}"}
    )


def searches() -> dict[str, Callable[[], tuple[str | None, list[str]]]]:
    """Of each kind an expression and an order, at random."""
    name, some = (lambda: f"model-{random.randrange(NAMES)}"), random.random
    expressions: list[Callable[[], str]] = [
        lambda: f"recipe == 'r{random.randint(0, 9)}' and accuracy > {some()} and params.lr < {some() / 10}",
        lambda: f"loss < {some()} or not (m3 > {some()}) and params.p2 in [2, 4]",
        lambda: f"accuracy > m1 and m2 > m3 and name != '{name()}'",
        lambda: f"'9' in run and accuracy > {some()}",
        lambda: f"dataset == '{random.randint(0, 50):064x}' and train.batch == 64",
        lambda: f"params.lr == None or {some() / 2} < m4 < {some()}",
    ]
    return {
        "by name": lambda: (f"name == '{name()}' and version == {random.randint(1, 500)}", []),
        "by alias": lambda: (f"alias == 'production' and name == '{name()}'", []),
        "of an alias": lambda: ("'production' in aliases", []),
        "top 20": lambda: (None, [random.choice(["-accuracy", "loss", "-m3", "-created"])]),
        "expression": lambda: (random.choice(expressions)(), []),
        "expression, sorted": lambda: (random.choice(expressions)(), ["-accuracy"]),
    }


def p95_ms(call: Callable[[], object], count: int) -> float:
    """The 95th percentile of the time of a call, in milliseconds."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return round(sorted(times)[int(0.95 * count)], 2)


def wall_s(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 3)


def reading(root: Path, args: argparse.Namespace) -> dict[str, object]:
    """Searches, refresh, rebuild and list over a large catalogue."""
    (root / "hpcmass.toml").write_text('name = "lab"\n')
    catalogue = Catalogue(root / "catalogue")
    filled = wall_s(lambda: fill(catalogue, args.versions, root / "model"))
    print(f"{args.versions} versions made in {filled:.0f} s")
    rebuild = wall_s(catalogue.index.rebuild)
    total = catalogue.count()
    assert total == args.versions // NAMES * NAMES
    p95 = {}
    for kind, draw in searches().items():

        def one(draw: Callable[[], tuple[str | None, list[str]]] = draw) -> None:
            expression, sort = draw()
            catalogue.search(expression, sort=sort, limit=20)

        p95[kind] = p95_ms(one, 50 if args.quick else 200)
        print(f"search {kind}: p95 {p95[kind]} ms, load {os.getloadavg()[0]:.0f}")
    for _ in range(10):
        catalogue.register_many(synthetic("new", root / "model") for _ in range(100))
    refresh = wall_s(catalogue.index.fresh)
    assert catalogue.count() == total + 1000
    refresh_one = []
    for _ in range(20):
        catalogue.register_many([synthetic("new", root / "model")])
        refresh_one.append(wall_s(catalogue.index.fresh))
    total += 20
    for _ in range(20 if args.quick else 1000):
        catalogue.register("single", root / "model", metrics={"accuracy": 1.0}, lineage={})
    refresh_single = wall_s(catalogue.index.fresh)
    assert catalogue.count() == total + 1000 + (20 if args.quick else 1000)
    command = [sys.executable, "-m", "hpcmass", "catalogue", "list", "--project", str(root)]
    shown = [wall_s(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(5)]
    everything = wall_s(lambda: subprocess.run([*command, "--limit", "0"], check=True, capture_output=True))
    return {
        "versions": args.versions,
        "search_p95_ms": p95,
        "refresh_1000_in_10_calls_s": refresh,
        "refresh_1_s": statistics.median(refresh_one),
        f"refresh_{20 if args.quick else 1000}_single_s": refresh_single,
        "rebuild_s": rebuild,
        "list_wall_s": statistics.median(shown),
        "list_all_wall_s": everything,
        "index_mb": round(catalogue.index.path.stat().st_size / 1e6, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=int, help="in the large catalogue [100000; 20000 with --quick]")
    parser.add_argument("--mlflow", metavar="PYTHON", help="an interpreter that has MLflow")
    parser.add_argument("--dir", default=None, help="where to write; default: the temporary folder")
    parser.add_argument("--part", choices=["register", "read"], help="only this part")
    parser.add_argument("--rounds", type=int, help="of registering [3; 2 with --quick]")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.versions = args.versions or (20_000 if args.quick else 100_000)
    multiprocessing.set_start_method("fork")
    random.seed(0)
    sys.stdout.reconfigure(line_buffering=True)
    result: dict[str, object] = {
        "name": "catalogue_scale",
        "unit": "x the better of MLflow's stores",
        "goal": 20,
    }
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        if args.part != "read":
            result.update(registering(Path(folder), args))
            rates = result["registrations_per_s"]
            assert isinstance(rates, dict)
            peers = [rates[name] for name in ("file", "sqlite") if rates.get(name)]
            ratio = rates["many"] / max(peers) if peers else rates["many"] / rates["plain"]
            if not peers:
                print("MLflow is left out (--mlflow PYTHON): the ratio is to write + fsync + link")
                result.update(unit="x write + fsync + link of the same bytes", goal=1)
            result.update(ratio=round(ratio, 2), met=ratio >= (20 if peers else 1) and rates["many"] >= 2000)
        if args.part != "register":
            result.update(reading(Path(folder), args))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
