"""The command of one replica of a deployment, and the token that its gateway asks it with."""

from __future__ import annotations

import os
from pathlib import Path

from hpcmass.files import storage_errors
from hpcmass.launch import hpcmass_command
from hpcmass.serve.deployment import Asked, Deployment
from hpcmass.serve.tokens import new_token


def replica_command(
    asked: Asked, model: str, folder: Path, root: Path, tokens: Path, *, host: str
) -> list[str]:
    """The words of `hpcmass serve` for one replica.

    Args:
        asked: Its deployment.
        model: What it serves.
        folder: Its folder.
        root: The project's.
        tokens: The file of the one token that is let in: the gateway's.
        host: Where it listens.
    """
    words = [*hpcmass_command(), "serve", model, "--host", host, "--port", "0"]
    words += ["--endpoint", str(folder / "endpoint.json"), "--notice", "0.5", "--project", str(root)]
    if "--command" in asked.serve:  # another program: it knows nothing of our tokens, limits and monitor
        return [*words, *(["--anybody"] if asked.gateway.get("anybody") else []), *asked.serve]
    words += ["--tokens", str(tokens), "--latency-ms", f"{asked.slo_p99_ms:g}"]
    words += ["--monitor", str(folder.parents[1] / "monitor")]
    return [*words, *asked.serve]


def gateway_token(deployment: Deployment) -> tuple[str, Path]:
    """The token between gateway and replicas, made where there is none, and the file of its digest.

    Only the deployment's owner can read the token itself.
    """
    secret, digests = deployment.path / "gateway" / "token", deployment.path / "gateway" / "tokens"
    if not secret.exists():
        with deployment.alone(), storage_errors(secret, "keep the gateway's token"):
            if not secret.exists():
                _make(secret, digests)
    with storage_errors(secret, "read the gateway's token"):
        return secret.read_text(encoding="ascii").strip(), digests


def _make(secret: Path, digests: Path) -> None:
    fresh = secret.with_name(f".token-{os.getpid()}")
    lines = fresh.with_suffix(".sums")
    for left in (fresh, lines):
        left.unlink(missing_ok=True)
    token = new_token("gateway", lines)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(token)
        os.fsync(file.fileno())
    os.replace(lines, digests)
    os.replace(fresh, secret)
