"""Floor 1: project, job and site files: load, validate, explain."""

from hpcmass.config.explain import nearest
from hpcmass.config.job import Job, SweepTable, TrainTable
from hpcmass.config.load import (
    job_differences,
    job_from_values,
    job_to_toml,
    job_with,
    load_job,
    load_site,
    site_to_toml,
)
from hpcmass.config.project import Project, require_writable
from hpcmass.config.resources import Resources, Target
from hpcmass.config.site import Site

__all__ = [
    "Job",
    "Project",
    "Resources",
    "Site",
    "SweepTable",
    "Target",
    "TrainTable",
    "job_differences",
    "job_from_values",
    "job_to_toml",
    "job_with",
    "load_job",
    "load_site",
    "nearest",
    "require_writable",
    "site_to_toml",
]
