"""Run with faults.so preloaded: each work on a catalogue, once for each call of the system, which kills it or fails.

`python faulty_works.py FOLDER WORK FAULT LINKS FIRST STEP`; prints how many calls were tried.
"""

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from hpcmass.catalogue import Catalogue, Evaluations, Registration
from hpcmass.catalogue.fsck import scan
from hpcmass.catalogue.gc import collect
from hpcmass.catalogue.mending import repair
from hpcmass.catalogue.reserve import with_room
from hpcmass.catalogue.retention import Rules
from hpcmass.errors import HpcmassError

READER = Path(__file__).parents[3] / "docs" / "read_catalogue.py"
FAULTS = {"none": 0, "kill": 1, "eio": 2, "enospc": 3, "edquot": 4, "late": 5}
LINKS = {"links": 0, "eperm": errno.EPERM, "eopnotsupp": errno.EOPNOTSUPP}
MEASURED = {"n": 3, "metrics": {"accuracy": {"value": 0.5}}}
shim = ctypes.CDLL(None)
shim.fault_seen.restype = ctypes.c_long


def model(folder: Path, number: int, size: int = 3000) -> Path:
    path = folder / f"run{number}" / "model"
    if not path.exists():
        path.mkdir(parents=True)
        (path / "same").write_text("the same in all")
        (path / "own").write_bytes(number.to_bytes(4, "little") * (size // 4))
    return path


class Work:
    """A work, the catalogue it begins with, and what must hold at any time and at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def one(self, name: str, number: int) -> Registration:
        run = str(self.folder / f"run{number}")
        return Registration(name, model(self.folder, number), {"n": number}, {"run": run})

    def prepare(self, catalogue: Catalogue) -> None:
        catalogue.register_many([self.one("m", number) for number in range(4)])
        for number in (4, 5):
            one = self.one("m", number)
            catalogue.register("m", one.folder, metrics=one.metrics, lineage=one.lineage)
        catalogue.alias("m", "best", 2, why="")

    before = frozenset(f"m@{number}" for number in range(1, 7))
    news: tuple[set[str], ...] = ()
    may_go: frozenset[str] = frozenset()

    def work(self, catalogue: Catalogue) -> None:
        raise NotImplementedError

    def whole(self, root: Path) -> set[str]:
        """What holds after a fault, whatever it was; gives the versions there are."""
        catalogue = Catalogue(root)
        report = catalogue.verify()
        assert report.ok, report.problems
        return self.refs(catalogue)

    def refs(self, catalogue: Catalogue) -> set[str]:
        refs = {version.ref for version in catalogue.list()}
        assert refs >= self.before - self.may_go, refs
        assert refs - self.before in [set(), *self.news], refs
        assert catalogue.aliases("m")["best"] in (2, 3)
        return refs

    def after(self, root: Path, refs: set[str]) -> None:
        """The same work again, and what must hold then."""
        catalogue = Catalogue(root)
        self.work(catalogue)
        again = {version.ref for version in catalogue.list()}
        assert again >= refs - self.may_go
        assert catalogue.verify().ok
        assert {one.ref for one in catalogue.search()} == again
        done = subprocess.run([sys.executable, "-I", READER, root], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


class Register(Work):
    news = ({"m@7"},)

    def work(self, catalogue: Catalogue) -> None:
        one = self.one("m", 11)
        made = catalogue.register("m", one.folder, metrics=one.metrics, lineage=one.lineage)
        assert catalogue.get(made.ref) == made


class First(Register):
    """The first registration of all."""

    before, news = frozenset(), ({"m@1"},)

    def prepare(self, catalogue: Catalogue) -> None:
        catalogue.path.mkdir()

    def refs(self, catalogue: Catalogue) -> set[str]:
        found = {version.ref for version in catalogue.list()}
        assert found in (set(), {"m@1"})
        return found


class Many(Work):
    news = ({"m@7", "m@8", "m@9"}, {"m@7", "m@8", "m@9", "o@1", "o@2"})

    def work(self, catalogue: Catalogue) -> None:
        names = ["m", "o", "m", "o", "m"]
        catalogue.register_many([self.one(name, 11 + place) for place, name in enumerate(names)])


class ManyWithoutLinks(Many):
    """Without hard links each version is a claim of its own."""

    news = (
        {"m@7"}, {"m@7", "m@8"}, {"m@7", "m@8", "m@9"}, {"m@7", "m@8", "m@9", "o@1"},
        {"m@7", "m@8", "m@9", "o@1", "o@2"},
    )  # fmt: skip


class Alias(Work):
    def work(self, catalogue: Catalogue) -> None:
        catalogue.alias("m", "best", 3, why="better")
        assert catalogue.aliases("m")["best"] == 3


class Evaluate(Work):
    """A record beside a version."""

    def work(self, catalogue: Catalogue) -> None:
        version = catalogue.get("m@2")
        made = Evaluations(catalogue.path).add(version, MEASURED, dataset="d", data="data/test", why="test")
        assert Evaluations(catalogue.path).of(version)[-1] == made

    def whole(self, root: Path) -> set[str]:
        found = Evaluations(root).of(Catalogue(root).get("m@2"))
        assert [one.result for one in found] in ([], [MEASURED])
        assert scan(root).ok
        return super().whole(root)

    def after(self, root: Path, refs: set[str]) -> None:
        super().after(root, refs)
        assert [one.ref for one in Catalogue(root).search("eval.test.accuracy == 0.5")] == ["m@2"]


class Gc(Work):
    may_go = frozenset({"m@1", "m@3", "m@4"})  # 2 has an alias, 5 is the first of the best, 6 the newest

    def prepare(self, catalogue: Catalogue) -> None:
        super().prepare(catalogue)
        (self.folder / "unused").write_text("nobody names it")
        catalogue.blobs.add(self.folder / "unused")

    def work(self, catalogue: Catalogue) -> None:
        collect(catalogue.path, Rules(keep_best=(("n", 2, False),)), grace_s=0, why="test")
        assert {version.ref for version in Catalogue(catalogue.path).list()} == {"m@2", "m@5", "m@6"}
        stored = [path for path in (catalogue.path / "cas").rglob("[!.]*") if path.is_file()]
        content = sum(path.stat().st_size for path in stored if path.suffix != ".json")
        assert content == 2 * 15 + 3 * 3000, stored  # `same` as a blob and in a pack
        logs = (path.read_text() for path in (catalogue.path / "removals").iterdir())
        said = [json.loads(text) for text in logs if text]  # without links a number may be taken for nothing
        assert {ref for one in said for ref in one["versions"]} == self.may_go


class Fsck(Work):
    """Two blobs, a pack and a claim are damaged; all but the claim can be restored from the runs."""

    may_go = frozenset({"m@5"})

    def prepare(self, catalogue: Catalogue) -> None:
        super().prepare(catalogue)
        files = {version.version: version.files for version in catalogue.list()}
        flip(catalogue.blobs.where(files[6]["own"]), 10)
        flip(catalogue.blobs.where(files[3]["own"]), files[3]["own"].offset + 10)
        os.truncate(catalogue.path / "models/m/versions/000005.json", 20)
        (catalogue.path / "cas" / ".left.nohost-1-00000000.tmp").write_text("left")
        os.utime(catalogue.path / "cas" / ".left.nohost-1-00000000.tmp", (1, 1))

    def whole(self, root: Path) -> set[str]:
        damaged = {ref for one in scan(root).findings if one.is_damage for ref in one.refs}
        assert damaged <= {"m@3", "m@5", "m@6"}, damaged
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.refs(Catalogue(root))

    def work(self, catalogue: Catalogue) -> None:
        report = repair(catalogue.path)
        assert report.ok, report.left
        assert [one.kind for one in report.left] == []
        aside = [path.name for path in (catalogue.path / "quarantine").rglob("*=*")]
        assert any(name.startswith("models=m=versions=000005.json") for name in aside)
        assert sum(name.startswith("cas=") for name in aside) >= 3  # two damaged, one left


def flip(path: Path, at: int) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.chmod(path, 0o444)


WORKS = {one.__name__: one for one in (Register, First, Many, ManyWithoutLinks, Alias, Evaluate, Gc, Fsck)}


def child(work: Work, root: Path, fault: str, links: str, number: int, told: int) -> None:
    """The work with a fault in its nth call: exit code 0: done, 3: refused in words, 4: anything else."""
    code = 4
    try:
        shim.fault_arm(os.fsencode(root), ctypes.c_long(number), FAULTS[fault], LINKS[links])
        work.work(Catalogue(root))
        code = 0
    except HpcmassError:
        code = 3
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        shim.fault_arm(b"/nowhere", ctypes.c_long(0), 0, 0) if code == 4 else None
        os.write(told, str(shim.fault_seen()).encode())
        os._exit(code)


def main() -> None:
    folder, name, fault, links, first, step = sys.argv[1:]
    folder = Path(folder)
    work = WORKS[name](folder)
    template = folder / "template"
    work.prepare(Catalogue(template))
    if name in ("Gc", "Fsck"):  # its making is a call like any other, and needs not be tried in each
        with_room(template, lambda: None)
    number, tried, ended = int(first), 0, []
    while True:
        root = folder / f"at-{number}"
        shutil.copytree(template, root)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(work, root, fault, links, number, write)
        os.close(write)
        seen = int(os.read(read, 20) or b"-1")
        os.close(read)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            assert code in ((-signal.SIGKILL, 0) if fault == "kill" else (0, 3)), code
            shim.fault_arm(
                os.fsencode(root), ctypes.c_long(0), 0, LINKS[links]
            )  # a file system has links, or none
            work.after(root, work.whole(root))
        except BaseException:
            print(f"{name} {fault} {links} at call {number}, ended with {code}: {root}", file=sys.stderr)
            raise
        shutil.rmtree(root)
        tried += 1
        ended.append(code)
        if 0 <= seen < number:
            break
        number += int(step)
    print(json.dumps({"tried": tried, "calls": seen, "refused": ended.count(3), "killed": ended.count(-9)}))


main()
