"""The facts of an environment on a node held against those of its build, line by line. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpcmass.launch.software import OPTIONAL

# Horovod's build asks the building CPU for these; others are chosen when a program runs.
_COMPILED_IN = ("avx", "f16c", "fma")
_BUILT_FOR = {"nvidia": "CUDA", "amd": "ROCm"}
INDEX_HINT = "PIP_EXTRA_INDEX_URL, its address is on pytorch.org"


@dataclass(frozen=True)
class CheckLine:
    """One line of a check.

    Attributes:
        verdict: `ok`, `wrong`, or `note` for what could not be held against anything.
        what: What was looked at.
        found: What was found.
        hint: What to do about it.
    """

    verdict: Literal["ok", "wrong", "note"]
    what: str
    found: str
    hint: str = ""


def compare(
    built: Mapping[str, Any],
    there: Mapping[str, Any],
    *,
    stamped: bool,
    login: bool = False,
    gpus: int = 0,
    vendor: str | None = None,
) -> Iterator[CheckLine]:
    """Hold the facts of a node against those of the build, or without a stamp of the login node. Pure.

    Args:
        built: The stamp of `hpcmass env build`; without one the facts of the machine this runs on.
        there: The facts of the node.
        stamped: Whether `built` is a stamp.
        gpus: GPUs that `there` was given.
        vendor: Whose GPUs the site says they are: `nvidia`, `amd`.
        login: Whether `there` is another node than the one this runs on, the login node.
    """
    against = " (as built)" if stamped else " (as on the login node)" if login else ""
    yield _same(
        "Python",
        built["python"],
        there["python"],
        against,
        "the node has another interpreter: load the "
        "same module in the target's modules, or pack the environment with its Python (hpcmass env pack)",
    )
    yield from _packages(built, there, against)
    yield from _mpi(built, there, against)
    if gpus and "error" not in there["packages"].get("torch", {"error": ""}):
        yield _gpus(there, gpus, vendor)
    yield from _cpu(built, there)
    yield _glibc(built, there)
    if there["network"]:
        yield CheckLine(
            "wrong",
            "no internet needed",
            f"importing asks for {', '.join(there['network'])}",
            "compute nodes may be offline: imports would hang; find which package does it",
        )
    else:
        yield CheckLine("ok", "no internet needed", "importing asks for no other host")
    if there["paths"]:
        for fault in there["paths"]:
            yield CheckLine(
                "wrong", "paths", fault, "build it on a file system that the nodes see, or hpcmass env pack"
            )
    else:
        yield CheckLine("ok", "paths", f"interpreter, scripts and added folders are on {there['node']}")


def _same(what: str, built: Any, found: Any, against: str, hint: str) -> CheckLine:
    if built == found:
        return CheckLine("ok", what, f"{_text(found)}{against}")
    return CheckLine("wrong", what, f"{_text(found)}, but it was {_text(built)}", hint)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _packages(built: Mapping[str, Any], there: Mapping[str, Any], against: str) -> Iterator[CheckLine]:
    elsewhere = "where it was built" if "built" in against else "on the login node"
    for name, found in there["packages"].items():
        before = built["packages"].get(name, {})
        if "error" in found:
            if name in OPTIONAL and "error" in before:
                yield CheckLine("note", f"import {name}", f"is not in this environment ({found['error']})")
            else:
                yield CheckLine(
                    "wrong",
                    f"import {name}",
                    found["error"],
                    "install it again on the login node, with the target's modules loaded: hpcmass env build",
                )
            continue
        if "error" in before:
            said = f"{found['version']}, {found['seconds']:.1f} s; {elsewhere} it fails: {before['error']}"
            yield CheckLine("note", f"import {name}", said)
            continue
        line = _same(
            f"import {name}",
            before.get("version"),
            found["version"],
            against,
            "another environment is first on sys.path: look at PYTHONPATH in the job",
        )
        yield CheckLine(line.verdict, line.what, f"{line.found}, {found['seconds']:.1f} s", line.hint)


def _mpi(built: Mapping[str, Any], there: Mapping[str, Any], against: str) -> Iterator[CheckLine]:
    if there["mpi"] is None:
        yield CheckLine("note", "MPI library", "mpi4py loads none here")
        return
    if built["mpi"] is None:
        yield CheckLine("note", "MPI library", f"{there['mpi']}; there is none elsewhere to compare with")
    else:
        yield _same(
            "MPI library",
            built["mpi"],
            there["mpi"],
            against,
            "the job loads another MPI than the one it was "
            "compiled against: put the module of that MPI into the target's modules",
        )
    mine = there["libmpi"].get("mpi4py.MPI", [])
    before = _real(built, "mpi4py.MPI")
    if mine and before:
        yield _same(
            "libmpi",
            before,
            _real(there, "mpi4py.MPI"),
            against,
            "look at LD_LIBRARY_PATH in the job: another libmpi is found first",
        )
    else:
        where = "" if not mine else " elsewhere"
        yield CheckLine("note", "libmpi", f"mpi4py loads no library of a known name{where}: nothing to compare")
    yield from _mpiexec(there)
    horovod = there["packages"].get("horovod.torch", {})
    if "error" in horovod or not horovod:
        return
    both = there["libmpi"].get("horovod.torch", [])
    if not mine or not both:
        yield CheckLine("note", "Horovod's MPI", "no library of a known name is loaded: nothing to compare")
    elif _real(there, "horovod.torch") == _real(there, "mpi4py.MPI"):
        yield CheckLine("ok", "Horovod's MPI", "the same library as mpi4py's")
    else:
        others = sorted(set(both) - set(mine))
        yield CheckLine(
            "wrong",
            "Horovod's MPI",
            f"loads {', '.join(others)} beside mpi4py's {', '.join(mine)}",
            "Horovod was built against another MPI: hpcmass env build makes both against one",
        )


def _mpiexec(there: Mapping[str, Any]) -> Iterator[CheckLine]:
    """The mpiexec that hpcmass would take, against the library: of another MPI it starts N runs of one rank."""
    found = there.get("mpiexec")
    if not found:
        yield CheckLine("note", "mpiexec", "there is none; ranks are started by srun")
        return
    library = str(there["mpi"])
    name = {"openmpi": "Open MPI", "mpich": "MPICH"}[found["kind"]]
    related = name in library or (found["kind"] == "mpich" and "Open MPI" not in library)
    shown = f"{found['path']} ({name} {found['version']})"
    if related and (found["kind"] == "mpich" or f"v{found['version']}" in library):
        yield CheckLine("ok", "mpiexec", f"{shown} is the library's")
    else:
        yield CheckLine(
            "wrong",
            "mpiexec",
            f"{shown} is not of the MPI that mpi4py loads",
            "ranks would not find each other: load one MPI only, and build against it",
        )


def _gpus(there: Mapping[str, Any], given: int, vendor: str | None) -> CheckLine:
    """Whether torch sees a GPU that Slurm gave: else training goes on, on the node's CPUs."""
    facts = there.get("gpus") or {}
    seen, built_for, drivers = facts.get("seen"), facts.get("built_for"), facts.get("drivers") or []
    what = "torch and GPUs"
    if seen is None:
        return CheckLine("wrong", what, f"torch cannot say what it sees: {facts.get('error', 'no answer')}",
                         "look at the driver's version on the node (nvidia-smi, rocm-smi)")  # fmt: skip
    found = f"torch sees {seen} GPU{'s' * (seen != 1)}, {given} asked for (it is built for {built_for})"
    if seen >= given:
        return CheckLine("ok", what, found)
    whose = vendor or (drivers[0] if len(drivers) == 1 else None)
    if whose is not None and not str(built_for).startswith(_BUILT_FOR[whose]):
        hint = f"training would run on CPUs: take PyTorch's packages for {_BUILT_FOR[whose]} ({INDEX_HINT})"
        return CheckLine("wrong", what, f"{found}, and the GPUs are {whose}'s", hint)
    if whose is not None or drivers:
        hint = (
            "training would run on CPUs: look at nvidia-smi or rocm-smi on the node, and its *_VISIBLE_DEVICES"
        )
        return CheckLine("wrong", what, found, hint)
    return CheckLine("note", what, f"{found}; the node shows no GPU driver, and the site file no gpu_vendor")


def _real(facts: Mapping[str, Any], module: str) -> list[str]:
    """The libraries loaded; the environment's own by their place in it, for it may have been moved."""
    prefix = Path(facts["prefix"]).resolve()
    found = set()
    for text in facts["libmpi"].get(module, []):
        path = Path(text).resolve()
        found.add(f"(environment)/{path.relative_to(prefix)}" if path.is_relative_to(prefix) else str(path))
    return sorted(found)


def _cpu(built: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[CheckLine]:
    lacking = [flag for flag in built["flags"] if flag not in there["flags"]]
    fatal = [flag for flag in lacking if flag in _COMPILED_IN]
    if fatal and any(
        "error" not in one["packages"].get("horovod.torch", {"error": ""}) for one in (built, there)
    ):
        yield CheckLine(
            "wrong",
            "CPU",
            f"{there['cpu']} lacks {', '.join(fatal)}, which the compiled code uses",
            "it ends in 'illegal instruction': build on a node of this kind (srun --pty), or one "
            "environment a kind of node",
        )
    elif lacking:
        yield CheckLine(
            "ok", "CPU", f"{there['cpu']} lacks {', '.join(lacking)}; nothing compiled here needs them"
        )
    else:
        yield CheckLine("ok", "CPU", f"{there['cpu']} has all that the building CPU had")


def _glibc(built: Mapping[str, Any], there: Mapping[str, Any]) -> CheckLine:
    def number(text: str) -> tuple[int, ...]:
        return tuple(int(part) for part in text.split()[-1].split(".") if part.isdigit()) if text else ()

    if number(there["glibc"]) < number(built["glibc"]):
        return CheckLine(
            "wrong",
            "glibc",
            f"{there['glibc']} is older than {built['glibc']} of the build",
            "compiled code will not load: build on a node of this kind, or use a container",
        )
    return CheckLine("ok", "glibc", there["glibc"])
