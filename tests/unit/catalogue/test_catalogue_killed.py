"""Writers of many killed within every call of the system; many at once beside readers that know no hpcmass."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Registration

READER = Path(__file__).parents[3] / "docs" / "read_catalogue.py"
TOOLS = Path(__file__).parents[1] / "data" / "writing_tools.py"

spec = importlib.util.spec_from_file_location("writing_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["writing_tools"] = tools
spec.loader.exec_module(tools)


@pytest.fixture(autouse=True)
def kernel_that_stays_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a killed process has written the kernel has: nothing need reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make_models(folder: Path, writer: int, count: int, name: str = "m") -> list[Registration]:
    found = []
    for number in range(count):
        model = folder / f"{writer}-{number}"
        model.mkdir(parents=True)
        (model / "same").write_text("the same in all")
        (model / "own").write_text(f"{writer} {number}" * 100)
        found.append(Registration(name, model, {"writer": writer, "i": number}))
    return found


def many(catalogue: Catalogue, models: list[Registration]) -> object:
    return catalogue.register_many(models)


def one(catalogue: Catalogue, models: list[Registration]) -> object:
    return catalogue.register("m", models[0].folder, metrics=models[0].metrics, lineage={})


def moved(catalogue: Catalogue, models: list[Registration]) -> object:
    return catalogue.alias("m", "best", 1, why="")


def refs_of(catalogue: Catalogue) -> list[str]:
    return [version.ref for version in catalogue.list()]


def indexed(catalogue: Catalogue) -> tuple[list[str], list[object]]:
    found = catalogue.index.fresh()
    refs = [
        f"{name}@{number}"
        for name, number in found.execute("SELECT name, version FROM versions ORDER BY name, version")
    ]
    return refs, found.execute("SELECT name, alias, version FROM aliases").fetchall()


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize(("work", "first"), [(many, False), (many, True), (one, True), (moved, True)])
def test_killed_within_a_call_of_the_system(tmp_path: Path, work: Callable, first: bool, step: int) -> None:
    """Whole versions or none; whatever is there is found without a walk; the next writer goes on."""
    before = make_models(tmp_path / "before", 0, 2)
    models = make_models(tmp_path / "models", 1, 3) + make_models(tmp_path / "models", 2, 2, "other")
    number, killed = 1, 0
    while True:
        catalogue = Catalogue(tmp_path / f"at-{number}")
        if first:
            catalogue.register_many(before)
        catalogue.index.fresh()
        code = tools.ended(
            tools.fork(lambda root=catalogue.path: work(Catalogue(root), models), dies_at=number)
        )
        refs = refs_of(catalogue)
        aliases = [("m", "best", 1)] if refs and "best" in catalogue.aliases("m") else []
        done = len(refs) - 2 * first
        assert done in ((0, 3, 5) if work is many else (0, 1) if work is one else (0,))
        assert catalogue.verify().ok
        # Nobody walks to find it, once the catalogue is there: the line came before the claim.
        catalogue.index.rebuild = None if first else catalogue.index.rebuild
        assert indexed(catalogue) == (refs, aliases)
        if refs:
            assert subprocess.run([sys.executable, "-I", READER, catalogue.path], check=False).returncode == 0
        again = Catalogue(catalogue.path)
        work(again, models)
        assert len(refs_of(again)) == len(refs) + {many: 5, one: 1, moved: 0}[work]
        assert again.verify().ok
        assert again.verify().unlisted == []
        assert indexed(again)[0] == refs_of(again)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        number, killed = number + step, killed + 1
    assert killed > 2


WRITER = """
import sys, pathlib
from hpcmass.catalogue import Catalogue, Registration
root, writer, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
catalogue = Catalogue(root / "catalogue")
models = [root / "models" / f"{writer}-{i}" for i in range(5)]
print("ready", flush=True)
sys.stdin.readline()
for turn in range(rounds):
    facts = [{"writer": writer, "i": turn * 6 + i} for i in range(6)]
    made = catalogue.register_many(
        [Registration("m", one, fact) for one, fact in zip(models, facts)]
        + [Registration(f"own-{writer}", models[0], facts[5])]
    )
    made.append(catalogue.register("m", models[turn % 5], metrics=facts[5], lineage={}))
    catalogue.alias("m", f"of-{writer}", made[0].version, why="newest")
    print(*[version.ref for version in made], flush=True)
"""


def test_many_writers_at_once_and_readers_beside_them(tmp_path: Path) -> None:
    for writer in range(4):
        make_models(tmp_path / "models", writer, 5)
    root = tmp_path / "catalogue"
    Catalogue(root).register_many(make_models(tmp_path / "before", 9, 1))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(writer), "8"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for writer in range(4)
    ]
    for process in writers:
        assert process.stdout.readline() == "ready\n"
    for process in writers:
        process.stdin.write("go\n")
        process.stdin.flush()
    reader, seen, looks = Catalogue(root), 0, 0
    while looks < 3 or any(process.poll() is None for process in writers):
        done = subprocess.run([sys.executable, "-I", READER, root], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        count = len(indexed(reader)[0])
        assert count >= seen  # what was found once is not lost
        seen, looks = count, looks + 1
    told = [ref for process in writers for ref in process.communicate()[0].split()]
    assert [process.returncode for process in writers] == [0] * 4
    assert len(told) == len(set(told)) == 4 * 8 * 7
    catalogue = Catalogue(root)
    assert {f"m@{number}" for number in range(1, 4 * 8 * 6 + 2)} == {v.ref for v in catalogue.list("m")}
    assert set(refs_of(catalogue)) == {*told, "m@1"}
    facts = [(v.metrics["writer"], v.metrics["i"]) for v in catalogue.list("m")[1:]]
    assert sorted(facts) == sorted((writer, i) for writer in range(4) for i in range(48))
    assert catalogue.verify().ok
    assert catalogue.verify().unlisted == []
    assert sorted(indexed(reader)[0]) == sorted(refs_of(catalogue))
    assert sorted(indexed(reader)[1]) == sorted(
        ("m", alias, version) for alias, version in catalogue.aliases("m").items()
    )
    assert not list(root.rglob(".*"))
