"""The gateway of a deployment as a Slurm job, which submits its successor before its time is over."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping

from hpcmass.config import Project, Resources, layout_of, load_site
from hpcmass.errors import HpcmassError, SlurmError
from hpcmass.files import Owner, publish
from hpcmass.launch import hpcmass_command
from hpcmass.serve.deployment import Deployment
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.submission import submit_file
from hpcmass.workflow.deploy_slurm import LEAD_S
from hpcmass.workflow.env_pack import packed_of
from hpcmass.workflow.targets import named_target

_ASK_S, _AGAIN_S = 5.0, 30.0


def gateway_jobs(deployment: Deployment, slurm: Slurm) -> list[str]:
    """Ids of the jobs that are this deployment's gateways, waiting or running, newest last.

    Raises:
        SlurmError: Slurm does not answer.
    """
    return slurm.find_comment(_comment(deployment))


def submit_gateway(deployment: Deployment, project: Project, slurm: Slurm) -> str:
    """Submit a job that is the gateway, or follows the one that lives.

    Raises:
        ConfigError: The target does not exist, or cannot hold it.
        SlurmError: Slurm refused, or does not answer.
    """
    asked = deployment.asked()
    name = str(asked.gateway["target"])
    target = named_target(name, load_site(asked.site), "--gateway-target")
    wanted = Resources(ranks=1, nodes=1, threads_per_rank=1, gpus_per_rank=0, time=asked.gateway.get("time"))
    folder = deployment.path / "gateway"
    text = render_script(
        ScriptSpec(
            name=f"{asked.name}-gateway",
            target=target,
            layout=layout_of(wanted, target, name=name),
            command=(*hpcmass_command(), "gateway", deployment.path.name, "--project", str(project.root)),
            out=folder,
            env={"PYTHONUNBUFFERED": "1"},
            signal_s=0,
            comment=_comment(deployment),
            cwd=project.root,
            title=f"gateway of the deployment {asked.name}",
            packed=packed_of(target),
        )
    )
    script = folder / f"job-{time.time_ns()}.sbatch"
    publish(script, text)
    return submit_file(script, slurm=slurm, comment=_comment(deployment), patience_s=10.0)


class Successor:
    """Submits the next gateway job when the time of this one is nearly over. Called about once a second."""

    def __init__(
        self, deployment: Deployment, project: Project, slurm: Slurm, job_id: str, say: Callable[[str], None]
    ) -> None:
        self._deployment, self._project, self._slurm, self._job_id = deployment, project, slurm, job_id
        self._say = say
        self._next = 0.0
        self._ends: float | None = None
        self._lead_s = 0.0

    def __call__(self) -> None:
        """Look whether it is time; whatever goes wrong is said, and tried again."""
        now = time.time()
        if now < self._next:
            return
        self._next = now + _ASK_S
        try:
            if self._ends is None:
                info = self._slurm.jobs([self._job_id])[self._job_id]
                if info.ends is None or info.time_limit_s is None:
                    return
                self._ends, self._lead_s = info.ends, min(LEAD_S, info.time_limit_s / 2)
            if self._ends - now > self._lead_s:
                return
            self._next = now + _AGAIN_S
            if all(int(one) <= int(self._job_id) for one in gateway_jobs(self._deployment, self._slurm)):
                job = submit_gateway(self._deployment, self._project, self._slurm)
                self._say(f"this job ends in {self._ends - now:.0f} s: job {job} follows")
        except HpcmassError as error:
            self._say(str(error))


def dead_by_slurm(slurm: Slurm) -> Callable[[Owner], bool]:
    """Whether the job that the holder of a lease was in is over, as Slurm knows."""

    def dead(owner: Owner) -> bool:
        if owner.slurm_job_id is None or owner.slurm_job_id == own_job(os.environ):
            return False
        with contextlib.suppress(SlurmError):
            info = slurm.jobs([owner.slurm_job_id])[owner.slurm_job_id]
            return info.gone or info.state.ended is True
        return False

    return dead


def own_job(env: Mapping[str, str]) -> str | None:
    """The Slurm job that this process is the script of."""
    return env.get("SLURM_JOB_ID") or None


def _comment(deployment: Deployment) -> str:
    return f"hpcmass-gateway:{hashlib.sha256(str(deployment.path).encode()).hexdigest()[:16]}"
