"""A study on CPU and GPU targets of a real Slurm at once, held against what is seen from outside."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import Driver, blocks, check_slots, places, queue, site_of, slots, until, write_job

from hpcmass.sweep.records import read_trials

pytestmark = pytest.mark.slurm


def test_a_sweep_uses_cpu_and_gpu_nodes_and_gives_no_slot_twice(cluster, project):
    site = site_of(
        cluster, project, max_blocks=1
    )  # with less room than there are trials, so that the other is needed
    job = write_job(project, trials=10, parallel=10, targets=["cpu", "gpu"], way="meet")
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    assert driver.wait() == 0, driver.output
    study = project / "studies" / "where"
    assert [outcome.state for _, outcome in read_trials(study)] == ["complete"] * 10, driver.output
    held = slots(study)
    assert {each["target"] for each in held} == {"cpu", "gpu"}
    for each in held:
        assert (each["host"][:2], each["gpus"] is not None) == (("cn", False), ("gn", True))[
            each["target"] == "gpu"
        ]
    assert {s["gpus"] for s in held if s["target"] == "gpu"} <= {"0", "1"}
    assert len(places(study)) == 10 * 3
    check_slots(study, cluster)
    assert blocks(cluster) == []


def test_the_driver_of_a_new_study_is_a_job(cluster, project):
    site = site_of(cluster, project)
    job = write_job(project, trials=2, parallel=2)
    begun = Driver(project, "sweep", str(job), "--site", site, "--driver", "job", env=cluster.env)
    assert begun.wait() == 0, begun.output
    (number,) = re.findall(r"the driver is job (\d+)", begun.output)
    until(lambda: [number] not in queue(cluster, "%A"), 600, "the driver's end")
    study = project / "studies" / "where"
    told = "".join(file.read_text() for file in (study / "driver").glob("out-*.log"))
    assert [outcome.state for _, outcome in read_trials(study)] == ["complete"] * 2, told
    assert len(places(study)) == 2 * 3
