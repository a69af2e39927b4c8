"""The house of docs/ARCHITECTURE.md, held by reading the source: floors, circles, heavy imports.

`violations(package)` is the checker; the first tests apply it to hpcmass, the rest plant each kind of
violation in a small package and see it found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = {
    "errors": 0,
    "files": 0,
    "config": 1,
    "data": 2,
    "catalogue": 2,
    "launch": 2,
    "runs": 2,
    "slurm": 3,
    "devcluster": 3,
    "train": 3,
    "monitor": 3,
    "evaluate": 4,
    "export": 4,
    "sweep": 4,
    "serve": 4,
    "workflow": 5,
    "dashboard": 6,
    "cli": 7,
}
# `hpcmass` itself and `hpcmass.__main__` stand above all floors: they import all, nothing imports them.
FACADES = {"", "__main__"}
GROUND = "errors"  # imports nothing of ours, so its neighbour on floor 0 may use it as well

# Third-party package -> the rooms that may import it when they run (not: for type checking only).
ROOMS_OF = {
    "torch": {"train", "evaluate", "export", "serve"},
    "horovod": {"train"},
    "mpi4py": {"train"},
    "sklearn": {"train", "evaluate"},
    "skops": {"train"},
    "onnx": {"export"},
    "onnxruntime": {"train", "export", "serve"},
    "onnxscript": {"export"},
    "skl2onnx": {"export"},
    "h5py": {"data"},
    "pyarrow": {"data", "evaluate"},
    "PIL": {"data", "evaluate"},
    "optuna": {"sweep"},
    "cmaes": {"sweep"},
    "parsl": {"workflow"},
    "submitit": {"slurm"},
    "click": {"cli"},
    "uvloop": {"serve"},
    "httptools": {"serve"},
    "orjson": {"serve"},
}
MODULES_OF = {"optuna": {"sweep.window", "sweep.storage", "sweep.optunalog"}, "submitit": {"slurm.submission"}}
# Programs that import each package by its name, to say whether it works on a node; nothing of theirs is used.
PROBES = {"launch.software"}
# What executes code from the bytes it reads; nothing of ours reads such files.
NOWHERE = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
HARMLESS = {("joblib", "parallel_config")}  # scikit-learn's way to say how it runs in parallel


@dataclass
class Module:
    """What one source file imports."""

    name: str  # without the package: "data.order", "" for the package itself
    path: Path
    inside: list[tuple[str, int, bool]] = field(default_factory=list)  # module, line, only for type checking
    outside: list[tuple[str, int, bool]] = field(default_factory=list)  # top-level package, line, likewise
    unpickling: list[tuple[str, int]] = field(default_factory=list)

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


class _Reader(ast.NodeVisitor):
    def __init__(self, module: Module, package: str, names: set[str]) -> None:
        self.module, self.package, self.names = module, package, names
        self.typing_only = False
        self.strings: list[tuple[str, int]] = []
        self.dynamic: list[tuple[ast.expr | None, int]] = []
        self.is_package = module.path.name == "__init__.py"

    def visit_If(self, node: ast.If) -> None:
        test = ast.unparse(node.test)
        if test not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
            return
        before, self.typing_only = self.typing_only, True
        for child in node.body:
            self.visit(child)
        self.typing_only = before
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._found(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parts = [self.package, *self.module.name.split(".")] if self.module.name else [self.package]
            keep = len(parts) - node.level + (1 if self.is_package else 0)
            base = ".".join([*parts[:keep], *([base] if base else [])])
        if base.split(".")[0] != self.package:
            if not {(base, alias.name) for alias in node.names} <= HARMLESS:
                self._found(base, node.lineno)
            return
        for alias in node.names:
            if (base, alias.name) == (self.package, "__version__"):
                continue  # a constant, which the package has before it imports anything
            whole = f"{base}.{alias.name}"
            self._found(whole if self._local(whole) in self.names else base, node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        called = ast.unparse(node.func)
        if called.split(".")[-1] in ("import_module", "__import__"):
            self.dynamic.append((node.args[0] if node.args else None, node.lineno))
        tensors_alone = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        if (called == "torch.load" and not tensors_alone) or any(
            k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
            for k in node.keywords
        ):
            self.module.unpickling.append((called, node.lineno))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.strings.append((node.value, node.lineno))

    def finish(self) -> None:
        """Imports by name: the literal given, or else every string of the file that names a module."""
        for argument, line in self.dynamic:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                self._found(argument.value, line)
                continue
            for text, where in self.strings:
                own = text.startswith(f"{self.package}.") and self._local(text) in self.names
                if own or text in ROOMS_OF or text in NOWHERE:
                    self._found(text, where)

    def _local(self, name: str) -> str:
        return name[len(self.package) :].lstrip(".")

    def _found(self, name: str, line: int) -> None:
        if name.split(".")[0] == self.package:
            self.module.inside.append((self._local(name), line, self.typing_only))
        else:
            self.module.outside.append((name.split(".")[0], line, self.typing_only))


def read_package(package: Path) -> dict[str, Module]:
    """All modules of a package by name, with their imports."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = Module(name, path)
    for module in modules.values():
        reader = _Reader(module, package.name, set(modules))
        reader.visit(ast.parse(module.path.read_text(encoding="utf-8")))
        reader.finish()
    return modules


def violations(package: Path) -> list[str]:
    """Everything in a package that breaks the rules, as `file:line: what`."""
    modules = read_package(package)
    return [*_floors(modules, package), *_heavy(modules, package), *_circles(modules)]


def _floors(modules: dict[str, Module], package: Path) -> Iterator[str]:
    for module in modules.values():
        if module.name in FACADES:
            continue
        place = module.path.relative_to(package.parent)
        if module.room not in FLOORS:
            yield f"{place}: {module.room} stands on no floor"
            continue
        if module.room == GROUND and module.inside:
            yield f"{place}:{module.inside[0][1]}: {GROUND} imports {module.inside[0][0]}"
            continue
        for target, line, _ in module.inside:
            room = target.split(".")[0]
            if target in FACADES:
                yield f"{place}:{line}: imports the façade {package.name}{'.' if target else ''}{target}"
            elif room not in FLOORS:
                yield f"{place}:{line}: imports {target}, which stands on no floor"
            elif room not in (module.room, GROUND) and FLOORS[room] >= FLOORS[module.room]:
                yield (
                    f"{place}:{line}: {module.room} (floor {FLOORS[module.room]}) imports {target}"
                    f" (floor {FLOORS[room]})"
                )


def _heavy(modules: dict[str, Module], package: Path) -> Iterator[str]:
    users: dict[str, set[str]] = {}
    for module in modules.values():
        place = module.path.relative_to(package.parent)
        for name, line, typing_only in module.outside:
            if name in NOWHERE:
                yield f"{place}:{line}: imports {name}"
            if typing_only or name not in ROOMS_OF or module.name in PROBES:
                continue
            users.setdefault(name, set()).add(module.name)
            if module.room not in ROOMS_OF[name]:
                yield f"{place}:{line}: {name} is imported outside {', '.join(sorted(ROOMS_OF[name]))}"
        for what, line in module.unpickling:
            yield f"{place}:{line}: {what} may unpickle"
    for name, allowed in MODULES_OF.items():
        if elsewhere := users.get(name, set()) - allowed:
            yield f"{name} is imported outside {', '.join(sorted(allowed))}: {', '.join(sorted(elsewhere))}"


def _circles(modules: dict[str, Module]) -> Iterator[str]:
    graph = {
        name: sorted(
            {t for t, _, typing_only in module.inside if not typing_only and t in modules and t != name}
        )
        for name, module in modules.items()
        if name not in FACADES
    }
    state: dict[str, int] = {}  # 1: on the path, 2: done

    def walk(name: str, path: list[str]) -> Iterator[str]:
        state[name] = 1
        for target in graph.get(name, []):
            if state.get(target) == 1:
                yield "circle: " + " -> ".join([*path[path.index(target) :], target])
            elif target not in state:
                yield from walk(target, [*path, target])
        state[name] = 2

    for name in graph:
        if name not in state:
            yield from walk(name, [name])


def test_the_package_keeps_the_house_rules() -> None:
    assert violations(ROOT / "hpcmass") == []


def test_every_room_is_seen() -> None:
    rooms = {module.room for module in read_package(ROOT / "hpcmass").values()} - FACADES
    assert {"errors", "files", "config", "data", "train", "cli"} <= rooms <= set(FLOORS)


def test_the_floors_are_those_of_the_architecture_page() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| `([a-z_]+)(?:/|\.py)` \|", page, flags=re.MULTILINE)
    assert len(rows) >= 12
    assert {room: int(floor) for floor, room in rows}.items() <= FLOORS.items()


def planted(tmp_path: Path, files: dict[str, str]) -> list[str]:
    """The violations of a small package with these files (their paths without `.py`)."""
    package = tmp_path / "hpcmass"
    for name, text in {"__init__": "", **files}.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return violations(package)


def test_a_good_package_has_no_violation(tmp_path: Path) -> None:
    found = planted(
        tmp_path,
        {
            "errors": "",
            "data/order": "from hpcmass.errors import X\nfrom . import shape\n",
            "data/shape": "import hpcmass.errors\nfrom hpcmass import __version__\n",
            "train/loop": "import torch\nfrom hpcmass.data import order\nfrom ..data.shape import Y\n",
            "workflow/api": "import parsl\n",
            "__main__": "from hpcmass import x\nfrom hpcmass.train import loop\n",
        },
    )
    assert found == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("from hpcmass.train import loop", "data (floor 2) imports train.loop (floor 3)"),
        ("import hpcmass.train.loop", "data (floor 2) imports train.loop (floor 3)"),
        ("from ..train.loop import x", "data (floor 2) imports train.loop (floor 3)"),
        ("from .. import train", "data (floor 2) imports train (floor 3)"),
        ("def f():\n    from hpcmass.train.loop import x", "data (floor 2) imports train.loop (floor 3)"),
        ("def f():\n    import_module('hpcmass.train.loop')", "data (floor 2) imports train.loop (floor 3)"),
        (
            "T = {'a': 'hpcmass.train'}\nimportlib.import_module(T['a'])",
            "data (floor 2) imports train (floor 3)",
        ),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from hpcmass.train import loop",
            "data (floor 2) imports train.loop (floor 3)",
        ),
        ("from hpcmass.runs import folder", "data (floor 2) imports runs.folder (floor 2)"),
        ("from hpcmass import open_dataset", "imports the façade hpcmass"),
        ("from hpcmass.__main__ import main", "imports the façade hpcmass.__main__"),
        ("from hpcmass import cellar", "imports cellar, which stands on no floor"),
        ("import torch", "torch is imported outside evaluate, export, serve, train"),
        (
            "def f():\n    from torch.utils.data import Dataset",
            "torch is imported outside evaluate, export, serve, train",
        ),
        ("import parsl", "parsl is imported outside workflow"),
        ("from pickle import loads", "imports pickle"),
        ("def f():\n    import_module('pickle')", "imports pickle"),
        ("from joblib import load, parallel_config", "imports joblib"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "np.load may unpickle"),
        ("import torch\ntorch.load('x')", "torch.load may unpickle"),
        ("import torch\ntorch.load('x', weights_only=False)", "torch.load may unpickle"),
        ("import torch\ntorch.load('x', weights_only=asked)", "torch.load may unpickle"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, line: str, reason: str) -> None:
    others = dict.fromkeys(["train/__init__", "train/loop", "runs/folder", "cellar", "__main__"], "")
    found = planted(tmp_path, {**others, "data/order": line})
    assert any(reason in each and each.startswith("hpcmass/data/order.py:") for each in found), found


def test_a_room_without_a_floor_is_found(tmp_path: Path) -> None:
    assert planted(tmp_path, {"cellar/wine": ""}) == ["hpcmass/cellar/wine.py: cellar stands on no floor"]


def test_errors_imports_nothing_of_ours(tmp_path: Path) -> None:
    found = planted(
        tmp_path, {"errors": "from .files import x\n", "files/__init__": "from hpcmass.errors import E\n"}
    )
    assert found == ["hpcmass/errors.py:1: errors imports files", "circle: errors -> files -> errors"]


def test_a_circle_is_found_also_through_a_function(tmp_path: Path) -> None:
    found = planted(
        tmp_path,
        {
            "data/a": "from . import b\n",
            "data/b": "def f():\n    from hpcmass.data.c import x\n",
            "data/c": "import hpcmass.data.a\n",
        },
    )
    assert found == ["circle: data.a -> data.b -> data.c -> data.a"]


def test_a_circle_for_type_checking_only_is_none(tmp_path: Path) -> None:
    found = planted(
        tmp_path,
        {
            "data/a": "from . import b\n",
            "data/b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a\n",
        },
    )
    assert found == []


def test_optuna_in_another_module_is_found(tmp_path: Path) -> None:
    texts = {"sweep/window": "import optuna\n", "sweep/b": "from optuna.trial import Trial\n"}
    assert planted(tmp_path, texts) == [
        "optuna is imported outside sweep.optunalog, sweep.storage, sweep.window: sweep.b"
    ]


def test_torch_for_type_checking_only_is_allowed(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n"
    assert planted(tmp_path, {"data/a": text}) == []
