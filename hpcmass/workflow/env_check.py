"""`hpcmass env check`: whether a Python environment is what it was built to be, here or on compute nodes."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpcmass.config import Layout, Site, load_site
from hpcmass.errors import ConfigError, LaunchError, NotFound, SlurmError
from hpcmass.files import make_dir, read_json
from hpcmass.launch.command import module_command
from hpcmass.launch.software import OPTIONAL, PACKAGES, parse_facts
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobState
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.submission import submit_script
from hpcmass.workflow.env_pack import packed_of

STAMP = "hpcmass-env.json"
PROGRAM = "hpcmass.launch.software"
# Horovod's build asks the building CPU for these; others are chosen when a program runs.
_COMPILED_IN = ("avx", "f16c", "fma")


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


def check_environment(
    environment: Path | None,
    *,
    site_file: Path | str | None = None,
    target: str | None = None,
    out: Path | None = None,
    slurm: Slurm | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> list[CheckLine]:
    """Check an environment here, and with a target on one of its nodes too, as a job.

    Args:
        environment: Its folder; None: the one that runs this.
        site_file: The site, for a target.
        target: The target's name; None: only here.
        out: Where the job's script and output are kept, on a file system that all nodes see.
        slurm: The Slurm to use.
        tell: Told what happens.

    Raises:
        NotFound, ConfigError: There is no such environment, or target.
        SlurmError: The job could not be submitted, or did not run.
        LaunchError: The interpreter does not start here.
    """
    python = Path(sys.executable) if environment is None else environment.absolute() / "bin" / "python"
    if not python.exists():
        raise NotFound(
            "there is no bin/python", where=environment, hint="make an environment: hpcmass env build"
        )
    here = facts_here(python)
    stamp = read_stamp(Path(here["prefix"]))
    if target is None:
        return [*compare(stamp or here, here, stamped=stamp is not None)]
    site = load_site(site_file)
    there = _facts_there(python, site, target, out or Path.cwd() / "env-check", slurm or Slurm(), tell)
    return [*compare(stamp or here, there, stamped=stamp is not None, login=here)]


def read_stamp(prefix: Path) -> dict[str, Any] | None:
    """What `hpcmass env build` left in an environment, or None."""
    file = prefix / STAMP
    if not file.is_file():
        return None
    stamp: dict[str, Any] = read_json(file)
    return stamp


def facts_here(python: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The facts of an environment on this machine.

    Raises:
        LaunchError: Its interpreter does not come to its end.
    """
    words = software_command(python)
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=dict(env) if env else None,
    )
    facts = parse_facts(done.stdout)
    if facts is None:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise LaunchError(f"the environment's Python does not come to its end: {last}", where=python)
    return facts


def software_command(python: Path) -> list[str]:
    """The words that print an environment's facts, with this hpcmass where it has none of its own."""
    return [str(python), *module_command(PROGRAM)[1:], *PACKAGES]


def _facts_there(
    python: Path, site: Site, name: str, out: Path, slurm: Slurm, tell: Callable[[str], None]
) -> dict[str, Any]:
    if name not in site.targets:
        known = ", ".join(site.targets)
        raise ConfigError(
            f"site '{site.name}' has no target '{name}'", where="--target", hint=f"its targets: {known}"
        )
    target = site.targets[name]
    if target.kind == "local":
        return facts_here(python)
    folder = make_dir(out.absolute() / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}")
    layout = Layout(1, 1, 1, 1, 0, None, 600)
    spec = ScriptSpec(
        name=f"env-check-{name}",
        target=target,
        layout=layout,
        command=tuple(software_command(python)),
        out=folder,
        signal_s=0,
        title="check of a Python environment",
        packed=packed_of(target),
    )
    job_id = submit_script(render_script(spec), folder, slurm=slurm)
    tell(f"{name}: job {job_id}")
    text = _wait(job_id, folder, slurm)
    facts = parse_facts(text)
    if facts is None:
        lines = text.strip().splitlines() or ["it left no output"]
        raise SlurmError(f"the job came to no end on target '{name}': {lines[-1]}", where=folder, job_id=job_id)
    return facts


def _wait(job_id: str, folder: Path, slurm: Slurm) -> str:
    """The job's output when it has ended."""
    pause, unknown = 0.5, 0
    try:
        while True:
            info = slurm.jobs([job_id])[job_id]
            unknown = unknown + 1 if info.state is JobState.UNKNOWN else 0
            text = "".join(file.read_text(errors="replace") for file in folder.glob("out-*.log"))
            if parse_facts(text) is not None or info.state.ended or unknown > 20:
                return text
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)
    except KeyboardInterrupt:
        slurm.cancel([job_id])
        raise


def compare(
    built: Mapping[str, Any], there: Mapping[str, Any], *, stamped: bool, login: Mapping[str, Any] | None = None
) -> Iterator[CheckLine]:
    """Hold the facts of a node against those of the build, or without a stamp of the login node. Pure.

    Args:
        built: The stamp of `hpcmass env build`; without one the facts of the machine this runs on.
        there: The facts of the node.
        stamped: Whether `built` is a stamp.
        login: The facts of the login node, where `there` is another one.
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
        where = "by mpi4py" if not mine else "where it was built"
        yield CheckLine("note", "libmpi", f"no library of a known name is loaded {where}: nothing to compare")
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
    if fatal and "error" not in built["packages"].get("horovod.torch", {"error": ""}):
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
