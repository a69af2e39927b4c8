"""Site files on a real Slurm: drafted, checked, probed; an environment checked there, and unpacked."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hpcmass import __version__
from hpcmass.cli.root import run
from hpcmass.config import Layout, Target, load_site
from hpcmass.devcluster import Cluster
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.submission import submit_script
from hpcmass.workflow.env_pack import pack
from hpcmass.workflow.sites import check_site_file, gather, init_site

pytestmark = pytest.mark.slurm


def gone(cluster: Cluster) -> None:
    """Wait until Slurm has no job: one that was cancelled is being ended for some moments."""
    until = time.monotonic() + 120
    while (done := cluster.run("squeue", "-h", "-o", "%i %T")).returncode != 0 or done.stdout.strip():
        assert "PENDING" not in done.stdout
        assert "RUNNING" not in done.stdout
        assert time.monotonic() < until, done
        time.sleep(0.2)


@pytest.mark.usefixtures("slurm_env")
def test_a_drafted_site_file_agrees_with_its_slurm(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    init_site(file)
    report = check_site_file(file)
    assert report.asked
    assert [finding for finding in report.findings if finding.wrong] == []
    assert bool(report.unknown) is not cluster.has_accounting
    targets = report.site.targets
    assert {"cpu", "gpu", "fpga"} < set(targets)
    assert (targets["gpu"].cores, targets["gpu"].gpus, targets["gpu"].max_nodes) == (8, 2, 2)
    assert targets["fpga"].gres == {"fpga": 1}
    assert {t.constraint for name, t in targets.items() if name.startswith("preempt")} == {"cpu", "gpu"}
    assert all(target.preemptible == name.startswith("preempt") for name, target in targets.items())
    assert run(["site", "check", str(file)]) == 0
    assert run(["site", "init", str(file)]) == 2  # never over a file that is there


@pytest.mark.usefixtures("slurm_env")
def test_the_clusters_own_site_file_is_right_and_planted_errors_are_found(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["site", "check", str(cluster.site_file)]) == 0
    text = cluster.site_file.read_text()
    planted = tmp_path / "planted.toml"
    planted.write_text(
        text.replace("cores = 8", "cores = 9")
        .replace('partition = "fpga"', 'partition = "fpgas"')
        .replace("max_nodes = 3", "max_nodes = 4")
        .replace("max_array_size = 5001", "max_array_size = 99999")
        .replace("preemptible = true", "preemptible = false")
    )
    capsys.readouterr()
    assert run(["site", "check", "--json", str(planted)]) == 1
    found = json.loads(capsys.readouterr().out)
    wrong = {
        (one["target"], one["key"], one["slurm"], one["write"]) for one in found["findings"] if one["wrong"]
    }
    partitions = "cpu, gpu, fpga, preempt"
    assert wrong == {
        ("", "max_array_size", "MaxArraySize=5001", "max_array_size = 5001"),
        ("cpu", "max_nodes", "3 nodes of this kind in cpu", "max_nodes = 3"),
        ("gpu", "cores", "8 cores on gn1", "cores = 8"),
        ("fpga", "partition", f"no such partition; there are: {partitions}", 'partition = "fpga"'),
        (
            "preempt",
            "preemptible",
            "PreemptMode=REQUEUE: jobs give way to those of cpu, gpu",
            "preemptible = true",
        ),
    }
    # Each is shown with its line of the file.
    lines = planted.read_text().splitlines()
    for one in found["findings"]:
        name, _, number = one["where"].rpartition(":")
        assert name == str(planted)
        assert one["key"] in lines[int(number) - 1] or one["target"] in lines[int(number) - 1]


@pytest.mark.usefixtures("slurm_env")
def test_a_site_file_is_held_against_the_limits_of_its_qos(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not cluster.has_accounting:
        pytest.skip("no slurmdbd and MariaDB here")
    short = ["short", "MaxWall=00:10:00", "MaxTRESPerJob=node=1"]
    assert cluster.run("sacctmgr", "-i", "add", "qos", *short).returncode == 0
    user = ["modify", "user", "where", f"user={getpass.getuser()}", "set"]
    try:
        cluster.run("sacctmgr", "-i", *user, "qos+=short")
        file = tmp_path / "site.toml"
        text = cluster.site_file.read_text().replace(
            'partition = "cpu"', 'partition = "cpu"\nqos = "short"\nmax_time = "1h"'
        )
        file.write_text(text)
        assert run(["site", "check", str(file)]) == 1
    finally:
        cluster.run("sacctmgr", "-i", *user, "qos-=short")
        cluster.run("sacctmgr", "-i", "delete", "qos", "short")
    shown = capsys.readouterr().out
    line = text.splitlines().index('max_time = "1h"') + 1
    assert f"{file}:{line}: wrong: [targets.cpu] max_time = 1h" in shown
    assert "Slurm: MaxWall=00:10:00 of QOS short" in shown
    assert 'write: max_time = "00:10:00"' in shown
    assert "Slurm: QOS short: 1 nodes a job" in shown


@pytest.mark.usefixtures("slurm_env")
def test_accounts_of_another_cluster_are_not_yours_here(cluster: Cluster) -> None:
    if not cluster.has_accounting:
        pytest.skip("no slurmdbd and MariaDB here")
    user = getpass.getuser()
    change = ("sacctmgr", "-i")
    before = gather(Slurm()).associations
    assert before
    try:
        assert cluster.run(*change, "add", "cluster", "elsewhere").returncode == 0
        assert cluster.run(*change, "add", "account", "foreign", "cluster=elsewhere").returncode == 0
        assert cluster.run(*change, "add", "user", user, "account=foreign", "cluster=elsewhere").returncode == 0
        known = cluster.run("sacctmgr", "-n", "show", "assoc", f"user={user}", "format=account").stdout
        assert "foreign" in known
        assert gather(Slurm()).associations == before
    finally:
        cluster.run(*change, "delete", "user", user, "account=foreign", "cluster=elsewhere")
        cluster.run(*change, "delete", "account", "foreign")
        cluster.run(*change, "delete", "cluster", "elsewhere")


@pytest.mark.mpi
@pytest.mark.usefixtures("slurm_env")
def test_targets_are_probed_and_what_was_found_is_written(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "site.toml"
    text = cluster.site_file.read_text()
    file.write_text(text.replace('launcher = "mpiexec"', 'launcher = "auto"'))
    words = ["site", "probe", str(file), "--target", "cpu", "--target", "gpu", "--ranks-per-node", "1"]
    code = run([*words, "--out", str(tmp_path / "probes"), "--write", "--json"])
    out = capsys.readouterr().out
    reports = {one["target"]: one["report"] for one in json.loads(out)}
    assert code == 0, out
    for name, nodes in (("cpu", {"cn1", "cn2", "cn3"}), ("gpu", {"gn1", "gn2"})):
        _is_whole(reports[name], nodes)
    (gpu,) = [one for one in reports["gpu"]["starts"] if one["launcher"] == "mpiexec"]
    assert all(place["visible"].get("CUDA_VISIBLE_DEVICES") for place in gpu["binding"])
    targets = load_site(file).targets
    for name in ("cpu", "gpu"):
        chosen = reports[name]["chosen"]
        assert (targets[name].launcher, targets[name].pmi) == (chosen["launcher"], chosen["pmi"])
    assert targets["fpga"].launcher == "auto"  # which was not probed
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert [comment for comment in comments if comment not in file.read_text()] == []


def _is_whole(report: dict[str, Any], nodes: set[str]) -> None:
    assert report["complete"]
    seen = {facts["node"] for facts in report["topology"]}
    assert len(seen) == 2
    assert seen < nodes or seen == nodes
    assert all(facts["cores"] >= 1 and facts["memory_gb"] > 0 for facts in report["topology"])
    starts = {one["name"].split(" (")[0]: one for one in report["starts"]}
    assert {"srun --mpi=none", "mpiexec"} <= set(starts)
    assert starts["mpiexec"]["right"], starts["mpiexec"]["verdict"]
    none = starts["srun --mpi=none"]
    assert (none["right"], none["verdict"]) == (False, "2 runs of one rank")
    speed = starts["mpiexec"]["measured"]["between nodes"]
    assert speed["latency_us"] > 0
    assert speed["bandwidth_gb_s"] > 0
    assert {place["node"] for place in starts["mpiexec"]["binding"]} == seen
    assert set(report["files"]) == {"shared folder", "node-local folder"}
    assert all(found["write_mb_s"] > 0 and found["creates_s"] > 0 for found in report["files"].values())
    assert report["torch"]["works"], report["torch"]
    assert report["torch"]["import_s"]["slowest"] >= report["torch"]["import_s"]["median"] > 0
    if find_spec("horovod") is not None:
        assert report["horovod"]["works"], report["horovod"]


@pytest.mark.usefixtures("slurm_env")
def test_a_target_that_cannot_be_probed_says_why_and_the_next_goes_on(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "site.toml"
    text = cluster.site_file.read_text()
    file.write_text(text + '\n[targets.nowhere]\nkind = "slurm"\npartition = "nowhere"\ncores = 1\n')
    assert cluster.run("scontrol", "update", "partitionname=fpga", "state=down").returncode == 0
    try:
        words = ["site", "probe", str(file), "--target", "nowhere", "--target", "fpga", "--json"]
        assert run([*words, "--out", str(tmp_path / "probes"), "--write"]) == 1
    finally:
        cluster.run("scontrol", "update", "partitionname=fpga", "state=up")
    found = {one["target"]: one["why"] for one in json.loads(capsys.readouterr().out)}
    assert "partition" in found["nowhere"]
    assert "PartitionDown" in found["fpga"]
    gone(cluster)
    assert "nowhere" in file.read_text()  # and nothing was written
    assert file.read_text().startswith(text)


@pytest.mark.usefixtures("slurm_env")
def test_a_probe_waits_its_time_for_a_node_that_is_drained(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on any busy machine, where some nodes are down or kept for others: it passes by itself."""
    drain = ["scontrol", "update", "nodename=fn1", "state=drain", "reason=test"]
    assert cluster.run(*drain).returncode == 0
    try:
        words = ["site", "probe", str(cluster.site_file), "--target", "fpga", "--json", "--wait", "12s"]
        assert run([*words, "--out", str(tmp_path / "probes")]) == 1
    finally:
        cluster.run("scontrol", "update", "nodename=fn1", "state=resume")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["why"].startswith("still waiting after "), found
    assert int(found["why"].split()[3]) >= 12
    gone(cluster)


@pytest.mark.usefixtures("slurm_env")
def test_the_environment_is_checked_on_a_compute_node(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["env", "check", "--site", str(cluster.site_file), "--target", "gpu", "--json"]
    code = run([*words, "--out", str(tmp_path)])
    lines = json.loads(capsys.readouterr().out)
    assert code == 0, lines
    assert {"ok"} <= {line["verdict"] for line in lines} <= {"ok", "note"}
    (paths,) = [line["found"] for line in lines if line["what"] == "paths"]
    assert "on gn" in paths
    # The node's GPUs are Slurm's alone: one was given, and torch cannot see it.
    (gpus,) = [line for line in lines if line["what"] == "torch and GPUs"]
    assert (gpus["verdict"], "torch sees 0 GPUs, 1 asked for" in gpus["found"]) == ("note", True)
    assert any("gpu:1" in file.read_text() for file in tmp_path.rglob("*.sbatch"))


@pytest.mark.usefixtures("slurm_env")
def test_a_check_that_cannot_start_says_what_slurm_says_and_ends(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        'name = "here"\ndefault_target = "cpu"\n[targets.cpu]\nkind = "slurm"\npartition = "cpu"\ncores = 1\n'
        'sbatch = { begin = "now+1hour" }\n'
    )
    words = ["env", "check", "--site", str(site), "--target", "cpu", "--out", str(tmp_path), "--wait", "15s"]
    assert run(words) != 0
    said = capsys.readouterr().err
    assert "cpu: waiting: BeginTime" in said
    assert "did not start in 15 s (BeginTime), and was cancelled" in said
    gone(cluster)


@pytest.fixture(scope="module")
def packed_env(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small environment with hpcmass in it, packed; the environment itself is gone."""
    root = tmp_path_factory.mktemp("packed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / "env")], check=True)
    (site,) = (root / "env").glob("lib/python*/site-packages")
    source = Path(__file__).parents[2]
    info = site / "hpcmass-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hpcmass\nVersion: {__version__}\n")
    (info / "top_level.txt").write_text("hpcmass\n")
    url = {"url": f"file://{source}", "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(url))
    (site / "__editable__.hpcmass.pth").write_text(f"{source}\n")
    # torch stays where it is: a gigabyte, which this test does not need in the archive.
    (site / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pack(root / "env", root / "env.tar")
    (root / "env").rename(root / "hidden")
    return root / "env.tar"


@pytest.mark.usefixtures("slurm_env")
def test_two_jobs_on_the_same_nodes_unpack_once_a_node(
    cluster: Cluster, packed_env: Path, tmp_path: Path
) -> None:
    from hpcmass.workflow.env_pack import packed_of

    # A folder of the node's own where nodes are hosts of their own, else one for all.
    scratch = f"/dev/shm/hpcmass-test-{os.getpid()}-{time.time_ns()}"
    target = Target(
        kind="slurm",
        partition="cpu",
        cores=4,
        environment=str(packed_env),
        scratch=scratch,
        sbatch={"nodelist": "cn1,cn2", "export": "NONE"},  # as some sites have it for everybody
    )
    code = (
        "import hpcmass, os, sys, subprocess; "
        "print('prefix', sys.prefix, hpcmass.__file__, os.__file__, flush=True); "
        "subprocess.run(['srun', '--mpi=none', sys.executable, '-c', 'import sys; print(\"rank\", sys.prefix)'])"
    )
    slurm, ids = Slurm(), []
    for number in (1, 2):
        spec = ScriptSpec(
            name=f"unpack-{number}",
            target=target,
            layout=Layout(2, 2, 1, 1, 0, None, 300),
            out=tmp_path / f"{number}",
            command=(sys.executable, "-c", code),
            signal_s=0,
            packed=packed_of(target),
            cwd=tmp_path,
        )
        ids.append(submit_script(render_script(spec), tmp_path / f"{number}", slurm=slurm))
    until = time.monotonic() + 500
    while not all(info.state.ended for info in slurm.jobs(ids).values()):
        assert time.monotonic() < until, slurm.jobs(ids)
        time.sleep(0.5)
    text = "".join(file.read_text() for file in tmp_path.glob("*/out-*.log"))
    lines = [line for line in text.splitlines() if line.startswith("hpcmass:")]
    unpacked = sorted(line.split()[1] for line in lines if "unpacked in" in line)
    reused = [line for line in lines if "is there already" in line]
    assert (len(unpacked), len(reused)) == ((2, 2) if cluster.has_network else (1, 3)), text
    if cluster.has_network:
        assert unpacked == ["cn1:", "cn2:"]
    for line in text.splitlines():
        if line.startswith(("prefix ", "rank ")):
            assert all(word.startswith(f"{scratch}/hpcmass-env-") for word in line.split()[1:]), line
    assert text.count("prefix ") == 2
    assert text.count("rank ") == 4
    cluster.run("srun", "--nodelist", "cn1,cn2", "--nodes=2", "rm", "-rf", scratch)


IN_BLOCKS = """
import sys
import parsl
import hpcmass

@parsl.python_app(executors=["cpu"])
def where(number, board):
    import os, sys, time
    node = os.environ.get("SLURMD_NODENAME")
    open(os.path.join(board, node), "w").close()
    while len(os.listdir(board)) < 2:  # The block's other node may come late.
        time.sleep(0.1)
    return node, sys.prefix

site = hpcmass.Site.load(sys.argv[1])
with parsl.load(site.parsl_config(run_dir="parsl", targets=["cpu"], nodes=2, poll_s=2.0)):
    for node, prefix in [future.result() for future in [where(n, sys.argv[2]) for n in range(12)]]:
        print("item", node, prefix)
"""


@pytest.mark.usefixtures("slurm_env")
def test_blocks_run_in_the_unpacked_environment(cluster: Cluster, packed_env: Path, tmp_path: Path) -> None:
    scratch = f"/dev/shm/hpcmass-test-{os.getpid()}-{time.time_ns()}"
    site = tmp_path / "site.toml"
    site.write_text(
        f'name = "here"\ndefault_target = "cpu"\n[targets.cpu]\nkind = "slurm"\npartition = "cpu"\ncores = 4\n'
        f'max_nodes = 3\nblock_nodes = 2\nenvironment = "{packed_env}"\nscratch = "{scratch}"\n'
        'sbatch = { export = "NONE" }\n'
    )
    (tmp_path / "items.py").write_text(IN_BLOCKS)
    (tmp_path / "board").mkdir()
    done = subprocess.run(
        [sys.executable, "items.py", str(site), str(tmp_path / "board")],
        cwd=tmp_path, capture_output=True, text=True, timeout=800,
    )  # fmt: skip
    cluster.run("srun", "--partition=cpu", "--nodes=3", "rm", "-rf", scratch)
    outputs = "".join(file.read_text() for file in tmp_path.rglob("out-*.log"))
    assert done.returncode == 0, f"{done.stderr}\n{outputs}"
    items = [line.split() for line in done.stdout.splitlines() if line.startswith("item ")]
    assert len(items) == 12
    assert all(prefix.startswith(f"{scratch}/hpcmass-env-") for _, _, prefix in items), items
    assert len({node for _, node, _ in items}) > 1, items


@pytest.mark.usefixtures("slurm_env")
def test_a_submitted_run_trains_with_the_unpacked_environment(
    cluster: Cluster, packed_env: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = f"/dev/shm/hpcmass-test-{os.getpid()}-{time.time_ns()}"
    text = cluster.site_file.read_text()
    where = f'partition = "fpga"\nenvironment = "{packed_env}"\nscratch = "{scratch}"'
    site = project / "site.toml"
    site.write_text(text.replace('partition = "fpga"', where))
    recipe = project / "recipe.py"
    recipe.write_text(
        f"import sys, hpcmass\nprint('in', sys.prefix, hpcmass.__file__, flush=True)\n{recipe.read_text()}"
    )
    words = ["--project", str(project), "--site", str(site), "--target", "fpga"]
    assert run(["submit", str(project / "job.toml"), *words]) == 0
    assert run(["wait", "job", "--project", str(project)]) == 0, capsys.readouterr()
    cluster.run("srun", "--partition=fpga", "rm", "-rf", scratch)
    told = "".join(file.read_text() for file in (project / "runs/job").rglob("*.log"))
    (line,) = {line for line in told.splitlines() if line.startswith("in ")}
    assert all(word.startswith(f"{scratch}/hpcmass-env-") for word in line.split()[1:]), line
    # On a copy that is not whole, nothing is submitted.
    whole = packed_env.stat().st_size
    os.truncate(packed_env, whole + 1)
    try:
        assert run(["submit", str(project / "job.toml"), "--fresh", *words]) == 2
    finally:
        os.truncate(packed_env, whole)
    assert "hpcmass env pack" in capsys.readouterr().err
