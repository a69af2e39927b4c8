"""Floor 1: project, job and site files: load, validate, explain."""

from hpcmass.config.duration import parse_duration, slurm_time
from hpcmass.config.explain import nearest
from hpcmass.config.job import Job, SweepTable, TrainTable
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
