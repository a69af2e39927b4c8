"""Replicas of a deployment as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcmass.errors import LaunchError
from hpcmass.files import boot_id, process_start
from hpcmass.serve.deployment import Asked, Known
from hpcmass.serve.probing import JobView
from hpcmass.workflow.deploy_command import replica_command


class LocalLauncher:
    """Starts replicas beside itself; they outlive it, and are found again by whoever comes after it."""

    def __init__(self, project_root: Path, tokens: Path) -> None:
        self._root, self._tokens = project_root, tokens
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def target(self, running: Sequence[str | None]) -> str | None:
        """There is only this machine."""
        return None

    def command(self, asked: Asked, model: str, folder: Path, target: str | None) -> list[str]:
        """The words that start a replica."""
        return replica_command(asked, model, folder, self._root, self._tokens, host="127.0.0.1")

    def start(self, replica: Known, asked: Asked) -> dict[str, Any]:
        """Start it in a session of its own.

        Raises:
            LaunchError: The system refused.
        """
        try:
            with (replica.path / "out.log").open("ab") as out:
                child = subprocess.Popen(
                    replica.command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                    start_new_session=True, cwd=self._root,
                )  # fmt: skip
        except OSError as error:
            raise LaunchError(f"a replica cannot be started: {error}", where=replica.path) from error
        self._children[child.pid] = child
        return _job(child.pid)

    def find(self, replica: Known) -> dict[str, Any] | None:
        """The process that was told to write this replica's endpoint, if there is one."""
        mark = os.fsencode(replica.path / "endpoint.json")
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and mark in Path("/proc", entry, "cmdline").read_bytes().split(b"\0"):
                    return _job(int(entry))
        return None

    def look(self, replicas: Sequence[Known]) -> dict[str, JobView]:
        """Whether the processes live."""
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]
        return {one.rid: JobView(_alive(one.job), node=_host(one.job)) for one in replicas}

    def stop(self, replica: Known, *, kill: bool = False) -> None:
        """SIGTERM, or SIGKILL; nothing where the process is not the one that was started."""
        job = replica.job
        if job is not None and _alive(job):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job["pid"]), signal.SIGKILL if kill else signal.SIGTERM)


def _job(pid: int) -> dict[str, Any]:
    return {
        "kind": "local", "pid": pid, "start_ticks": process_start(pid) or 0, "boot": boot_id(),
        "host": socket.gethostname(),
    }  # fmt: skip


def _host(job: dict[str, Any] | None) -> str:
    return str((job or {}).get("host", ""))


def _alive(job: dict[str, Any] | None) -> bool | None:
    if job is None or job.get("host") != socket.gethostname():
        return None
    if job.get("boot") != boot_id():
        return False
    started = process_start(int(job.get("pid", 0)))
    return started is not None and started == job.get("start_ticks")
