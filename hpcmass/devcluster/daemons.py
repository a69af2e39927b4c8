"""The daemons of a cluster: in which order, how each is started, and when it is ready."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpcmass.devcluster import database, network
from hpcmass.devcluster.nodes import NODES
from hpcmass.devcluster.packages import program, search_path
from hpcmass.devcluster.processes import Process, spawn
from hpcmass.devcluster.settings import Settings
from hpcmass.errors import LaunchError

MARK = "HPCMASS_DEVCLUSTER_DAEMON"


def order(s: Settings) -> list[str]:
    """Names of the daemons as they are started."""
    accounting = ["mariadbd", "slurmdbd"] if s.accounting else []
    return ["munged", *accounting, "slurmctld", *(f"slurmd-{node.name}" for node in NODES)]


def environment(s: Settings, name: str | None = None) -> dict[str, str]:
    """What daemons and their helpers see: nothing of the shell or job that `up` was called from."""
    env = {name: os.environ[name] for name in ("HOME", "LANG", "TZ", "USER", "LOGNAME") if name in os.environ}
    return {**env, **(marks(s, name) if name else {}), "PATH": search_path(), "SLURM_CONF": str(s.slurm_conf)}


def marks(s: Settings, name: str) -> dict[str, str]:
    """The variable by which a daemon's descendants are known where nodes have no namespaces."""
    return {MARK: f"{s.folder}:{name}"}


def run(env: Mapping[str, str], *argv: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run a command and return how it ended.

    Raises:
        LaunchError: It did not end in time, or there is no such program.
    """
    try:
        return subprocess.run(
            argv,
            env=dict(env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{argv[0]} did not end in {timeout_s:.0f} s", transient=True, argv=argv) from error
    except OSError as error:
        raise LaunchError(f"cannot run {argv[0]}: {error.strerror}", argv=argv) from error


def cancel_all(env: Mapping[str, str], patience_s: float = 10.0) -> None:
    """Cancel every job and wait a little for their steps to end; what does not end is killed with its node."""
    end = time.monotonic() + patience_s
    try:
        while time.monotonic() < end:
            ids = run(env, "squeue", "-h", "-o", "%A", timeout_s=patience_s).stdout.split()
            if not ids:
                return
            run(env, "scancel", *sorted(set(ids)), timeout_s=patience_s)
            time.sleep(0.2)
    except LaunchError:
        return


@dataclass(frozen=True)
class Daemon:
    """How one kind of daemon is started.

    Attributes:
        argv: Its command line, by the settings and the name of the one to start.
        before: What has to be done first.
        ready: Whether it answers.
        afterwards: What has to be done once it answers.
        patience_s: How long to wait for that.
    """

    argv: Callable[[Settings, str], list[str]]
    ready: Callable[[Settings], bool] = lambda s: True
    before: Callable[[Settings], None] = lambda s: None
    afterwards: Callable[[Settings], None] = lambda s: None
    patience_s: float = 180.0

    def start(self, s: Settings, name: str) -> Process:
        """Prepare and start it."""
        self.before(s)
        argv = self.argv(s, name)
        argv[0] = program(argv[0]) or argv[0]
        return spawn(argv, env=environment(s, name), log=s.log(name))


def start_holder(s: Settings, handle: int) -> Process:
    """The process that holds the cluster's place on this machine; see `claim`."""
    return spawn(["sleep", "infinity"], env=environment(s, "holder"), log=s.log("holder"), keep=[handle])


def _runner(s: Settings) -> database.Run:
    return lambda *argv: run(environment(s), *argv)


def _munged(s: Settings, _: str) -> list[str]:
    run_folder = s.folder / "run"
    s.munge_socket.unlink(missing_ok=True)
    return [
        "munged",
        "--foreground",
        "--force",
        f"--key-file={s.folder}/etc/munge.key",
        f"--socket={s.munge_socket}",
        f"--pid-file={run_folder}/munged.pid",
        f"--seed-file={run_folder}/munged.seed",
        f"--log-file={s.folder}/log/munged.log",
    ]


def _slurmd(s: Settings, name: str) -> list[str]:
    node = name.partition("-")[2]
    command = ["slurmd", "-D", "-f", str(s.slurm_conf), "-N", node]
    return network.as_node(s, node, command) if s.network else command


def _slurmdbd_answers(s: Settings) -> bool:
    return run(environment(s), "sacctmgr", "-n", "list", "cluster").returncode == 0


def _slurmctld_answers(s: Settings) -> bool:
    return run(environment(s), "sinfo", "-h").returncode == 0


DAEMONS: dict[str, Daemon] = {
    "munged": Daemon(_munged, ready=lambda s: s.munge_socket.exists()),
    "mariadbd": Daemon(
        lambda s, _: database.server_argv(s),
        before=lambda s: database.install(s, environment(s)),
        ready=lambda s: database.answers(s, _runner(s)),
    ),
    "slurmdbd": Daemon(
        lambda s, _: ["slurmdbd", "-D"],
        before=lambda s: database.prepare(s, _runner(s)),
        ready=_slurmdbd_answers,
        afterwards=lambda s: database.register(_runner(s), s.user),
    ),
    "slurmctld": Daemon(lambda s, _: ["slurmctld", "-D", "-f", str(s.slurm_conf)], ready=_slurmctld_answers),
    "slurmd": Daemon(_slurmd),
}
