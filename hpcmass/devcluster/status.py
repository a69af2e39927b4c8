"""What lives of a cluster, and where one lies by default."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def default_folder() -> Path:
    """Where the cluster lies if nothing else is said: `HPCMASS_DEVCLUSTER`, or a folder of the user's in /tmp.

    On the local disk, because of its sockets and its database.
    """
    return Path(os.environ.get("HPCMASS_DEVCLUSTER") or f"/tmp/hpcmass-devcluster-{os.getuid()}")


@dataclass(frozen=True)
class ClusterStatus:
    """What lives of a cluster.

    Attributes:
        daemons: Name → whether its process lives, nodes apart.
        nodes: Node → whether its slurmd lives.
        states: Node → what slurmctld says of it (`idle`, `down*` …); empty where it does not answer.
        jobs: How many jobs are pending or running; None where slurmctld does not answer.
    """

    daemons: dict[str, bool]
    nodes: dict[str, bool]
    states: dict[str, str]
    jobs: int | None

    @property
    def up(self) -> bool:
        """Whether everything lives and answers."""
        return all(self.daemons.values()) and all(self.nodes.values()) and bool(self.states)

    @property
    def down(self) -> bool:
        """Whether nothing lives."""
        return not any(self.daemons.values()) and not any(self.nodes.values())
