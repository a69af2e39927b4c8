"""A study on CPU and GPU targets of a real Slurm at once, held against what is seen from outside."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import Driver, blocks, check_slots, places, slots, until, write_job

from hpcmass.sweep.records import read_trials

pytestmark = pytest.mark.slurm


def site_of(cluster, project, **keys):
    """The cluster's site file with further keys for its cpu and gpu targets."""
    text = cluster.site_file.read_text()
    lines = "".join(f"{name} = {value}\n" for name, value in keys.items())
    for name in ("cpu", "gpu"):
        text = text.replace(f'partition = "{name}"\n', f'partition = "{name}"\n{lines}')
    file = project / "site.toml"
    file.write_text(text)
    return str(file)


def test_a_sweep_uses_cpu_and_gpu_nodes_and_gives_no_slot_twice(cluster, project):
    site = site_of(cluster, project)
    job = write_job(project, trials=14, parallel=10, targets=["cpu", "gpu"], steps=3, pause_s=0.3)
    driver = Driver(project, "sweep", str(job), "--site", site, env=cluster.env)
    assert driver.wait(200) == 0, driver.output
    study = project / "studies" / "where"
    assert [outcome.state for _, outcome in read_trials(study)] == ["complete"] * 14, driver.output
    held = slots(study)
    assert {each["target"] for each in held} == {"cpu", "gpu"}
    for each in held:
        assert (each["host"][:2], each["gpus"] is not None) == (("cn", False), ("gn", True))[
            each["target"] == "gpu"
        ]
    assert {s["gpus"] for s in held if s["target"] == "gpu"} <= {"0", "1"}
    assert len(places(study)) == 14 * 3
    check_slots(study, cluster)
    assert blocks(cluster) == []
