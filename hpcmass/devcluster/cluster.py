"""The cluster as a whole: start, end, look at, and break on purpose."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcmass.devcluster import claim, daemons, network, packages, pmix
from hpcmass.devcluster.files import SITE_FILE, make_folder, write_files
from hpcmass.devcluster.nodes import NODES
from hpcmass.devcluster.processes import Process, end_all_on, tail, wait_for
from hpcmass.devcluster.settings import Settings, check_folder
from hpcmass.devcluster.state import State
from hpcmass.devcluster.status import ClusterStatus, default_folder
from hpcmass.errors import ConfigError, HpcmassError, LaunchError, NotFound

_HERE_STATES = ("idle", "mixed", "allocated", "completing", "drained", "draining", "reserved", "planned")


class Cluster:
    """A development cluster in a folder.

    Attributes:
        folder: Its folder.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._current: str | None = None  # the daemon that is being started
        self.folder = state.settings.folder

    @classmethod
    def up(
        cls,
        folder: Path | None = None,
        *,
        network_namespaces: bool | None = None,
        accounting: bool | None = None,
        grace_s: int | None = None,
        slurmd_timeout_s: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Cluster:
        """Start a cluster, or what is missing of one that is there. All of it comes up, or nothing is left.

        Args:
            folder: Its folder; see `default_folder`.
            network_namespaces: Each node a host of its own (needs root); None: where that can be done.
            accounting: With slurmdbd; None: where it is installed.
            grace_s: Seconds that a preempted job gets; None: 0.
            slurmd_timeout_s: Seconds until a silent node is down; None: 10.
            say: Told what is being done.

        Raises:
            MissingDependency: Programs are missing; names the packages.
            LaunchError: Something did not come up; the message has the end of its log.
            ConfigError: A folder that cannot be used, or a cluster that runs with other options.
        """
        path = check_folder(folder or default_folder())
        packages.require(packages.SLURM, what="the development cluster")
        if accounting:
            packages.require(packages.ACCOUNTING, what="accounting")
        if network_namespaces:
            packages.require(packages.NETWORK, what="a network of nodes")
        asked = {
            "network": network_namespaces,
            "accounting": accounting,
            "grace_s": grace_s,
            "slurmd_timeout_s": slurmd_timeout_s,
        }
        options = {name: value for name, value in asked.items() if value is not None}
        make_folder(path)
        with claim.only_one(path):
            state = State.load(path)
            if state and state.alive("holder"):
                cls(state)._same(options)
            else:
                if state:  # what a crash or an ended holder left
                    cls(state)._end()
                state = cls._begin(path, options)
            cluster = cls(state)
            cluster._start(say)
        return cluster

    @classmethod
    def open(cls, folder: Path | None = None) -> Cluster:
        """The cluster of a folder, whether it runs or not.

        Raises:
            NotFound: None was started there.
        """
        path = check_folder(folder or default_folder())
        state = State.load(path)
        if state is None:
            raise NotFound(
                "no cluster was started in this folder", where=path, hint="start one: hpcmass slurm up"
            )
        return cls(state)

    @staticmethod
    def _begin(path: Path, options: dict[str, Any]) -> State:
        """Claim a slot and write the files of a cluster of which nothing runs."""
        can = options.get("network") is not False and network.possible()
        if options.get("network") and not can:
            raise ConfigError(
                "a hostname and a network for each node need root, and the right to make namespaces",
                hint="without them, as any user: hpcmass slurm up --no-namespaces",
            )
        found = {
            "accounting": not packages.missing_packages([packages.ACCOUNTING]),
            **options,
            "network": can,
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "host": socket.gethostname().split(".")[0],
            "plugins": pmix.plugin_path(packages.plugin_folder(), path / "plugins"),
            "version": packages.slurm_version(),
        }

        def settings(slot: int) -> Settings:
            return Settings(folder=path, slot=slot, **found)

        def usable(slot: int) -> bool:
            if not can:
                return True
            network.down(settings(slot))  # the slot is ours: what bears its name is a dead cluster's
            return network.free(settings(slot).subnet)

        slot, handle = claim.claim_slot(usable)
        state = State(settings(slot))
        with handle:
            state.processes["holder"] = daemons.start_holder(state.settings, handle.fileno())
            state.save()
        try:
            write_files(state.settings)
            if can:
                network.up(state.settings)
        except BaseException:
            Cluster(state)._end()
            raise
        return state

    def _same(self, options: dict[str, Any]) -> None:
        s = self._state.settings
        other = {name: value for name, value in options.items() if getattr(s, name) != value}
        if other:
            words = ", ".join(f"{name} = {getattr(s, name)}, not {value}" for name, value in other.items())
            raise ConfigError(
                f"this cluster runs already, with {words}",
                where=self.folder,
                hint=f"end it first: hpcmass slurm down --folder {self.folder}",
            )

    # ----- what one may ask of a cluster

    @property
    def env(self) -> dict[str, str]:
        """This process's environment with what Slurm's commands need to find the cluster."""
        return {
            **os.environ,
            "SLURM_CONF": str(self._state.settings.slurm_conf),
            "PATH": packages.search_path(),
        }

    @property
    def site_file(self) -> Path:
        """The site file that describes it to hpcmass."""
        return self.folder / SITE_FILE

    @property
    def has_accounting(self) -> bool:
        """Whether slurmdbd runs, so that sacct and sacctmgr answer."""
        return self._state.settings.accounting

    @property
    def has_network(self) -> bool:
        """Whether each node has its own hostname, address and processes."""
        return self._state.settings.network

    @property
    def nodes(self) -> list[str]:
        """Names of its nodes."""
        return [node.name for node in NODES]

    @property
    def processes(self) -> dict[str, Process]:
        """Its own processes by name (`slurmctld`, `slurmd-cn1` …), dead or alive."""
        return dict(self._state.processes)

    def run(self, *argv: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command against the cluster and return how it ended; nothing is raised for an exit code.

        Raises:
            LaunchError: It did not end in time, or there is no such program.
        """
        return daemons.run(self.env, *argv, timeout_s=timeout_s)

    def status(self) -> ClusterStatus:
        """What lives, and what slurmctld says of the nodes."""
        alive = {name: process.alive for name, process in self._state.processes.items()}
        wanted = [name for name in daemons.order(self._state.settings) if not name.startswith("slurmd-")]
        states, jobs = self._node_states() if alive.get("slurmctld") else ({}, None)
        return ClusterStatus(
            daemons={name: alive.get(name, False) for name in wanted},
            nodes={name: alive.get(f"slurmd-{name}", False) for name in self.nodes},
            states=states,
            jobs=jobs,
        )

    # ----- what one may do to it

    def down(self) -> None:
        """End all of it: jobs, daemons, namespaces. Nothing happens to one that does not run."""
        with claim.only_one(self.folder):
            self._reload()
            errors = self._end()
        if errors:
            raise errors[0]

    def kill_node(self, name: str) -> None:
        """Take the power from a node: its slurmd and everything that runs there die at once.

        Slurm learns of it by itself, after its time-out.

        Raises:
            NotFound: There is no such node.
        """
        self._check(name)
        with claim.only_one(self.folder):
            self._reload()
            self._kill(name)

    def start_node(self, name: str) -> None:
        """Bring a node back and wait until slurmctld has it; nothing happens to one that is alive.

        Raises:
            NotFound: There is no such node.
            LaunchError: It did not come up.
        """
        self._check(name)
        with claim.only_one(self.folder):
            self._reload()
            if not self._state.alive(f"slurmd-{name}"):
                self._spawn(f"slurmd-{name}")
            self._wait_for_nodes([name])

    def stop_controller(self) -> None:
        """End slurmctld as a service manager would; jobs run on, commands wait or fail."""
        with claim.only_one(self.folder):
            self._reload()
            self._end_process("slurmctld")

    def start_controller(self) -> None:
        """Start slurmctld again and wait until it answers and knows its living nodes.

        Raises:
            LaunchError: It did not come up.
        """
        with claim.only_one(self.folder):
            self._reload()
            if not self._state.alive("slurmctld"):
                self._spawn("slurmctld")
            self._wait_for_nodes([name for name in self.nodes if self._state.alive(f"slurmd-{name}")])

    # ----- how

    def _reload(self) -> None:
        self._state = State.load(self.folder) or self._state

    def _check(self, name: str) -> None:
        if name not in self.nodes:
            raise NotFound(f"there is no node {name!r}", hint=f"nodes: {', '.join(self.nodes)}")

    def _start(self, say: Callable[[str], None]) -> None:
        try:
            for name in daemons.order(self._state.settings):
                if not self._state.alive(name):
                    say(f"starting {name}")
                    self._spawn(name)
            self._wait_for_nodes(self.nodes)
        except BaseException as error:
            log = self._last_words()
            self._end()
            if log and isinstance(error, HpcmassError):
                raise LaunchError(
                    f"{error.message}; everything is ended again. {log}", hint=error.hint
                ) from error
            raise

    def _spawn(self, name: str) -> None:
        daemon = daemons.DAEMONS[name.partition("-")[0]]
        self._current = name
        self._state.processes[name] = daemon.start(self._state.settings, name)
        self._state.save()
        if not wait_for(
            lambda: daemon.ready(self._state.settings) or not self._state.alive(name), daemon.patience_s
        ):
            raise LaunchError(f"{name} does not answer after {daemon.patience_s:.0f} s")
        if not self._state.alive(name):
            raise LaunchError(f"{name} ended at once")
        daemon.afterwards(self._state.settings)

    def _wait_for_nodes(self, names: list[str]) -> None:
        patience_s = 240.0

        def here() -> bool:
            dead = [name for name in names if not self._state.alive(f"slurmd-{name}")]
            if dead or not self._state.alive("slurmctld"):
                self._current = f"slurmd-{dead[0]}" if dead else "slurmctld"
                raise LaunchError(f"{self._current} ended")
            states, _ = self._node_states()
            missing[:] = [name for name in names if not states.get(name, "none").startswith(_HERE_STATES)]
            missing.extend(name for name in names if states.get(name, "").endswith("*") and name not in missing)
            return not missing

        missing: list[str] = []
        if not wait_for(here, patience_s):
            self._current = f"slurmd-{missing[0]}"
            raise LaunchError(f"nodes did not come up in {patience_s:.0f} s: {', '.join(missing)}")

    def _node_states(self) -> tuple[dict[str, str], int | None]:
        """Node → state, and the number of jobs; nothing where slurmctld does not answer."""
        try:
            # What the shell has set for Slurm's commands (SINFO_PARTITION, SQUEUE_STATES) must not filter this.
            env = daemons.environment(self._state.settings)
            nodes = daemons.run(env, "sinfo", "-h", "-N", "-o", "%N %T", timeout_s=30)
            jobs = daemons.run(env, "squeue", "-h", "-o", "%i", timeout_s=30)
        except LaunchError:
            return {}, None
        if nodes.returncode != 0 or jobs.returncode != 0:
            return {}, None
        pairs = (line.split(maxsplit=1) for line in nodes.stdout.splitlines())
        return {name: state.strip() for name, state in pairs}, len(jobs.stdout.split())

    def _last_words(self) -> str:
        """The end of the log of the daemon that was being started."""
        name = self._current
        if name is None:
            return ""
        s = self._state.settings
        for path in (s.folder / "log" / f"{name}.log", s.log(name)):
            text = tail(path)
            if text:
                return f"The end of {path}:\n{text}"
        return ""

    def _kill(self, name: str) -> None:
        s = self._state.settings
        process = self._state.processes.get(f"slurmd-{name}")
        if process:
            process.end(signal.SIGKILL)
        if not s.network:
            end_all_on(name, daemons.marks(s, f"slurmd-{name}"), s.slurm_conf)
        elif process and not wait_for(lambda: not network.processes_of(s, name), 60):
            raise LaunchError(f"processes of {name} do not end", pids=network.processes_of(s, name))

    def _end_process(self, name: str) -> None:
        process = self._state.processes.get(name)
        if process:
            process.end()

    def _end(self) -> list[HpcmassError]:
        """End everything, in the order that lets each say good-bye to the next; what could not be ended."""
        s = self._state.settings
        if self._state.alive("slurmctld"):
            daemons.cancel_all(daemons.environment(s))
        errors: list[HpcmassError] = []
        for name in self.nodes:
            try:
                self._kill(name)
            except HpcmassError as error:
                errors.append(error)
        for name in reversed(daemons.order(s)):
            if not name.startswith("slurmd-"):
                self._end_process(name)
        if s.network:
            with claim.abandoned(s.slot) as free:
                if free or self._state.alive("holder"):
                    network.down(s)
        self._end_process("holder")
        self._state.processes.clear()
        self._state.save()
        return errors
