"""hpcmass: train, search, catalogue and use masses of models on a supercomputer, with no server.

The names below are imported when first used, so that `import hpcmass` stays light. The functions are called
`train_job` and `run_sweep`, since `hpcmass.train` and `hpcmass.sweep` are the packages.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmass.config import Job, Project
    from hpcmass.data import open_dataset
    from hpcmass.errors import HpcmassError
    from hpcmass.runs import report, should_stop
    from hpcmass.workflow.api import load, run_sweep, train_job
    from hpcmass.workflow.site import Site
    from hpcmass.workflow.writing import ShardWriter

__version__ = "0.1.0"

_WHERE = {
    "HpcmassError": "hpcmass.errors",
    "Job": "hpcmass.config",
    "Project": "hpcmass.config",
    "ShardWriter": "hpcmass.workflow.writing",
    "Site": "hpcmass.workflow.site",
    "load": "hpcmass.workflow.api",
    "open_dataset": "hpcmass.data",
    "report": "hpcmass.runs",
    "should_stop": "hpcmass.runs",
    "run_sweep": "hpcmass.workflow.api",
    "train_job": "hpcmass.workflow.api",
}

__all__ = [
    "HpcmassError",
    "Job",
    "Project",
    "ShardWriter",
    "Site",
    "__version__",
    "load",
    "open_dataset",
    "report",
    "run_sweep",
    "should_stop",
    "train_job",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'hpcmass' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
