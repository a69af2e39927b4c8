"""Many writers at once, and writers that are killed."""

import os
import random
import signal
import subprocess
import sys
import time

from hpcmass.catalogue import Catalogue

WRITER = """
import sys, pathlib
from hpcmass.catalogue import Catalogue
root, writer, count = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
folder = root / f"bundle-{writer}"
folder.mkdir(exist_ok=True)
(folder / "shared").write_bytes(b"the same in all" * 1000)
catalogue = Catalogue(root / "catalogue")
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    (folder / "own").write_text(f"{writer} {i}")
    version = catalogue.register("m", folder, metrics={"writer": writer, "i": i}, lineage={})
    print(version.version, flush=True)
"""
MOVER = """
import sys, pathlib
from hpcmass.catalogue import Catalogue
from hpcmass.errors import CatalogueError
catalogue = Catalogue(pathlib.Path(sys.argv[1]) / "catalogue")
print("ready", flush=True)
sys.stdin.readline()
won = 0
while won < 10:
    now = catalogue.aliases("m").get("p")
    try:
        catalogue.alias("m", "p", 1 + (now or 0) % 5, why=f"{sys.argv[2]}", expect=now)
        won += 1
    except CatalogueError:
        pass
"""


def start(script, *args):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_eight_writers_of_one_name(tmp_path):
    processes = [start(WRITER, tmp_path, i, 10) for i in range(8)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [[int(line) for line in p.communicate(timeout=400)[0].split()] for p in processes]
    assert [p.returncode for p in processes] == [0] * 8
    assert sorted(number for numbers in told for number in numbers) == list(range(1, 81))
    catalogue = Catalogue(tmp_path / "catalogue")
    versions = catalogue.list("m")
    assert [v.version for v in versions] == list(range(1, 81))
    assert {(v.metrics["writer"], v.metrics["i"]) for v in versions} == {
        (str(w), i) for w in range(8) for i in range(10)
    }
    for version in versions:
        text = catalogue.open_files(version)["own"].read_text()
        assert text == f"{version.metrics['writer']} {version.metrics['i']}"
    report = catalogue.verify()
    assert report.ok
    assert report.blobs == 81
    assert not list(catalogue.path.rglob(".*"))


def test_killed_writers_leave_no_half_version(tmp_path):
    rng = random.Random(0)
    catalogue, told = Catalogue(tmp_path / "catalogue"), []
    for round_number in range(12):
        processes = [start(WRITER, tmp_path, f"{round_number}-{i}", 10**6) for i in range(2)]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        told += [int(process.stdout.readline()) for process in processes]  # both are at it, however slowly
        time.sleep(rng.uniform(0.0, 0.15))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            told += [int(line) for line in process.communicate()[0].split("\n")[:-1]]
    versions = [v.version for v in catalogue.list("m")]
    assert versions == list(range(1, len(versions) + 1))
    assert len(versions) > 12
    assert set(told) <= set(versions)
    assert len(told) == len(set(told))
    assert catalogue.verify().ok


def test_moves_with_an_expectation_are_never_lost(tmp_path):
    catalogue = Catalogue(tmp_path / "catalogue")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "f").write_text("x")
    for _ in range(5):
        catalogue.register("m", tmp_path / "b", metrics={}, lineage={})
    processes = [start(MOVER, tmp_path, i) for i in range(4)]
    for process in processes:
        process.communicate("go\n", timeout=400)
    assert [p.returncode for p in processes] == [0] * 4
    moves = catalogue.history("m", "p")
    assert [m.number for m in moves] == list(range(1, 41))
    # Each move went one further than what it was moved from: no move overwrote one that it had not seen.
    assert [m.version for m in moves] == [1 + i % 5 for i in range(40)]
    assert [m.previous for m in moves] == [None, *(m.version for m in moves[:-1])]


FULL = """
import resource, sys, pathlib
from hpcmass.catalogue import Catalogue
from hpcmass.errors import StorageError
root = pathlib.Path(sys.argv[1])
catalogue = Catalogue(root / "catalogue")
version = catalogue.register("m", root / "small", metrics={}, lineage={})
print("ready", flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for attempt in (
    lambda: catalogue.register("m", root / "big", metrics={}, lineage={}),
    lambda: catalogue.register("m", root / "small", metrics={"long": "x" * 50_000}, lineage={}),
):
    try:
        attempt()
    except StorageError as error:
        print(error.hint)
"""


def test_a_full_disk_leaves_no_version_and_no_temporaries(tmp_path):
    for name, size in (("small", 10_000), ("big", 9_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"w" * size)
    process = start(FULL, tmp_path)
    out, _ = process.communicate("go\n", timeout=400)
    assert process.returncode == 0
    assert out.count("file size limit") == 2
    catalogue = Catalogue(tmp_path / "catalogue")
    assert [v.version for v in catalogue.list()] == [1]
    assert catalogue.verify().ok
    assert not list(catalogue.path.rglob(".*"))
