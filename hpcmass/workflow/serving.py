"""Serve a model by name: from the catalogue, a run or a folder, to one replica."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmass.catalogue import Catalogue, Version
from hpcmass.errors import ConfigError, HpcmassError, MissingDependency, NotFound
from hpcmass.evaluate.models import cached, resolve_bundle
from hpcmass.files import check_name, sha256_file
from hpcmass.workflow.monitoring import MonitorOptions, watch
from hpcmass.workflow.onnx_forms import onnx_form
from hpcmass.workflow.projects import ProjectRef, maybe_project

if TYPE_CHECKING:
    from hpcmass.serve.choice import Offer
    from hpcmass.serve.interfaces import Limits


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How one replica is to be reached and run; see `serve.replica.Settings`."""

    host: str = "127.0.0.1"
    port: int = 0
    threads: int = 1
    endpoint: Path | None = None
    tokens: Path | None = None
    anybody: bool = False
    rate: float | None = None
    certificate: Path | None = None
    key: Path | None = None
    notice_s: float = 1.0
    drain_s: float = 30.0
    runtime: str = "auto"
    command: str | None = None
    health: str = "/v2/health/ready"
    ready_s: float = 600.0
    monitor: MonitorOptions | None = None
    limits: dict[str, float] = field(default_factory=dict)


def serve_model(
    model: str, project: ProjectRef = None, options: ServeOptions | None = None, *, say: Callable[[str], None]
) -> None:
    """Serve a model until SIGTERM or SIGINT.

    Args:
        model: `NAME`, `NAME@3` or `NAME@production` of the catalogue, a run's name, or a folder.
        project: The project to look in; default: found from the working folder.
        options: How.
        say: Told in words what happens.

    Raises:
        NotFound: There is no such model.
        ConfigError: The options do not go together.
        MissingDependency: The packages of `hpcmass[serve]` are not installed.
        CorruptError: A file does not fit its digest.
    """
    asked = options or ServeOptions()
    if asked.command is not None:
        _serve_command(model, project, asked, say)
        return
    try:
        from hpcmass.serve.interfaces import LOOPBACK
        from hpcmass.serve.replica import Settings, serve
        from hpcmass.serve.tokens import read_tokens
    except ModuleNotFoundError as error:
        raise MissingDependency(f"serving needs {error.name}", hint="pip install 'hpcmass[serve]'") from error
    if asked.host not in LOOPBACK and asked.tokens is None and not asked.anybody:
        raise ConfigError(
            f"{asked.host} can be reached from other machines, and no tokens are asked for",
            where="--host",
            hint="give --tokens FILE, or --anybody where everyone who reaches it may use the model",
        )
    if (asked.certificate is None) != (asked.key is None):
        raise ConfigError("certificate and key go together", where="--tls-cert, --tls-key")
    tokens = None if asked.tokens is None else read_tokens(asked.tokens)
    name, version, folder = _found(model, project)
    say(f"loading {name}@{version}")
    watched: dict[str, Any] = {}
    if asked.monitor is not None:
        seen = watch(_named(asked.monitor, asked.endpoint), version, f"{name}@{version}", project, say)
        watched = {"monitor": seen[0], "baseline": seen[1]}
    settings = Settings(
        name=name, version=version, host=asked.host, port=asked.port, threads=asked.threads,
        endpoint=asked.endpoint, tokens=tokens, rate=asked.rate, certificate=asked.certificate, key=asked.key,
        notice_s=asked.notice_s, drain_s=asked.drain_s, limits=_limits(asked.limits), say=say,
        **watched,
    )  # fmt: skip
    serve(settings, lambda: _offer(folder, asked.runtime, asked.threads, say))


def _serve_command(model: str, project: ProjectRef, asked: ServeOptions, say: Callable[[str], None]) -> None:
    """Serve by a program that is not ours; `{model}` in its command is the model's folder."""
    from hpcmass.serve.command import Wrapped, serve_command
    from hpcmass.serve.interfaces import LOOPBACK

    assert asked.command is not None
    ours = {
        "--tokens": asked.tokens, "--tls-cert": asked.certificate, "--tls-key": asked.key,
        "--rate": asked.rate, "--monitor": asked.monitor,
        **{f"limit {name}": value for name, value in asked.limits.items()},
    }  # fmt: skip
    if given := [name for name, value in ours.items() if value is not None]:
        raise ConfigError(
            "requests go to the command itself, which lets in whom it likes", where=", ".join(given),
            hint="set it in the command, or at the gateway",
        )  # fmt: skip
    if asked.host not in LOOPBACK and not asked.anybody:
        raise ConfigError(
            f"{asked.host} can be reached from other machines, and only the command can ask for tokens",
            where="--host", hint="give --anybody where the command asks for its own, or everyone may use it",
        )  # fmt: skip
    try:
        name, version, folder = _found(model, project)
    except NotFound:
        if "{model}" in asked.command:
            raise
        name, version, folder = check_name(model), "1", None  # the command has its model from elsewhere
    place = None if folder is None else folder.absolute()
    wrapped = Wrapped(
        name=name, version=version, command=asked.command, model=place, host=asked.host, port=asked.port,
        health=asked.health, ready_s=asked.ready_s, endpoint=asked.endpoint, notice_s=asked.notice_s,
        drain_s=asked.drain_s, say=say,
    )  # fmt: skip
    serve_command(wrapped)


def _offer(folder: Path, runtime: str, threads: int, say: Callable[[str], None]) -> Offer:
    """What can compute a model: what trained it, and ONNX Runtime where the model has a form in ONNX.

    Raises:
        ConfigError: What was asked for is not there.
    """
    from hpcmass.serve.choice import Offer
    from hpcmass.serve.runners import BundleRunner, OnnxRunner, load_runner
    from hpcmass.train.bundle import read_bundle

    own = load_runner(folder, threads)
    if not isinstance(own, BundleRunner):
        if runtime == "torch":
            raise ConfigError("an ONNX file is run by ONNX Runtime alone", where="--runtime torch")
        return Offer((own,), "it is an ONNX file")
    if runtime == "torch":
        return Offer((own,), "it was asked for")
    say("looking for its form in ONNX, which is made at the first time")
    try:
        other = OnnxRunner(read_bundle(onnx_form(folder)), threads)
    except (HpcmassError, OSError) as error:
        why = error.message if isinstance(error, HpcmassError) else str(error)
        if runtime == "onnxruntime":
            raise ConfigError(f"ONNX Runtime cannot run it: {why}", where="--runtime onnxruntime") from error
        return Offer((own,), f"ONNX Runtime cannot run it: {why}")
    return Offer((own, other), forced=runtime == "onnxruntime")


def _named(asked: MonitorOptions, endpoint: Path | None) -> MonitorOptions:
    """With the replica's name that a deployment gave it: that of its folder."""
    if asked.replica is not None or endpoint is None or endpoint.absolute().parent.parent.name != "replicas":
        return asked
    return replace(asked, replica=endpoint.absolute().parent.name)


def _limits(asked: dict[str, float]) -> Limits:
    from dataclasses import fields

    from hpcmass.serve.interfaces import Limits

    whole = {one.name for one in fields(Limits) if isinstance(one.default, int)}
    values: dict[str, Any] = {}
    for name, value in asked.items():
        if value <= 0:
            raise ConfigError(f"is {value:g}, not more than 0", where=name)
        values[name] = int(value) if name in whole else value
    return Limits(**values)


def _found(model: str, project: ProjectRef) -> tuple[str, str, Path]:
    """The model's name, its version (`1` of what is not in the catalogue), and its bundle, verified."""
    found = maybe_project(project)
    meant = resolve_bundle(model, found)
    name, at, number = meant.told.partition("@")
    if at and number.isdigit() and found is not None:
        catalogue = Catalogue(found.catalogue)
        version = catalogue.get(meant.told)
        return name, number, _verified(catalogue, version, meant.folder)
    where = meant.run or meant.folder
    return check_name(where.absolute().name), "1", meant.folder


def _verified(catalogue: Catalogue, version: Version, folder: Path) -> Path:
    """The version's files out of the user's cache, fetched anew where one does not fit its digest."""
    if any(sha256_file(folder / name) != entry.sha256 for name, entry in version.files.items()):
        shutil.rmtree(folder, ignore_errors=True)
        return cached(catalogue, version)
    return folder
