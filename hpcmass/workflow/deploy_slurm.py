"""Replicas of a deployment as Slurm jobs on the targets of a site."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcmass.config import Layout, Resources, Site, Target, layout_of
from hpcmass.errors import ConfigError, HpcmassError, SlurmError
from hpcmass.files import publish
from hpcmass.launch.command import module_command
from hpcmass.serve.deployment import Asked, Known, maybe_json
from hpcmass.serve.probing import JobView
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.jobs import JobInfo, JobState
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.submission import submit_file
from hpcmass.workflow.addresses import best_addresses, own_interfaces
from hpcmass.workflow.deploy_command import replica_command
from hpcmass.workflow.env_pack import packed_of
from hpcmass.workflow.targets import named_target

_LOOK_S, _NODES_S, _PATIENCE_S = 2.0, 15.0, 5.0
LEAD_S = 180  # before its time limit another one is started in a job's place, or a third of the limit before


class SlurmLauncher:
    """Starts each replica as a job of its own, on the target that has fewest of them.

    Args:
        root: The project's folder, on a file system that all nodes see.
        tokens: The file of the one token that is let in.
        targets: The targets, by name.
        slurm: The way to Slurm.
    """

    def __init__(self, root: Path, tokens: Path, targets: Mapping[str, Target], slurm: Slurm) -> None:
        self._root, self._tokens, self._targets, self._slurm = root, tokens, targets, slurm
        self._views: dict[str, JobView] = {}
        self._addresses: dict[str, str] = {}
        self._looked = self._nodes_at = 0.0
        self._draining: set[str] = set()

    def target(self, running: Sequence[str | None]) -> str | None:
        """The one with the fewest replicas."""
        return min(self._targets, key=lambda name: sum(one == name for one in running))

    def command(self, asked: Asked, model: str, folder: Path, target: str | None) -> list[str]:
        """The words of the job: the node's addresses are written down, then it becomes the replica."""
        words = replica_command(asked, model, folder, self._root, self._tokens, host="0.0.0.0")
        at = words.index("serve")
        return [*module_command("hpcmass.workflow.deploy_node"), str(folder / "node.json"), *words[at:]]

    def start(self, replica: Known, asked: Asked) -> dict[str, Any]:
        """Submit its job.

        Raises:
            ConfigError: The target cannot hold it.
            SlurmError: Slurm refused, or does not answer.
        """
        assert replica.target is not None
        target = self._targets[replica.target]
        text = render_script(
            ScriptSpec(
                name=f"{asked.name}-{replica.rid}",
                target=target,
                layout=replica_layout(asked, target, replica.target),
                command=replica.command,
                out=replica.path,
                signal_s=0,
                comment=_comment(replica.path),
                cwd=self._root,
                title=f"replica {replica.rid} of the deployment {asked.name}",
                packed=packed_of(target),
            )
        )
        publish(replica.path / "job.sbatch", text)
        job = submit_file(
            replica.path / "job.sbatch",
            slurm=self._slurm,
            comment=_comment(replica.path),
            patience_s=_PATIENCE_S,
        )
        return {"kind": "slurm", "id": job}

    def find(self, replica: Known) -> dict[str, Any] | None:
        """Its job, if Slurm has one."""
        found = self._slurm.find_comment(_comment(replica.path))
        return {"kind": "slurm", "id": found[-1]} if found else None

    def look(self, replicas: Sequence[Known]) -> dict[str, JobView]:
        """How the jobs are; Slurm is asked every few seconds, and what it said last stands meanwhile."""
        now = time.monotonic()
        ids = {one.rid: str(one.job["id"]) for one in replicas if one.job is not None and "id" in one.job}
        fresh = any(rid not in self._views for rid in ids)
        if ids and (fresh or now - self._looked >= _LOOK_S):
            self._looked = now
            if now - self._nodes_at >= _NODES_S:
                self._nodes_at = now
                with contextlib.suppress(SlurmError):
                    self._draining = {one.name for one in self._slurm.nodes() if "DRAIN" in one.flags}
            infos = self._slurm.jobs(list(ids.values()))
            for rid, job in ids.items():
                self._views[rid] = view_of(infos[job], time.time(), self._draining)
        found = {}
        for one in replicas:
            view = self._views.get(one.rid, JobView(None))
            found[one.rid] = JobView(
                view.alive, view.leaving, view.waiting, view.node, view.job, view.told, self._address(one)
            )
        return found

    def stop(self, replica: Known, *, kill: bool = False) -> None:
        """Cancel its job: Slurm sends SIGTERM, and SIGKILL when the site's time for that is over."""
        if replica.job is not None and "id" in replica.job:
            self._slurm.cancel([str(replica.job["id"])])
            self._looked = 0.0

    def _address(self, replica: Known) -> str:
        if replica.rid not in self._addresses:
            told = maybe_json(replica.path / "node.json")
            if told is None:
                return ""
            usable = best_addresses([str(one) for one in told["addresses"]], own_interfaces())
            self._addresses[replica.rid] = usable[0]
        return self._addresses[replica.rid]


def view_of(info: JobInfo, now: float, draining: set[str]) -> JobView:
    """What a job's state means for the replica in it. Pure."""
    over = info.gone or info.state.ended is True
    leaving = info.state is JobState.RUNNING and bool(draining & set(info.nodes))
    if info.state is JobState.RUNNING and info.ends is not None and info.time_limit_s is not None:
        leaving |= info.ends - now < min(LEAD_S, info.time_limit_s / 3)
    alive = False if over else None if info.state.ended is None else True
    waiting = info.state in (JobState.PENDING, JobState.REQUEUED)
    told = f"{info.state.value}{f' ({info.reason})' if info.reason and not over else ''}"
    return JobView(alive, leaving, waiting, ",".join(info.nodes), info.job_id, told)


def replica_layout(asked: Asked, target: Target, name: str) -> Layout:
    """One node's share for one replica.

    Raises:
        ConfigError: The target cannot give it.
    """
    words = list(asked.serve)
    threads = int(words[words.index("--threads") + 1]) if "--threads" in words else 1
    return layout_of(Resources(ranks=1, nodes=1, threads_per_rank=threads, time=asked.time), target, name=name)


def slurm_targets(asked: Asked, site: Site) -> dict[str, Target]:
    """The Slurm targets that are meant; none where the site has none.

    Raises:
        ConfigError: One that is named does not exist, is of another kind, or cannot hold a replica.
    """
    named = asked.targets or tuple(name for name, one in site.targets.items() if one.kind == "slurm")
    found = {name: named_target(name, site, "--target") for name in named}
    fitting: dict[str, Target] = {}
    for name, target in found.items():
        if target.kind != "slurm":
            raise ConfigError("is not a target of kind slurm", where=f"--target {name}")
        try:
            replica_layout(asked, target, name)
            fitting[name] = target
        except HpcmassError:
            if asked.targets:
                raise
    if found and not fitting:
        raise ConfigError(f"no target of site '{site.name}' can hold a replica", where="--site")
    return fitting


def _comment(folder: Path) -> str:
    return f"hpcmass-replica:{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
