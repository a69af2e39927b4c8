"""Where plain processes meet: MASTER_ADDR and MASTER_PORT."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Mapping

from hpcmass.errors import LaunchError
from hpcmass.launch.plan import LaunchPlan, keeper

_ASK_S = 120


def meeting_place(plan: LaunchPlan, env: Mapping[str, str]) -> dict[str, str]:
    """MASTER_ADDR, the node of rank 0, and MASTER_PORT, a port that is free there at this moment.

    Raises:
        LaunchError: Rank 0 is to run elsewhere, and that node does not answer.
    """
    if not plan.nodes:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port("127.0.0.1"))}
    first = plan.nodes[0]
    if plan.host == first:
        return {"MASTER_ADDR": node_address(first), "MASTER_PORT": str(free_port(""))}
    return {"MASTER_ADDR": first, "MASTER_PORT": str(_ask(first, env))}


def node_address(node: str) -> str:
    """The name by which this node is reached: Slurm's, or this machine's where that is none ("" or unknown)."""
    if not node:
        return socket.gethostname()
    with contextlib.suppress(OSError):
        socket.getaddrinfo(node, None)
        return node
    return socket.gethostname()


def _ask(node: str, env: Mapping[str, str]) -> int:
    """Ask a node for a free port. It takes a moment of a core beside whatever runs there: `--overlap`."""
    words = ["srun", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--overlap", "--mpi=none", "--export=ALL"]
    argv = [*words, "--input=none", *keeper()[:-1], "port"]
    try:
        done = subprocess.run(argv, env=dict(env), capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"node {node} cannot be asked for a port: {error}", where="MASTER_PORT") from error
    port = next((line[5:] for line in done.stdout.splitlines() if line.startswith("port ")), "")
    if not port.isdigit():
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise LaunchError(
            f"node {node} cannot be asked for a port: {said}", where="MASTER_PORT", transient=True
        )
    return int(port)


def free_port(address: str) -> int:
    """A TCP port of this machine that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
