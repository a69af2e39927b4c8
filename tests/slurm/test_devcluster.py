"""The development cluster itself: starts whole, is several hosts, breaks on purpose, ends without a trace."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcmass.config import load_site
from hpcmass.devcluster import Cluster, missing_packages
from hpcmass.errors import LaunchError

pytestmark = pytest.mark.slurm


def until(true: Callable[[], object], what: str, patience_s: float = 300.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, f"{what}: not within {patience_s:.0f} s"
        time.sleep(0.1)


def output(cluster: Cluster, *argv: str) -> str:
    done = cluster.run(*argv)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def submit(cluster: Cluster, folder: Path, script: str, *options: str) -> str:
    file = folder / "job.sh"
    file.write_text(f"#!/bin/bash\n{script}\n")
    return output(cluster, "sbatch", "--parsable", f"--chdir={folder}", *options, str(file)).strip()


def state(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "--states=all", "-j", job, "-o", "%T").stdout.strip()


def hpcmass(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpcmass", *words], capture_output=True, text=True, check=False, timeout=600
    )


def test_it_is_up_and_its_site_file_is_true(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as shell:
        shell.setenv("SINFO_PARTITION", "gpu")
        until(lambda: cluster.status().states == dict.fromkeys(cluster.nodes, "idle"), "all nodes are idle")
        found = cluster.status()
    assert found.up
    assert not found.down
    assert found.jobs == 0
    targets = load_site(cluster.site_file).targets
    rows = [line.split() for line in output(cluster, "sinfo", "-h", "-N", "-o", "%R %N %c %m %G").splitlines()]
    for name, target in targets.items():
        nodes = [row for row in rows if row[0] == target.partition]
        assert (target.max_nodes, target.cores) == (len(nodes), min(int(row[2]) for row in nodes)), name
        assert target.memory_gb * 1e9 <= min(int(row[3]) for row in nodes) * 2**20, name
        for gres, count in {**target.gres, "gpu": target.gpus}.items():
            assert all(count == 0 or re.search(rf"{gres}:(\w+:)?{count}\b", row[4]) for row in nodes), name


def test_nodes_are_hosts_of_their_own(cluster: Cluster) -> None:
    lines = output(cluster, "srun", "-N2", "-n4", "--ntasks-per-node=2", "hostname").split()
    expected = ["cn1", "cn1", "cn2", "cn2"] if cluster.has_network else lines[:1] * 4
    assert sorted(lines) == expected


def test_a_nodes_temporary_folder_is_its_own(cluster: Cluster) -> None:
    """In a /tmp of all nodes Open MPI's daemons, called by their process ids, would meet."""
    code = 'test -w "$TMPDIR" && echo "$SLURMD_NODENAME $TMPDIR"'
    lines = output(cluster, "srun", "-N2", "sh", "-c", code).splitlines()
    assert sorted(lines) == [f"{node} {cluster.folder}/tmp/{node}" for node in ("cn1", "cn2")]


def test_accelerators_are_given_and_not_given_twice(cluster: Cluster) -> None:
    said = output(
        cluster,
        *("srun", "-p", "gpu", "-N1", "-n2", "--gpus-per-task=1", "--exact"),
        *("bash", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"),
    ).split("\n")
    assert sorted(said)[1:] == ["gn1 0", "gn1 1"]
    refused = cluster.run("srun", "-p", "gpu", "-N1", "--gres=gpu:3", "true")
    assert refused.returncode != 0
    show = "scontrol -d show job $SLURM_JOB_ID"
    assert "GRES=fpga:1(IDX:0)" in output(cluster, "srun", "-p", "fpga", "--gres=fpga:1", "bash", "-c", show)
    assert cluster.run("srun", "-p", "fpga", "--gres=fpga:2", "true").returncode != 0


def test_mpi_over_two_nodes_with_pmix(cluster: Cluster, tmp_path: Path) -> None:
    """Open MPI's ranks find each other through Slurm's PMIx plugin, of which Debian lacks a link."""
    pytest.importorskip("mpi4py")
    program = tmp_path / "hello.py"
    program.write_text(
        "from mpi4py import MPI\nimport os\nworld = MPI.COMM_WORLD\nnode = os.environ['SLURMD_NODENAME']\n"
        "print(world.size, world.rank, world.allreduce(world.rank), node, flush=True)\n"
    )
    argv = ["srun", "-N2", "-n4", "--ntasks-per-node=2", "--mpi=pmix", sys.executable, str(program)]
    lines = sorted(output(cluster, *argv).splitlines())
    assert lines == ["4 0 6 cn1", "4 1 6 cn1", "4 2 6 cn2", "4 3 6 cn2"]


# The PMI-2 wire protocol, as MPICH speaks it: a line in that of PMI-1, then 6 digits of length and `cmd=…;`.
PMI2 = """
import os
handle = int(os.environ["PMI_FD"])
os.write(handle, b"cmd=init pmi_version=2 pmi_subversion=0\\n")
os.read(handle, 100)
words = f"cmd=fullinit;pmijobid={os.environ['PMI_JOBID']};pmirank={os.environ['PMI_RANK']};threaded=FALSE;"
os.write(handle, f"{len(words):6d}{words}".encode())
answer = os.read(handle, int(os.read(handle, 6))).decode()
fields = dict(word.split("=", 1) for word in answer.strip(";").split(";"))
print(fields["rc"], fields["rank"], fields["size"], os.environ["SLURMD_NODENAME"], flush=True)
"""


def test_pmi2_tells_every_rank_the_whole_world(cluster: Cluster, tmp_path: Path) -> None:
    program = tmp_path / "hello.py"
    program.write_text(PMI2)
    argv = ["srun", "-N2", "-n4", "--ntasks-per-node=2", "--mpi=pmi2", sys.executable, str(program)]
    lines = sorted(output(cluster, *argv).splitlines())
    assert lines == ["0 0 4 cn1", "0 1 4 cn1", "0 2 4 cn2", "0 3 4 cn2"]


def test_a_preempted_job_is_requeued_and_runs_again(cluster: Cluster, tmp_path: Path) -> None:
    script = 'echo "$SLURM_RESTART_COUNT" >>starts\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 600'
    low = submit(cluster, tmp_path, script, "-p", "preempt", "-w", "cn1", "-c4")
    until(lambda: (tmp_path / "starts").exists(), "the low job starts")
    high = submit(cluster, tmp_path, "true", "-p", "cpu", "-w", "cn1", "-c4")
    until(lambda: state(cluster, high) == "COMPLETED", "the high job takes the node")
    until(lambda: state(cluster, low) == "COMPLETED", "the low job runs again")
    assert (tmp_path / "starts").read_text().split("\n") == ["", "1", ""]


def test_a_killed_node_fails_its_job_which_goes_on_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    script = (
        'echo "$SLURMD_NODENAME" >>nodes\n[ -n "$SLURM_RESTART_COUNT" ] || '
        "{ setsid sleep 600 & touch started; while true; do date +%s.%N >beat; sleep 0.05; done; }"
    )
    job = submit(cluster, tmp_path, script, "-p", "cpu", "-N1", "--requeue")
    until(lambda: (tmp_path / "started").exists(), "the job starts")
    node = (tmp_path / "nodes").read_text().strip()
    cluster.kill_node(node)
    beat = (tmp_path / "beat").read_bytes()
    assert not cluster.status().nodes[node]
    until(lambda: cluster.status().states.get(node, "").startswith("down"), "Slurm notices")
    until(lambda: state(cluster, job) == "COMPLETED", "the job runs again")
    assert (tmp_path / "beat").read_bytes() == beat, "the killed node's job wrote on"
    nodes = (tmp_path / "nodes").read_text().split()
    assert len(nodes) == 2
    assert nodes[1] != node
    cluster.start_node(node)
    until(lambda: cluster.status().states.get(node) == "idle", "the node is back")
    assert output(cluster, "srun", "-w", node, "bash", "-c", "echo $SLURMD_NODENAME").split() == [node]


def test_jobs_outlive_the_controller(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path, "touch started\nuntil [ -e go ]; do sleep 0.1; done", "-p", "cpu")
    until(lambda: (tmp_path / "started").exists(), "the job starts")
    cluster.stop_controller()
    assert "is DOWN" in cluster.run("scontrol", "ping").stdout
    assert not cluster.status().up
    cluster.start_controller()
    until(lambda: state(cluster, job) == "RUNNING", "the controller answers, and knows the job")
    (tmp_path / "go").touch()
    until(lambda: state(cluster, job) == "COMPLETED", "the job ends")


def test_accounting_knows_the_job_and_holds_limits(cluster: Cluster, tmp_path: Path) -> None:
    if not cluster.has_accounting:
        pytest.skip("no accounting: apt-get install slurmdbd mariadb-server")
    job = submit(cluster, tmp_path, "exit 3", "-p", "cpu")

    def known() -> bool:
        argv = ("sacct", "-X", "-n", "-P", "-j", job, "-o", "State,ExitCode,Account")
        return cluster.run(*argv).stdout.split() == ["FAILED|3:0|dev"]

    until(known, "sacct knows how the job ended")
    assert "Invalid account" in cluster.run("sbatch", "-A", "nobodys", "-o", "/dev/null", "--wrap=true").stderr
    output(cluster, "sacctmgr", "-i", "add", "qos", "tiny", "MaxWall=00:05:00", "Flags=DenyOnLimit")
    output(cluster, "sacctmgr", "-i", "modify", "user", "where", f"user={user()}", "set", "qos+=tiny")
    until(
        lambda: cluster.run("sbatch", "--qos=tiny", "-t1", "-o", "/dev/null", "--wrap=true").returncode == 0,
        "the QOS serves",
    )
    assert "limit" in cluster.run("sbatch", "--qos=tiny", "-t10", "-o", "/dev/null", "--wrap=true").stderr


def user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def living(folder: Path) -> list[str]:
    """Command lines of this machine's processes that name a folder or were started with it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes()
            text = words + (entry / "environ").read_bytes()
        except OSError:
            continue  # It is no process, or ended meanwhile.
        if os.fsencode(folder) in text and entry.name != str(os.getpid()):
            found.append(os.fsdecode(words).replace("\0", " "))
    return found


def test_the_commands_from_up_to_down(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="hpcmass-slurm-") as name:
        folder = Path(name)
        at = ["--folder", name]
        try:
            up = hpcmass("slurm", "up", "--no-accounting", "--grace", "7", *at)
            if "apt-get install" in up.stderr:
                pytest.skip(up.stderr)
            assert up.returncode == 0, up.stderr
            assert f'eval "$(hpcmass slurm env --folder {name})"' in up.stdout
            again = hpcmass("slurm", "up", *at)
            assert again.returncode == 0, again.stderr
            assert "starting" not in again.stderr
            other = hpcmass("slurm", "up", "--grace", "8", *at)
            assert other.returncode == 2
            assert "grace_s = 7, not 8" in other.stderr
            shell = f'eval "$({sys.executable} -m hpcmass slurm env --folder {name})"; scontrol show config'
            assert "devcluster" in subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stdout
            assert hpcmass("slurm", "kill-node", "cn2", *at).returncode == 0
            status = hpcmass("slurm", "status", *at)
            assert status.returncode == 1
            assert re.search(r"cn2\s+dead", status.stdout)
            assert re.search(r"cn1\s+alive\s+idle", status.stdout)
            assert hpcmass("slurm", "start-node", "cn2", *at).returncode == 0
            assert hpcmass("slurm", "status", *at).returncode == 0
            assert living(folder)
        finally:
            down = hpcmass("slurm", "down", *at)
        assert down.returncode == 0, down.stderr
        assert living(folder) == []
        status = hpcmass("slurm", "status", "--json", *at)
        assert status.returncode == 3
        assert json.loads(status.stdout)["cluster"] == "down"
        assert "already" in hpcmass("slurm", "down", *at).stdout


def test_a_cluster_of_which_a_node_does_not_start_leaves_nothing(
    cluster: Cluster, cluster_factory: Callable[..., Cluster]
) -> None:
    """The node cannot use its spool folder; its log says so, and what had started is gone again."""
    with tempfile.TemporaryDirectory(prefix="hpcmass-slurm-") as name:
        folder = Path(name)
        (folder / "spool").mkdir()
        (folder / "spool" / "fn1").symlink_to("/proc/self")
        with pytest.raises(LaunchError, match=r"slurmd-fn1 ended(?s:.*)spooldir"):
            Cluster.up(folder, accounting=False)
        assert living(folder) == []
        assert Cluster.open(folder).status().down
        (folder / "spool" / "fn1").unlink()
        mended = Cluster.up(folder, accounting=False)
        try:
            assert mended.status().up
            assert cluster.status().up, "two clusters run beside each other"
        finally:
            mended.down()


def test_an_ordinary_user_has_a_cluster_too() -> None:
    """As `nobody`, with a copy of the package and an interpreter that it may read; kill-node kills the job."""
    if os.getuid() != 0:
        pytest.skip("the other tests run as an ordinary user already")
    candidates = [os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"]
    as_nobody = ["runuser", "-u", "nobody", "--"]
    found = [p for p in candidates if subprocess.run([*as_nobody, p, "-c", NEW_ENOUGH]).returncode == 0]
    if not found:
        pytest.skip(f"an ordinary user may read none of {', '.join(candidates)} of Python 3.10 or newer")
    if missing_packages():
        pytest.skip(f"no Slurm here: apt-get install {' '.join(missing_packages())}")
    with tempfile.TemporaryDirectory(prefix="hpcmass-slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(
            Path(__file__).parents[2] / "hpcmass",
            folder / "hpcmass",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (folder / "own").mkdir()
        shutil.chown(folder / "own", "nobody")
        (folder / "go.py").write_text(AS_NOBODY)
        done = subprocess.run(
            [*as_nobody, "env", "-i", "PATH=/usr/bin:/bin", found[0], "-B", "go.py", f"{name}/own"],
            **{"cwd": folder, "capture_output": True, "text": True, "timeout": 600},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "good"
        assert living(folder) == []


NEW_ENOUGH = "import sys; sys.exit(sys.version_info < (3, 10))"
AS_NOBODY = """
import sys, time
from pathlib import Path
from hpcmass.devcluster import Cluster

own = Path(sys.argv[1])
cluster = Cluster.up(own / "c", accounting=False)
try:
    assert cluster.status().up and not cluster.has_network
    argv = ["srun", "-N2", "-n4", "--ntasks-per-node=2", "bash", "-c", "echo $SLURMD_NODENAME $SLURM_PROCID"]
    ran = cluster.run(*argv)
    assert sorted(ran.stdout.splitlines()) == ["cn1 0", "cn1 1", "cn2 2", "cn2 3"], ran
    script = f"sleep 601 & setsid sleep 602 & touch {own}/started; wait"
    ran = cluster.run("sbatch", "-w", "cn1", f"--chdir={own}", "--wrap", script)
    assert ran.returncode == 0, ran

    def asleep():
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_bytes().split(b"\\0")
            except OSError:
                continue  # It ended meanwhile.
            if words[:1] == [b"sleep"] and words[1:2] in ([b"601"], [b"602"]):
                found.append(words)
        return found

    end = time.monotonic() + 300
    while not (own / "started").exists() or len(asleep()) < 2:
        assert time.monotonic() < end, asleep()
        time.sleep(0.1)
    assert len(asleep()) == 2, asleep()
    cluster.kill_node("cn1")
    assert asleep() == []
    cluster.start_node("cn1")
    assert cluster.status().nodes["cn1"]
finally:
    cluster.down()
assert cluster.status().down
print("good")
"""


def test_what_a_crash_left_is_cleared_and_the_cluster_comes_up_again(
    cluster_factory: Callable[..., Cluster],
) -> None:
    """All its processes die at once, as when the machine loses power; `down` and `up` then do their work."""
    crashed = cluster_factory()
    output(crashed, "srun", "true")

    def namespaces() -> list[str]:
        tag = json.loads((crashed.folder / "state.json").read_text())["settings"]["slot"]
        return re.findall(rf"^hm{tag}-\S+", crashed.run("ip", "netns", "list").stdout, re.M)

    for process in crashed.processes.values():
        process.send(signal.SIGKILL)
    until(lambda: living(crashed.folder) == [], "all of it is dead")
    assert crashed.status().down
    assert bool(namespaces()) == crashed.has_network
    Cluster.open(crashed.folder).down()
    assert namespaces() == []
    shutil.rmtree(crashed.folder / "database-tmp")
    again = Cluster.up(crashed.folder)
    assert again.status().up
    if again.has_accounting:
        output(again, "sacct", "-X")
    output(again, "srun", "true")
