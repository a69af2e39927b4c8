"""A site's target as a Parsl configuration."""

from __future__ import annotations

import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

from hpcmass.config import Target
from hpcmass.errors import ConfigError

LABEL = "trials"
_HEARTBEAT_S = 2
_LOST_AFTER_S = 60
_SHELL_SAFE = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def parsl_config(
    target: Target, *, parallel: int, run_dir: Path, environment: Mapping[str, str], encrypted: bool = True
) -> Config:
    """The configuration under which trials of a study run on this target.

    Args:
        target: What the site offers; `local` is known.
        parallel: Workers, that is trials at once.
        run_dir: Where Parsl keeps its scripts and logs. Parsl hands this path to a shell unquoted, so
            it must not hold anything that a shell reads as something else.
        environment: Set for the interchange, the workers, and all that they start.
        encrypted: Whether what goes over the loopback interface is encrypted (CurveZMQ).

    Raises:
        ConfigError: The kind of the target is not known, or the path would not pass a shell.
    """
    if target.kind != "local":
        raise ConfigError(f"trials cannot run on a target of kind '{target.kind}' yet", where="targets")
    if not _SHELL_SAFE.fullmatch(str(run_dir)):
        raise ConfigError("this path cannot be handed to Parsl, whose scripts do not quote it", where=run_dir)
    settings = [f"{name}={value}" for name, value in environment.items()]
    executor = HighThroughputExecutor(
        label=LABEL,
        address="127.0.0.1",
        encrypted=encrypted,
        max_workers_per_node=parallel,
        cores_per_worker=1e-6,  # `parallel` alone says how many; Parsl would else count the cores.
        heartbeat_period=_HEARTBEAT_S,
        heartbeat_threshold=_LOST_AFTER_S,
        interchange_launch_cmd=["env", *settings, sys.executable, _program("interchange")],
        launch_cmd=_launch_command(settings),
        provider=LocalProvider(  # type: ignore[no-untyped-call]
            init_blocks=1, min_blocks=1, max_blocks=1, nodes_per_block=1, launcher=SimpleLauncher()
        ),
    )
    return Config(
        executors=[executor],
        run_dir=str(run_dir),
        initialize_logging=False,
        usage_tracking=0,
        strategy="simple",
        strategy_period=2,
        max_idletime=1e9,
    )


def _launch_command(settings: list[str]) -> str:
    """Parsl's own command with our environment, and without relying on PATH."""
    from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD

    name, arguments = DEFAULT_LAUNCH_CMD.split(" ", 1)
    program = [*settings, sys.executable, _program(name.removesuffix(".py"))]
    quoted = " ".join(shlex.quote(word).replace("{", "{{").replace("}", "}}") for word in program)
    return f"exec env {quoted} {arguments}"


def _program(name: str) -> str:
    """The file of one of Parsl's programs, which pip put beside the interpreter."""
    file = Path(sysconfig.get_path("scripts")) / f"{name}.py"
    if file.is_file():
        return str(file)
    import parsl.executors.high_throughput

    return str(Path(os.fspath(parsl.executors.high_throughput.__path__[0])) / f"{name}.py")
