"""The script of docs/parsl.md, word for word on a real Slurm; and one that is killed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from parsl_toys import blocks, tagged_processes, until

from hpcmass.config import Project
from hpcmass.files import read_json, read_records
from hpcmass.runs import RunFolder
from hpcmass.workflow.registry import open_catalogue

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).parents[2]


def shown() -> tuple[str, str, str]:
    """What a user types before, the script, and what is typed after."""
    text = (ROOT / "docs" / "parsl.md").read_text().partition("## A script of your own\n")[2]
    before, script, after = re.findall(r"^```(?:bash|python)\n(.*?)^```$", text, re.M | re.S)[:3]
    assert "parsl_config" in script
    return before, script, after


@pytest.fixture
def shell(cluster, tmp_path):
    """Runs a shell's lines in a copy of what a checkout has for it, with the environment's programs."""
    (tmp_path / "site-configs").symlink_to(ROOT / "site-configs")
    path = os.pathsep.join([str(Path(sys.executable).parent), cluster.env["PATH"]])
    env = {**cluster.env, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def run(lines, log="log"):
        with open(tmp_path / log, "w") as out:
            return subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", lines], env=env, cwd=tmp_path, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    return run


@pytest.mark.timeout(1000)
def test_the_script_of_the_documentation(cluster, shell, tmp_path):
    before, script, after = shown()
    root, log = tmp_path / "digits", tmp_path / "log"
    assert shell(before).wait(300) == 0, log.read_text()
    (root / "compare.py").write_text(script)
    begun = shell(f"{before.splitlines()[0]}\ncd digits\n{after}")
    assert begun.wait(900) == 0, log.read_text()
    output = log.read_text()
    (best,) = re.findall(r"^best width: (\d+)$", output, re.M)
    assert "registered: digits@1\n" in output
    project = Project(root)
    version = open_catalogue(project).get("digits@1")
    assert version.lineage["run"] == str(root / "runs" / "final")
    assert version.lineage["job"]["params"]["width"] == int(best)
    small, large = (slot_of(root, f"width-{width}") for width in (16, 128))
    assert (small["target"], small["gpus"]) == ("cpu", None)
    assert (large["target"], large["gpus"] in ("0", "1")) == ("gpu", True)
    final = RunFolder(root / "runs" / "final")
    ranks = read_json(final.path / "ranks" / "attempt-1.json")["ranks"]
    assert len({rank["host"] for rank in ranks}) == 2, ranks
    job = slot_of(root, "final")["job_id"]  # Slurm says the same of that block.
    if cluster.has_accounting:
        until(
            lambda: cluster.run("sacct", "-j", job, "-X", "-n", "-o", "NNodes").stdout.split() == ["2"],
            180,
            job,
        )
    until(lambda: blocks(cluster) == [], 180, "it left blocks")


def slot_of(root, run):
    (begin,) = [r for r in read_records(root / "runs" / run / "slots.jsonl") if r["kind"] == "begin"]
    return begin


KILLED = """
import os, sys, time
from pathlib import Path
import parsl
import hpcmass

@parsl.python_app(executors=["cpu"])
def item(folder, number, seconds):
    import os, time
    with open(os.path.join(folder, f"began-{number}"), "a") as log:
        log.write(os.environ["HPCMASS_BLOCK_JOB"] + chr(10))
    time.sleep(seconds)
    return number

site = hpcmass.Site.load()
with parsl.load(site.parsl_config(run_dir="parsl", targets=["cpu"], poll_s=2.0)):
    found = [item(os.getcwd(), number, float(sys.argv[1])) for number in range(3)]
    print("sum", sum(future.result() for future in found))
"""


def test_a_script_whose_interchange_is_gone_ends_and_gives_its_blocks_back(cluster, shell, tmp_path):
    # As where a signal goes to the whole process group.
    gone = "    gone = parsl.dfk().executors['cpu'].interchange_proc\n    gone.kill()\n    gone.wait()\n"
    head, _ = KILLED.split("    found = ")
    script = head + "    item(os.getcwd(), 0, 0).result()\n" + gone
    (tmp_path / "items.py").write_text(script + "print('ended in order')\n")
    process = shell(f"export HPCMASS_SITE={cluster.site_file}\nexec python items.py")
    assert process.wait(500) == 0, (tmp_path / "log").read_text()
    assert "ended in order" in (tmp_path / "log").read_text()
    until(lambda: blocks(cluster) == [], 180, "it left blocks")


@pytest.mark.soak
def test_a_script_killed_with_9_leaves_neither_block_nor_process(cluster, shell, tmp_path):
    (tmp_path / "items.py").write_text(KILLED)
    site = f"export HPCMASS_SITE={cluster.site_file}\nexec python items.py "
    process = shell(site + "3600")
    until(lambda: len(list(tmp_path.glob("began-*"))) == 3, 240, (tmp_path / "log").read_text)
    assert blocks(cluster)
    assert tagged_processes(tmp_path)  # The interchange, and the workers.
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: blocks(cluster) == [], 180, "it left blocks")
    until(lambda: tagged_processes(tmp_path) == [], 180, lambda: f"it left {tagged_processes(tmp_path)}")


@pytest.mark.soak
def test_an_item_whose_block_is_lost_runs_again_at_no_cost_to_its_retries(cluster, shell, tmp_path):
    script = KILLED.replace("poll_s=2.0", "poll_s=2.0, retries=0")
    (tmp_path / "items.py").write_text(script)
    process = shell(f"export HPCMASS_SITE={cluster.site_file}\nexec python items.py 20")
    until(lambda: len(list(tmp_path.glob("began-*"))) == 3, 240, (tmp_path / "log").read_text)
    lost = blocks(cluster)
    cluster.run("scancel", *lost)
    assert process.wait(300) == 0, (tmp_path / "log").read_text()
    assert "sum 3" in (tmp_path / "log").read_text()
    for file in tmp_path.glob("began-*"):
        first, *more = file.read_text().split()
        assert first in lost
        assert more
        assert not set(more) & set(lost)
