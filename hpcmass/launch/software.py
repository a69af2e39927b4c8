"""What a Python environment is on this node: does it import, which MPI does it load, what is it tied to.

    software PACKAGE…     prints one JSON line

Standard library only; the packages are imported by name, one after the other, as a program would.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from hpcmass.launch.mpi import find_mpiexec
from hpcmass.launch.topology import cpu_facts, gpu_drivers, loaded_library, node_name

# Module to import -> distribution that has its version.
PACKAGES = {
    "numpy": "numpy",
    "h5py": "h5py",
    "torch": "torch",
    "mpi4py.MPI": "mpi4py",
    "horovod.torch": "horovod",
}
OPTIONAL = ("mpi4py.MPI", "horovod.torch")
MARK = "hpcmass-software "  # what comes before the line, for packages print things of their own


def main() -> NoReturn:
    """Print the facts of the environment that this runs in."""
    facts = software_facts(sys.argv[1:] or list(PACKAGES))
    print(f"\n{MARK}{json.dumps(facts)}", flush=True)
    # MPI was never initialised and must not be finalised.
    os._exit(0)


def software_facts(modules: list[str]) -> dict[str, Any]:
    """Versions, libraries and paths; imports the modules, so run it in a process of its own."""
    reached: list[str] = []
    _watch_network(reached)
    packages: dict[str, dict[str, Any]] = {}
    libmpi: dict[str, list[str]] = {}
    mpi_version = None
    for name in modules:
        packages[name] = _imported(name)
        if name == "mpi4py.MPI" and "error" not in packages[name]:
            mpi_version = sys.modules[name].Get_library_version().strip(" \0\n").splitlines()[0].strip()
        if name in OPTIONAL:
            libmpi[name] = loaded_library("libmpi")
    cpu = cpu_facts()
    mpiexec = find_mpiexec()
    return {
        "node": node_name(),
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "packages": packages,
        "mpi": mpi_version,
        "libmpi": libmpi,
        "mpiexec": None if mpiexec is None else asdict(mpiexec),
        "cpu": cpu["cpu"],
        "flags": cpu["flags"],
        "glibc": os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else "",
        "network": sorted(set(reached)),
        "paths": path_faults(Path(sys.prefix)),
        "gpus": gpu_facts(),
    }


def parse_facts(text: str) -> dict[str, Any] | None:
    """The facts in the output of `main`."""
    for line in reversed(text.splitlines()):
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    return None


def _imported(name: str) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        if name == "mpi4py.MPI":
            # Outside a launcher, and on a login node, MPI_Init may be refused; the library is loaded still.
            import_module("mpi4py").rc.initialize = False
        module = import_module(name)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    found = {"path": getattr(module, "__file__", None), "seconds": round(time.perf_counter() - started, 3)}
    try:
        found["version"] = version(PACKAGES.get(name, name.split(".")[0]))
    except PackageNotFoundError:
        found["version"] = getattr(module, "__version__", None)
    return found


def gpu_facts() -> dict[str, Any]:
    """What an imported torch was built for, how many GPUs it sees, and whose drivers this node has."""
    torch = sys.modules.get("torch")
    found: dict[str, Any] = {"built_for": None, "seen": None, "drivers": gpu_drivers()}
    try:
        if torch is not None:
            hip, cuda = getattr(torch.version, "hip", None), torch.version.cuda
            found["built_for"] = f"ROCm {hip}" if hip else f"CUDA {cuda}" if cuda else "CPUs"
            found["seen"] = torch.cuda.device_count()
    except Exception as error:  # a driver that is too old, say
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return found


def _watch_network(reached: list[str]) -> None:
    """Note every host that Python code looks up or connects to from now on, this machine aside."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        host = None
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            host = arguments[1][0]
        elif event == "socket.getaddrinfo":
            host = arguments[0]
        if isinstance(host, bytes):
            host = host.decode(errors="replace")
        if host and host not in ("localhost", "127.0.0.1", "::1", os.uname().nodename):
            reached.append(str(host))

    sys.addaudithook(hook)


def path_faults(prefix: Path) -> list[str]:
    """What the environment names and this node has not: interpreter, scripts' first lines, added folders."""
    faults = []
    config = prefix / "pyvenv.cfg"
    if config.is_file():
        for line in config.read_text(errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "home" and not Path(value.strip()).is_dir():
                faults.append(f"pyvenv.cfg names {value.strip()}, which is not here")
    missing: dict[str, list[str]] = {}
    for file in sorted((prefix / "bin").iterdir()) if (prefix / "bin").is_dir() else []:
        if file.is_symlink() and not file.exists():
            faults.append(f"bin/{file.name} is a link to {os.readlink(file)}, which is not here")
        elif file.is_file() and (interpreter := _shebang(file)) and not Path(interpreter).exists():
            missing.setdefault(interpreter, []).append(file.name)
    for interpreter, names in missing.items():
        faults.append(f"{len(names)} scripts of bin ({names[0]} …) start with {interpreter}, which is not here")
    for folder in prefix.glob("lib/python*/site-packages"):
        for file in sorted(folder.glob("*.pth")):
            for line in file.read_text(errors="replace").splitlines():
                if line.startswith("/") and not Path(line.strip()).exists():
                    faults.append(f"{file.name} names {line.strip()}, which is not here")
    return faults


def _shebang(file: Path) -> str | None:
    with open(file, "rb") as opened:
        first = opened.read(300).split(b"\n", 1)[0]
    if not first.startswith(b"#!"):
        return None
    words = first[2:].decode(errors="replace").split()
    return words[0] if words else None
