"""`hpcmass deploy`, `undeploy`, `rollback`, `endpoint`, `deployments`, and the process behind them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcmass.catalogue import Catalogue
from hpcmass.config import Project, load_site
from hpcmass.errors import (
    AlreadyExists,
    ConfigError,
    LaunchError,
    MissingDependency,
    NameNotAllowed,
    NotFound,
)
from hpcmass.files import Lease, check_name, matching, read_last_records, storage_errors
from hpcmass.launch import hpcmass_command
from hpcmass.serve.deployment import Asked, Canary, Deployment, updated
from hpcmass.serve.probing import Launcher
from hpcmass.slurm.client import Slurm
from hpcmass.workflow.addresses import own_addresses
from hpcmass.workflow.deploy_command import gateway_token
from hpcmass.workflow.deploy_job import Successor, dead_by_slurm, gateway_jobs, own_job, submit_gateway
from hpcmass.workflow.deploy_local import LocalLauncher
from hpcmass.workflow.deploy_slurm import SlurmLauncher, slurm_targets
from hpcmass.workflow.projects import ProjectRef, project_of

_TTL_S, _PATIENCE_S = 20.0, 10.0


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """What `hpcmass deploy` may say beside the model; None: as it was, or the default of a new one."""

    name: str | None = None
    replicas: tuple[int, int] | None = None
    slo_p99_ms: float | None = None
    idle_s: float | None = None
    budget_hours: float | None = None
    site: str | None = None
    targets: tuple[str, ...] = ()
    time: str | None = None
    follow: str | None = None
    canary: float | None = None
    canary_for_s: float | None = None
    serve: tuple[str, ...] = ()
    gateway: Mapping[str, Any] = field(default_factory=dict)


def deploy(model: str, project: ProjectRef = None, options: DeployOptions | None = None) -> Deployment:
    """Put a model behind an address, or another version behind the one it has; done already is no error.

    Args:
        model: `NAME@ALIAS`, `NAME@3`, `NAME`, a run, or a bundle's folder.
        project: Whose catalogue and deployments are meant; default: found from the working folder.
        options: How.

    Returns:
        The deployment; its gateway is running or has just been started, see `wait_ready`.

    Raises:
        NotFound: There is no such model.
        ConfigError: What is asked does not go together.
        MissingDependency: The packages of `hpcmass[serve]` are not installed.
    """
    given = options or DeployOptions()
    _needs_serve()
    found = project_of(project)
    stable, model_name = resolve_served(model, found)
    follow = None
    if given.follow is not None:
        follow = f"{model_name}@{given.follow}"
        stable, _ = resolve_served(follow, found)
    name = check_name(given.name or model_name, "name of a deployment")
    deployment = Deployment(found.deployments / name)
    said = _said(given)
    if follow is not None:
        said["follow"] = follow
    if given.gateway:
        said["gateway"] = _gateway_of(deployment, given.gateway)
    if said.get("site"):
        new = Asked(name=name, model=model_name, asked=model, stable=stable, **said)
        if not slurm_targets(new, load_site(new.site)):
            raise ConfigError("has no target of kind slurm", where=new.site)
    if not deployment.exists():
        if given.canary is not None:
            raise ConfigError("there is nothing yet that it could be held against", where="--canary")
        with contextlib.suppress(AlreadyExists):  # by another one at the same moment
            deployment.create(Asked(name=name, model=model_name, asked=model, stable=stable, **said))
    deployment.change(lambda old: _changed(old, model, model_name, stable, said, given), "asked")
    gateway_token(deployment)
    start_gateway(deployment, found)
    return deployment


def _changed(
    old: Asked, model: str, model_name: str, stable: str, said: dict[str, Any], given: DeployOptions
) -> Asked:
    if old.model != model_name:
        raise ConfigError(
            f"the deployment '{old.name}' serves the model '{old.model}', not '{model_name}'",
            hint="give another name: --name",  # what was seen of the one would be taken for the other's
        )
    if old.state == "running" and said.get("site", old.site) != old.site:
        raise ConfigError("runs elsewhere", where=old.name, hint=f"hpcmass undeploy {old.name} first")
    if "serve" in said:
        said = {**said, "serve": with_words(old.serve, said["serve"])}
    if old.state == "ended":
        old = replace(old, state="running", canary=None, follow=None, stable=stable)
    if given.canary is not None:
        if stable == old.stable:
            return replace(old, canary=None, **said)
        trial = Canary(model=stable, share=given.canary, since=time.time(), after_s=given.canary_for_s)
        if old.canary is not None and replace(trial, since=old.canary.since) == old.canary:
            trial = old.canary
        return replace(old, canary=trial, **said)
    said = {"follow": None, **said}
    return replace(updated(old, stable), asked=model if stable != old.stable else old.asked, **said)


def _said(given: DeployOptions) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if given.replicas is not None:
        said["least"], said["most"] = given.replicas
    for key in ("slo_p99_ms", "idle_s", "budget_hours", "site", "time"):
        if (value := getattr(given, key)) is not None:
            said[key] = value or None if key == "site" else value
    if given.targets:
        said["targets"] = given.targets
    if given.serve:
        said["serve"] = given.serve
    return said


def _gateway_of(deployment: Deployment, given: Mapping[str, Any]) -> dict[str, Any]:
    """How the gateway is to be reached: as it was, but for what is given.

    Raises:
        ConfigError: It would be open to others without tokens; or it lives, and would have to be another one.
    """
    before = dict(deployment.asked().gateway) if deployment.exists() else {}
    other = {"tokens": "anybody", "anybody": "tokens"}
    how = {key: value for key, value in before.items() if other.get(key) not in given} | dict(given)
    if how.get("target"):
        how.setdefault("host", "0.0.0.0")
    _refuse_open(how)
    # A gateway reads this when it starts. To say nothing would leave one open of which tokens were just asked.
    if how != before and deployment.exists() and controlled(deployment):
        changed = sorted(key for key in how.keys() | before.keys() if how.get(key) != before.get(key))
        raise ConfigError(
            f"its gateway runs, and was started otherwise ({', '.join(changed)})",
            where=deployment.path.name,
            hint=f"hpcmass undeploy {deployment.path.name} first",
        )
    return how


def rollback(name: str, project: ProjectRef = None) -> Asked:
    """End a trial, or bring back the version before; an alias is followed no more.

    Raises:
        NotFound: There is no such deployment, or no version before.
    """
    deployment = find_deployment(name, project)

    def back(old: Asked) -> Asked:
        if old.canary is not None:
            return replace(old, canary=None, follow=None)
        if old.previous is None:
            raise NotFound("there is no version before this one", where=deployment.path)
        return replace(old, stable=old.previous, previous=old.stable, follow=None)

    return deployment.change(back, "rollback")


def undeploy(name: str, project: ProjectRef = None, *, wait_s: float = 120.0) -> Deployment:
    """End a deployment: what is under way is answered, then all its processes and jobs end.

    Raises:
        LaunchError: It did not end in time.
    """
    found = project_of(project)
    deployment = find_deployment(name, found)
    deployment.change(lambda old: replace(old, state="ended", canary=None, follow=None), "undeploy")
    if not deployment.replicas() and not controlled(deployment):
        return deployment
    start_gateway(deployment, found, here=True)  # where none lives, one is needed to end the replicas
    end = time.monotonic() + wait_s
    while deployment.replicas() or controlled(deployment):
        if time.monotonic() > end:
            raise LaunchError("did not end in time", where=deployment.path, hint="look into gateway/out.log")
        time.sleep(0.1)
    return deployment


def deployments(project: ProjectRef = None) -> list[Deployment]:
    """All deployments of a project, by name."""
    found = [Deployment(one) for one in matching(project_of(project).deployments, "*")]
    return [one for one in found if one.exists()]


def find_deployment(name: str, project: ProjectRef = None) -> Deployment:
    """A deployment by its name.

    Raises:
        NotFound: There is none.
    """
    deployment = Deployment(project_of(project).deployments / check_name(name, "name of a deployment"))
    deployment.asked()
    return deployment


def wait_ready(deployment: Deployment, *, wait_s: float) -> dict[str, Any]:
    """The endpoint, as soon as the newest version answers there; with `least` 0: as soon as the gateway does.

    Raises:
        LaunchError: It was not so in time, or its replicas do not start.
    """
    end, begun = time.monotonic() + wait_s, time.time() - 1.0
    while True:
        endpoint, status, asked = deployment.endpoint(), deployment.status() or {}, deployment.asked()
        model = asked.canary.model if asked.canary is not None else asked.stable
        ready = sum(one["model"] == model and one["state"] == "ready" for one in status.get("replicas", ()))
        alive = endpoint is not None and endpoint["state"] == "ready" and controlled(deployment)
        fresh = time.time() - float(status.get("time", 0.0)) < 10.0
        if alive and fresh and endpoint is not None and ready >= min(1, asked.least):
            return endpoint
        failing = [
            one
            for one in read_last_records(deployment.events_file)
            if one.get("kind") == "failing" and one.get("model") == model
        ]
        if failing and failing[-1]["time"] > begun and not ready:
            raise LaunchError(f"replicas do not start: {failing[-1]['reason']}", where=deployment.path)
        if time.monotonic() > end:
            raise LaunchError(
                "is not ready yet", where=deployment.path, transient=True,
                hint=status.get("note") or "look into gateway/out.log, or wait longer (--wait)",
            )  # fmt: skip
        time.sleep(0.1)


def in_short(deployment: Deployment) -> str:
    """One line: name, state, version, replicas, rate, latency, address."""
    asked, status, endpoint = deployment.asked(), deployment.status() or {}, deployment.endpoint() or {}
    if asked.state == "ended" and not controlled(deployment):
        return f"{asked.name}  ended  {asked.stable}"
    if not controlled(deployment):
        return f"{asked.name}  without a gateway  {asked.stable}  (hpcmass deploy {asked.asked} starts one)"
    p99 = status.get("p99_ms")
    words = [
        asked.name, asked.state, asked.stable, f"{status.get('ready', 0)}/{status.get('wanted', '?')} replicas",
        f"{status.get('rate', 0.0):.0f}/s", "p99 –" if p99 is None else f"p99 {p99:.1f} ms",
        endpoint.get("url", ""),
    ]  # fmt: skip
    if asked.canary is not None:
        words.insert(3, f"{asked.canary.share:.0%} {asked.canary.model}")
    return "  ".join(words)


def controlled(deployment: Deployment) -> bool:
    """Whether a process decides for it now."""
    return Lease(deployment.path / "controller", ttl_s=_TTL_S).owner() is not None


def start_gateway(deployment: Deployment, project: Project, *, here: bool = False) -> None:
    """Start the process of a deployment where none lives: here, or as a job where a target is named for it.

    Raises:
        LaunchError: It ended at once.
        SlurmError: Slurm refused the job.
    """
    if controlled(deployment):
        return
    if deployment.asked().gateway.get("target"):
        slurm = Slurm(patience_s=_PATIENCE_S)
        waiting = gateway_jobs(deployment, slurm)
        if not here:
            if not waiting:
                submit_gateway(deployment, project, slurm)
            return
        slurm.cancel(waiting)
    words = [*hpcmass_command(), "gateway", deployment.path.name, "--project", str(project.root)]
    log = deployment.path / "gateway" / "out.log"
    with storage_errors(log, "start the gateway"), log.open("ab") as out:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            cwd=project.root, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    end = time.monotonic() + 30.0
    while time.monotonic() < end and not controlled(deployment):
        if child.poll() is not None:
            last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise LaunchError(f"the gateway ended: {last}", where=log)
        time.sleep(0.02)


def run_gateway(name: str, project: ProjectRef = None, *, say: Callable[[str], None]) -> None:
    """Be the gateway and the controller of a deployment."""
    _needs_serve()
    from hpcmass.serve.gateway_process import GatewaySettings, serve_gateway
    from hpcmass.serve.tokens import read_tokens

    found = project_of(project)
    deployment = find_deployment(name, found)
    token, digests = gateway_token(deployment)
    asked = deployment.asked()
    how, slurm, job = asked.gateway, Slurm(patience_s=_PATIENCE_S), own_job(os.environ)
    launcher: Launcher = LocalLauncher(found.root, digests)
    if asked.site is not None:
        launcher = SlurmLauncher(found.root, digests, slurm_targets(asked, load_site(asked.site)), slurm)
    host = how.get("host", "127.0.0.1")
    settings = GatewaySettings(
        host=host, port=how.get("port", 0),
        address=how.get("address") or (own_addresses()[0] if host in ("0.0.0.0", "::") else None),
        dead=None if asked.site is None else dead_by_slurm(slurm),
        hop=Successor(deployment, found, slurm, job, say) if job and how.get("target") else lambda: None,
        tokens=None if how.get("tokens") is None else read_tokens(Path(how["tokens"])), rate=how.get("rate"),
        certificate=None if how.get("certificate") is None else Path(how["certificate"]),
        key=None if how.get("key") is None else Path(how["key"]), token=token, say=say,
    )  # fmt: skip
    serve_gateway(deployment, settings, launcher, lambda ref: resolve_served(ref, found)[0])


def resolve_served(ref: str, project: Project) -> tuple[str, str]:
    """What replicas are told to serve (`NAME@3`, or a folder), and the model's name in addresses.

    Raises:
        NotFound: There is nothing of that name.
    """
    if os.sep not in ref and ref not in (".", "..", ""):
        try:
            version = Catalogue(project.catalogue).get(ref)
            return version.ref, version.name
        except (NotFound, NameNotAllowed):
            if "@" in ref:
                raise
        for folder in (project.runs / ref, Path(ref)):
            if folder.is_dir():
                return str(folder.resolve()), check_name(folder.name)
    elif Path(ref).is_dir():
        folder = Path(ref).resolve()
        return str(folder), check_name(folder.name)
    raise NotFound(
        f"there is no model '{ref}'", hint="name a model of the catalogue (NAME@ALIAS), a run, or a folder"
    )


def _refuse_open(gateway: Mapping[str, Any]) -> None:
    loopback = ("127.0.0.1", "::1", "localhost")
    if (
        gateway.get("host", "127.0.0.1") not in loopback
        and not gateway.get("tokens")
        and not gateway.get("anybody")
    ):
        raise ConfigError(
            f"{gateway['host']} can be reached from other machines, and no tokens are asked for",
            where="--host",
            hint="give --tokens FILE, or --anybody where everyone who reaches it may use the model",
        )


def _needs_serve() -> None:
    try:
        import hpcmass.serve.gateway_process  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency(f"serving needs {error.name}", hint="pip install 'hpcmass[serve]'") from error


def parse_replicas(text: str) -> tuple[int, int]:
    """`2`, or `1:8`.

    Raises:
        ConfigError: It is neither.
    """
    first, colon, last = text.partition(":")
    if not first.isdecimal() or (colon and not last.isdecimal()) or len(text) > 12:
        raise ConfigError(f"{text!r} is no range", where="--replicas", hint="such as 1:3, 2, 0:4")
    return int(first), int(last if colon else first)


def parse_share(text: str) -> float:
    """`10%`, or `0.1`.

    Raises:
        ConfigError: It is neither.
    """
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no share", where="--canary", hint="such as 10%") from None


def with_words(old: Sequence[str], new: Sequence[str]) -> tuple[str, ...]:
    """Options of `hpcmass serve` with their values, where those of `new` stand in place of the `old`."""
    options: dict[str, list[str]] = {}
    name = ""
    for word in (*old, *new):
        if word.startswith("--"):
            name = word
            options[name] = []
        else:
            options[name].append(word)
    return tuple(word for name, values in options.items() for word in (name, *values))


def words_of(options: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    """Words of `hpcmass serve` from options that were given."""
    return tuple(word for name, value in options if value is not None for word in (name, f"{value}"))
