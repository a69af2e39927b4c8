"""The state file of a cluster: its settings, and the processes that were started for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hpcmass.devcluster.processes import Process
from hpcmass.devcluster.settings import Settings
from hpcmass.errors import CorruptError
from hpcmass.files import read_json, replace_json

FORMAT = 1
FILE = "state.json"


@dataclass
class State:
    """What is known of a cluster; saved after every process that is started or ended."""

    settings: Settings
    processes: dict[str, Process] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> State | None:
        """Read it, or None where no cluster was ever started in this folder.

        Raises:
            CorruptError: The file is not what this version writes.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            value = read_json(path)
            if value["format"] > FORMAT:
                raise CorruptError("was written by a newer hpcmass", where=path)
            processes = {name: Process(**each) for name, each in value["processes"].items()}
            return cls(Settings.from_json(value["settings"]), processes)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"is not the state of a development cluster ({error})", where=path) from error

    def save(self) -> None:
        """Write it as a whole."""
        replace_json(
            self.settings.folder / FILE,
            {
                "format": FORMAT,
                "settings": self.settings.to_json(),
                "processes": {name: process.to_json() for name, process in self.processes.items()},
            },
        )

    def alive(self, name: str) -> bool:
        """Whether the process of this name lives."""
        return name in self.processes and self.processes[name].alive
