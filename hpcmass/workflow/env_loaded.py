"""The environment that a target's modules and setup lines make, on this machine."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcmass.config import Target
from hpcmass.errors import ConfigError


def loaded_env(target: Target) -> dict[str, str]:
    """The environment of a login shell in which the target's modules and setup lines have run.

    Raises:
        ConfigError: A line failed.
    """
    if not target.modules and not target.setup and not target.env:
        return without_own(os.environ)
    lines = [f"module load {shlex.quote(module)} || exit 78" for module in target.modules]
    lines += target.setup
    lines += [f"export {key}={shlex.quote(value)}" for key, value in target.env.items()]
    return login_env(lines)


def login_env(lines: Sequence[str] = ()) -> dict[str, str]:
    """The environment of a login shell in which some lines have run.

    Raises:
        ConfigError: A line failed.
    """
    mark = "hpcmass-environment-follows"
    script = "\n".join([*lines, f"printf '{mark}\\0'; env -0"])
    words, env = ["bash", "-l", "-c", script], without_own(os.environ)
    done = subprocess.run(words, env=env, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    head, found, tail = done.stdout.partition(mark.encode() + b"\0")
    if done.returncode != 0 or not found:
        said = (done.stderr or head).decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise ConfigError(
            f"the modules or setup lines of the target fail: {said[-1]}",
            where="modules, setup",
            hint="try them in a login shell",
        )
    pairs = (item.decode(errors="surrogateescape").partition("=") for item in tail.split(b"\0") if item)
    return {key: value for key, _, value in pairs if not key.startswith("BASH_FUNC_")}


def without_own(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without what the virtual environment that runs this put into it.

    Its `bin` on PATH has programs of its own, an mpicc among them, that would pass for the site's.
    """
    clean = {
        name: value for name, value in env.items() if name not in ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")
    }
    own = Path(sys.prefix) / "bin"
    if sys.prefix != sys.base_prefix and "PATH" in clean:
        kept = [part for part in clean["PATH"].split(os.pathsep) if not part or Path(part) != own]
        clean["PATH"] = os.pathsep.join(kept) or os.defpath
    return clean
