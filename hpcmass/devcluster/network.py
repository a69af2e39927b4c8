"""A network namespace a node, joined by a bridge; and what makes a process a node of its own. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from hpcmass.devcluster.nodes import NODES
from hpcmass.devcluster.packages import NETWORK, missing_packages, program
from hpcmass.devcluster.settings import Settings
from hpcmass.errors import LaunchError

# What becomes process 1 of a node. One SIGKILL to the unshare above it ends all that runs on the node.
# Process numbers begin anywhere: Open MPI names its folders in /tmp, which the nodes share, by them alone, and
# a daemon that finds its number taken ends with 213.
_NODE = """set -e
hostname "$1"
mount --bind "$2/etc/hosts" /etc/hosts
[ ! -e /etc/resolv.conf ] || mount --bind "$2/etc/resolv.conf" /etc/resolv.conf
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
first=$(($(od -An -N2 -tu2 /dev/urandom) % 28000 + 1000))
{ echo "$first" > /proc/sys/kernel/ns_last_pid; } 2>/dev/null || true
shift 2
"$@" &
wait
"""


def possible() -> bool:
    """Whether this process may make namespaces (root may not inside many containers)."""
    if os.getuid() != 0 or missing_packages([NETWORK]):
        return False
    unshare = [program("unshare") or "unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork"]
    tried = subprocess.run([*unshare, "--mount-proc", "true"], capture_output=True, check=False)
    return tried.returncode == 0 and _ip("netns", "list").returncode == 0


def free(subnet: str) -> bool:
    """Whether no interface and no route of this machine knows the subnet."""
    said = _ip("-4", "-o", "address", "show").stdout + _ip("-4", "route", "show", "table", "all").stdout
    return f" {subnet}." not in f" {said}".replace("\n", " ")


def up(s: Settings) -> None:
    """Make the bridge and the namespaces of a cluster.

    Raises:
        LaunchError: `ip` refused.
    """
    down(s)
    bridge = f"{s.tag}br"
    lines = [
        f"link add {bridge} type bridge",
        f"address add {s.controller_address}/24 dev {bridge}",
        f"link set {bridge} up",
    ]
    for node in NODES:
        name = f"{s.tag}-{node.name}"
        lines += [
            f"netns add {name}",
            f"link add v{name} type veth peer name eth0 netns {name}",
            f"link set v{name} master {bridge} up",
        ]
    _batch(lines)
    for index, node in enumerate(NODES):
        _batch(
            [
                f"address add {s.node_address(index)}/24 dev eth0",
                "link set eth0 up",
                "link set lo up",
                f"route add default via {s.controller_address}",
            ],
            inside=f"{s.tag}-{node.name}",
        )


def down(s: Settings) -> None:
    """Remove what `up` made, or what is left of it."""
    for node in NODES:
        _ip("link", "del", f"v{s.tag}-{node.name}")
        _ip("netns", "del", f"{s.tag}-{node.name}")
    _ip("link", "del", f"{s.tag}br")


def processes_of(s: Settings, node: str) -> list[int]:
    """Pids of all that runs on a node."""
    return [int(pid) for pid in _ip("netns", "pids", f"{s.tag}-{node}").stdout.split()]


def as_node(s: Settings, node: str, command: Sequence[str]) -> list[str]:
    """The argv that runs a command as process 1's child of a node, with everything of its own but the disk."""
    inside = ["ip", "netns", "exec", f"{s.tag}-{node}"]
    unshare = ["unshare", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return [*inside, *unshare, "sh", "-c", _NODE, "sh", node, str(s.folder), *command]


def _ip(*words: str, lines: str | None = None) -> subprocess.CompletedProcess[str]:
    argv = [program("ip") or "ip", *words]
    return subprocess.run(argv, input=lines, capture_output=True, text=True, check=False)


def _batch(lines: Sequence[str], inside: str | None = None) -> None:
    where = ["-n", inside] if inside else []
    done = _ip(*where, "-batch", "-", lines="\n".join([*lines, ""]))
    if done.returncode != 0:
        raise LaunchError(
            "the nodes' network cannot be made",
            hint="without namespaces: hpcmass slurm up --no-namespaces",
            stderr=done.stderr,
            detail=done.stderr.strip()[:300],
        )
