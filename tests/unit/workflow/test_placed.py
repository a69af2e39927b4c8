"""Where a run's ranks go in a Slurm job, by what sbatch was asked for, with and without a site file."""

from __future__ import annotations

from typing import Any

import pytest

from hpcmass.config import Resources, Site, Target, job_from_values
from hpcmass.errors import ConfigError
from hpcmass.workflow.placed import Placed, place_ranks
from hpcmass.workflow.targets import target_here

TARGET = Target(kind="slurm", cores=4)


def job(cpus: str, tasks: int, per_task: int | None = None, nodes: str = "cn[1-2]") -> dict[str, str]:
    env = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": nodes, "SLURM_JOB_CPUS_PER_NODE": cpus,
        "SLURM_NTASKS": str(tasks), "SLURMD_NODENAME": "cn1",
    }  # fmt: skip
    return env if per_task is None else {**env, "SLURM_CPUS_PER_TASK": str(per_task)}


def shape(placed: Placed) -> tuple[int, int, int, int]:
    assert placed.layout is not None
    return placed.layout.nodes, placed.ranks, placed.layout.ranks_per_node, placed.layout.threads_per_rank


@pytest.mark.parametrize("target", [Target(), TARGET], ids=["no site file", "site file"])
@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (job("4(x2)", 4), (2, 4, 2, 2)),
        (job("2(x2)", 2, 2), (2, 2, 1, 2)),
        (job("4,2", 3, 2), (2, 3, 2, 2)),  # unequal parts: two ranks of two threads, and one
        (job("4,1", 5), (2, 5, 4, 1)),
        (job("4(x2)", 2, 2), (2, 2, 1, 2)),  # whole nodes: what was asked for a task counts
    ],
)
def test_what_sbatch_was_asked_for(env: dict[str, str], target: Target, expected: tuple[int, ...]) -> None:
    assert shape(place_ranks(Resources(), target, env=env)) == expected


def test_the_job_file_counts_before_sbatch() -> None:
    assert shape(place_ranks(Resources(ranks=2, threads_per_rank=1), TARGET, env=job("4(x2)", 2, 4))) == (
        2,
        2,
        1,
        1,
    )
    # Another number of ranks than tasks: their cores are shared out anew.
    assert shape(place_ranks(Resources(), TARGET, env=job("4(x2)", 2, 4), asked=4)) == (2, 4, 2, 2)


@pytest.mark.parametrize(
    ("env", "keys"),
    [(job("4,2", 3, 2), {"asked": 7}), (job("4,2", 4, 2), {}), (job("2(x2)", 2, 2), {"asked": 5})],
)
def test_too_many_are_refused(env: dict[str, str], keys: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"the Slurm job 7 \(2 nodes of 2"):
        place_ranks(Resources(), TARGET, env=env, **keys)


def test_one_node_without_a_site_file_has_the_cores_of_the_job() -> None:
    placed = place_ranks(Resources(), Target(), env=job("3", 1, 3, nodes="cn1"))
    assert (placed.layout, placed.target.cores) == (None, 3)
    assert place_ranks(Resources(), Target(), env={}).target.cores is None


@pytest.mark.parametrize(
    ("partition", "named", "expected"),
    [
        ("small", None, "small"),
        ("big", None, "big"),
        ("big-long", None, "big"),
        ("big", "small", "small"),  # what the job says counts
        (None, None, "small"),  # not in a Slurm job
    ],
)
def test_a_job_by_hand_runs_on_the_target_of_its_partition(
    partition: str | None, named: str | None, expected: str
) -> None:
    small = Target(kind="slurm", partition="small", cores=4)
    big = Target(kind="slurm", partition="big,big-long", cores=8, gpus=2)
    site = Site(name="here", default_target="small", targets={"small": small, "big": big})
    job = job_from_values({"name": "job", "command": ["true"], "resources": {"target": named} if named else {}})
    env = {"SLURM_JOB_PARTITION": partition} if partition else {}
    assert target_here(job, site, env) == site.targets[expected]


def test_a_partition_that_the_site_file_does_not_know_limits_nothing() -> None:
    site = Site(name="here", default_target="a", targets={"a": Target(kind="slurm", partition="a", cores=4)})
    job = job_from_values({"name": "job", "command": ["true"]})
    found = target_here(job, site, {"SLURM_JOB_PARTITION": "other"})
    assert (found.kind, found.cores) == ("local", None)
