"""What one development cluster is made with, and the addresses and paths that follow from it. Pure."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hpcmass.devcluster.nodes import NODES
from hpcmass.errors import ConfigError

# A socket's address has room for 107 bytes; the longest socket of ours is FOLDER/run/munge.sock.
_LONGEST_FOLDER = 90
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._+/-]*")
FIRST_PORT = 21000
PORTS_EACH = 20
SLOTS = 200


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the files of a cluster say.

    Attributes:
        folder: The cluster's own folder: configuration, logs, state, sockets.
        slot: Which of the machine's places for clusters it holds; ports and addresses follow from it.
        user: The user that all daemons run as.
        host: This machine's hostname, without its domain.
        network: Whether each node has a network namespace, address and hostname of its own (needs root).
        accounting: Whether slurmdbd and a MariaDB of its own run.
        grace_s: Seconds between the warning and the end of a preempted job.
        slurmd_timeout_s: Seconds without an answer after which a node is down.
        plugins: Slurm's plugin folder.
        version: Slurm's version, such as (22, 5).
    """

    folder: Path
    slot: int
    user: str
    host: str
    network: bool
    accounting: bool
    grace_s: int = 0
    slurmd_timeout_s: int = 10
    plugins: str = ""
    version: tuple[int, int] = (22, 5)

    @property
    def subnet(self) -> str:
        """The first three numbers of the nodes' addresses."""
        return f"10.213.{self.slot}"

    @property
    def tag(self) -> str:
        """The beginning of the names of its namespaces and interfaces (15 characters at most with the rest)."""
        return f"hm{self.slot}"

    @property
    def controller_address(self) -> str:
        """Where slurmctld and slurmdbd are reached by the nodes."""
        return f"{self.subnet}.1" if self.network else "127.0.0.1"

    @property
    def controller_port(self) -> int:
        """Port of slurmctld."""
        return FIRST_PORT + self.slot * PORTS_EACH

    @property
    def accounting_port(self) -> int:
        """Port of slurmdbd."""
        return self.controller_port + 1

    @property
    def database_port(self) -> int:
        """Port of MariaDB, open to this machine only."""
        return self.controller_port + 2

    def node_address(self, index: int) -> str:
        """Address of a node by its place in `NODES`."""
        return f"{self.subnet}.{11 + index}" if self.network else "127.0.0.1"

    def node_port(self, index: int) -> int:
        """Port of a node's slurmd by its place in `NODES`."""
        return self.controller_port + 3 + index

    @property
    def ports(self) -> tuple[int, ...]:
        """All ports that the cluster listens on by configuration."""
        daemons = (self.controller_port, self.accounting_port, self.database_port)
        return (*daemons, *(self.node_port(i) for i in range(len(NODES))))

    @property
    def slurm_conf(self) -> Path:
        """The file that SLURM_CONF names."""
        return self.folder / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """Where this cluster's own munged listens."""
        return self.folder / "run" / "munge.sock"

    @property
    def database_socket(self) -> Path:
        """Where this cluster's own MariaDB listens."""
        return self.folder / "run" / "mysql.sock"

    def log(self, daemon: str) -> Path:
        """What a daemon says on its standard output and error."""
        return self.folder / "log" / f"{daemon}.out"

    def to_json(self) -> dict[str, Any]:
        """As the state file holds it."""
        return {**asdict(self), "folder": str(self.folder), "version": list(self.version)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Settings:
        """Back from the state file; keys of a later version are left aside."""
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        return cls(**{**known, "folder": Path(value["folder"]), "version": tuple(value["version"])})


def check_folder(folder: Path) -> Path:
    """The folder as an absolute path, if Slurm's configuration and Unix sockets can name it.

    Raises:
        ConfigError: It is too long, or holds what slurm.conf would read as something else.
    """
    path = folder.absolute()
    if not _PLAIN_PATH.fullmatch(str(path)):
        raise ConfigError(
            "the cluster's folder may hold only letters, digits and . _ + - / (slurm.conf knows no quotes)",
            where=path,
            hint="name another one: hpcmass slurm up --folder FOLDER",
        )
    if len(str(path)) > _LONGEST_FOLDER:
        raise ConfigError(
            f"the cluster's folder may have {_LONGEST_FOLDER} characters at most, for the sake of its sockets",
            where=path,
            hint="name a shorter one: hpcmass slurm up --folder FOLDER",
        )
    return path
