"""Floor 1: project, job and site files: load, validate, explain.

The names below are imported when first used: making all the models takes a third of a quick command's time, and
one that only looks at runs needs none but the project's.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcmass.config.duration import parse_duration, slurm_time
    from hpcmass.config.explain import nearest
    from hpcmass.config.job import Job, TrainTable
    from hpcmass.config.layout import Layout, layout_of
    from hpcmass.config.load import (
        as_job,
        job_differences,
        job_from_values,
        job_to_toml,
        job_with,
        load_job,
        load_site,
        read_run_job,
        site_to_toml,
    )
    from hpcmass.config.project import Project
    from hpcmass.config.resources import Resources, Target
    from hpcmass.config.site import Site
    from hpcmass.config.sweep import SweepTable

_WHERE = {
    "Job": "hpcmass.config.job",
    "Layout": "hpcmass.config.layout",
    "Project": "hpcmass.config.project",
    "Resources": "hpcmass.config.resources",
    "Site": "hpcmass.config.site",
    "SweepTable": "hpcmass.config.sweep",
    "Target": "hpcmass.config.resources",
    "TrainTable": "hpcmass.config.job",
    "as_job": "hpcmass.config.load",
    "job_differences": "hpcmass.config.load",
    "job_from_values": "hpcmass.config.load",
    "job_to_toml": "hpcmass.config.load",
    "job_with": "hpcmass.config.load",
    "layout_of": "hpcmass.config.layout",
    "load_job": "hpcmass.config.load",
    "load_site": "hpcmass.config.load",
    "nearest": "hpcmass.config.explain",
    "parse_duration": "hpcmass.config.duration",
    "read_run_job": "hpcmass.config.load",
    "site_to_toml": "hpcmass.config.load",
    "slurm_time": "hpcmass.config.duration",
}

__all__ = [
    "Job",
    "Layout",
    "Project",
    "Resources",
    "Site",
    "SweepTable",
    "Target",
    "TrainTable",
    "as_job",
    "job_differences",
    "job_from_values",
    "job_to_toml",
    "job_with",
    "layout_of",
    "load_job",
    "load_site",
    "nearest",
    "parse_duration",
    "read_run_job",
    "site_to_toml",
    "slurm_time",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'hpcmass.config' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
