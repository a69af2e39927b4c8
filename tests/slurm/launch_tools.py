"""Jobs on the development cluster, and a Python whose MPI is MPICH."""

from __future__ import annotations

import shlex
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.devcluster import Cluster

MPICH = "mpich==5.0.2"
ROOT = Path(__file__).parents[2]
# What no launcher, shell or option parser may change on its way to the program.
WORDS = [
    "two words",
    "'",
    '"',
    "a\nb",
    ";",
    "$(touch x)",
    "`id`",
    "é 漢字 🚀",
    "",
    "*",
    "\\",
    "-n",
    "--",
    ":",
    "%j",
]


def make_mpich(folder: Path) -> str:
    """A small virtual environment whose mpi4py finds MPICH, with everything else of this one; its Python.

    Skips where the wheel cannot be had.
    """
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder / "wheels"), MPICH]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    wheels = list((folder / "wheels").glob("mpich-*.whl"))
    if not wheels:
        said = (done.stderr.strip() or "nothing").splitlines()
        pytest.skip(f"there is no {MPICH} to be had: {said[-1]}")
    home = folder / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in wheel.namelist():
            _, found, inside = name.partition(".data/data/")
            if not found or name.endswith("/"):
                continue
            place = home / inside
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(wheel.read(name))
            if inside.startswith("bin/"):
                place.chmod(0o755)
    python = home / "bin" / "python"
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    Path(own, "all-of-it.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n", encoding="utf-8")
    return str(python)


def hpcmass(python: str, *words: str) -> str:
    """A line of a batch script: hpcmass as this Python runs it."""
    start = f"import sys; sys.path.append({str(ROOT)!r}); from hpcmass.__main__ import main; main()"
    return shlex.join([python, "-c", start, *words])


def submit(cluster: Cluster, folder: Path, body: str, *options: str, head_last: bool = False) -> str:
    """Hand a batch script to Slurm; the job's id. Its output goes to `out-ID` in the folder.

    `head_last`: the body begins with #SBATCH lines of its own.
    """
    script = folder / "job.sbatch"
    # Whoever runs the tests may be root, and Open MPI would not like that.
    head = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1"
    head += f"\ncd {shlex.quote(str(folder))}"
    own = [line for line in body.splitlines() if line.startswith("#SBATCH")] if head_last else []
    text = "\n".join(["#!/bin/bash", *own, head, body])
    script.write_text(f"{text}\n", encoding="utf-8")
    done = cluster.run("sbatch", "--parsable", f"--output={folder}/out-%j", *options, str(script))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def batch(cluster: Cluster, folder: Path, body: str, *options: str) -> str:
    """Run a batch script to its end; what it said, with a line `rc N` at the end."""
    job = submit(cluster, folder, f"{body}\necho rc $?", *options)
    return ended(folder, job)


def ended(folder: Path, job: str) -> str:
    """What a job said, once a line of it begins with `rc`; `sbatch --wait` looks too rarely."""
    wait_for(lambda: is_over(folder, job), lambda: so_far(folder, job))
    return so_far(folder, job)


def so_far(folder: Path, job: str) -> str:
    """What a job has said."""
    out = folder / f"out-{job}"
    return out.read_text(encoding="utf-8") if out.exists() else ""


def is_over(folder: Path, job: str) -> bool:
    """Whether a job has said how it ended."""
    return any(line.startswith("rc ") for line in so_far(folder, job).splitlines())


def wait_in(folder: Path, job: str, condition: Callable[[], bool]) -> None:
    """Wait until something holds while a job is at work."""

    def holds() -> bool:
        met = condition()
        assert met or not is_over(folder, job), so_far(folder, job)
        return met

    wait_for(holds, lambda: so_far(folder, job) or "nothing was said")


def wait_for(condition: Callable[[], bool], what: Callable[[], str] | str, timeout_s: float = 400) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.1)


# A line of a program: its process as `lives` knows it, by number and start, for numbers are given anew.
ME = "me = open('/proc/self/stat').read(); me = me.split()[0] + ' ' + me.rpartition(')')[2].split()[19]"


def lives(me: str) -> bool:
    """Whether a process is there and no zombie. The nodes of the cluster share this machine's processes."""
    pid, start = me.split()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[19] == start and fields[0] not in "ZX"


def site(folder: Path, **keys: str) -> str:
    """A site file with one target of the cluster's CPU nodes; its path."""
    lines = ['name = "lab"', 'default_target = "cpu"', "[targets.cpu]", 'kind = "slurm"', "cores = 4"]
    lines += [f'{key} = "{value}"' for key, value in keys.items()]
    file = folder / f"site-{'-'.join(keys.values()) or 'plain'}.toml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)
