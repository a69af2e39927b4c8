"""The parts of the development cluster that need no Slurm: text, places, processes, the pmix link."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hpcmass.cli.root import run as cli
from hpcmass.config import load_site
from hpcmass.devcluster import NODES, Cluster, Settings, missing_packages
from hpcmass.devcluster import claim as claims
from hpcmass.devcluster.nodes import PARTITIONS
from hpcmass.devcluster.pmix import plugin_path
from hpcmass.devcluster.processes import Process, end_all_on, spawn, wait_for
from hpcmass.devcluster.render import cgroup_conf, gres_conf, hosts, site_toml, slurm_conf, slurmdbd_conf
from hpcmass.devcluster.settings import FIRST_PORT, PORTS_EACH, SLOTS, check_folder
from hpcmass.devcluster.state import State
from hpcmass.errors import ConfigError, CorruptError, LaunchError, MissingDependency, NotFound

ROOT = Path(__file__).parents[3]
SETTINGS = Settings(Path("/c"), 7, "me", "box", network=True, accounting=True, grace_s=8, slurmd_timeout_s=10)


def values(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith(("#", "NodeName", "Partition")))
    return dict(line.split("=", 1) for line in lines)


def test_the_site_file_of_the_repository_is_what_up_writes() -> None:
    file = ROOT / "site-configs" / "devcluster.toml"
    assert file.read_text(encoding="utf-8") == site_toml()
    targets = load_site(file).targets
    assert {target.partition for target in targets.values()} == {each.name for each in PARTITIONS}


def test_two_clusters_share_no_port_and_no_address() -> None:
    other = replace(SETTINGS, slot=8)
    assert not set(SETTINGS.ports) & set(other.ports)
    assert SETTINGS.subnet != other.subnet
    last = replace(SETTINGS, slot=SLOTS - 1)
    assert max(last.ports) < 32768, "below the ports that the kernel gives away"
    assert len(f"v{last.tag}-{NODES[0].name}") <= 15, "the longest name of an interface"


def test_slurm_conf_says_what_was_asked_for() -> None:
    text = slurm_conf(SETTINGS)
    said = values(text)
    assert said["SlurmctldHost"] == "box(10.213.7.1)"
    assert said["AccountingStorageType"] == "accounting_storage/slurmdbd"
    assert said["SlurmdTimeout"] == "10"
    assert (said["MaxArraySize"], said["MinJobAge"], said["JobRequeue"]) == ("5001", "300", "1")
    node = f"NodeName=gn1 NodeHostname=gn1 NodeAddr=10.213.7.14 Port={FIRST_PORT + 7 * 20 + 6} CPUs=8 "
    assert node in text
    assert "PartitionName=preempt Nodes=cn1,cn2,cn3,gn1,gn2 Default=NO" in text
    assert "PreemptMode=REQUEUE GraceTime=8" in text
    alone = slurm_conf(replace(SETTINGS, network=False, accounting=False, host="h"))
    assert values(alone)["AccountingStorageType"] == "accounting_storage/none"
    assert "NodeName=gn1 NodeHostname=h NodeAddr=127.0.0.1" in alone
    assert "NodeName=fn1 Name=fpga File=/c/dev/fpga0\n" in gres_conf(SETTINGS)
    assert "NodeName=gn2 Name=gpu Type=a100 File=/c/dev/gpu[0-1]\n" in gres_conf(SETTINGS)
    assert "StoragePass=secret" in slurmdbd_conf(SETTINGS, "secret")
    assert "disabled" in cgroup_conf(replace(SETTINGS, version=(24, 11)))


def test_the_hosts_file_of_nodes_moves_the_machines_name_only() -> None:
    text = hosts(SETTINGS, "127.0.0.1 localhost box\n127.0.1.1\tbox.lab box\n::1 ip6-localhost # box\n\n")
    assert text.splitlines()[:3] == ["127.0.0.1 localhost", "::1 ip6-localhost", "10.213.7.1 box"]
    assert "10.213.7.16 fn1" in text


@pytest.mark.parametrize("name", ["/a b", "/a$(x)", "/a#b", "/ä", "/a,b", "/" + "x" * 100])
def test_folders_that_slurm_cannot_name_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="folder"):
        check_folder(Path(name))


@pytest.fixture
def own_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters that start on this machine meanwhile take other names, and other ports."""
    monkeypatch.setattr(claims, "PREFIX", f"hpcmass-test-{os.getpid()}")
    monkeypatch.setattr(claims, "FIRST_PORT", FIRST_PORT + (SLOTS + 50) * PORTS_EACH)


@pytest.mark.usefixtures("own_places")
def test_a_slot_belongs_to_one_cluster_and_is_free_when_its_holder_ends() -> None:
    first, held = claims.claim_slot(lambda slot: True)
    with held:
        second, other = claims.claim_slot(lambda slot: True)
        with other:
            assert first != second
            with claims.abandoned(first) as free:
                assert not free
        refused: list[int] = []
        third, other = claims.claim_slot(lambda slot: slot > second or refused.append(slot) is not None)
        other.close()
        assert third > second
        assert second in refused
    with claims.abandoned(first) as free:
        assert free


@pytest.mark.usefixtures("own_places")
def test_a_slot_of_which_a_port_is_taken_is_passed_over() -> None:
    slot, held = claims.claim_slot(lambda slot: True)
    held.close()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", claims.FIRST_PORT + slot * PORTS_EACH + 5))
        listener.listen()
        other, held = claims.claim_slot(lambda slot: True)
        held.close()
    assert other != slot


@pytest.mark.usefixtures("own_places")
def test_claims_made_at_the_same_moment_differ() -> None:
    found: list[tuple[int, socket.socket]] = []
    barrier = threading.Barrier(8)

    def take() -> None:
        barrier.wait()
        found.append(claims.claim_slot(lambda slot: True))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _, handle in found:
        handle.close()
    assert len({slot for slot, _ in found}) == 8


def test_only_one_command_changes_a_cluster(tmp_path: Path) -> None:
    with (
        claims.only_one(tmp_path),
        pytest.raises(Exception, match="another command"),
        claims.only_one(tmp_path, 0.2),
    ):
        pass
    with claims.only_one(tmp_path):
        pass


def test_a_process_with_the_same_pid_is_not_ended(tmp_path: Path) -> None:
    process = spawn(["sleep", "600"], env={"PATH": os.environ["PATH"]}, log=tmp_path / "log")
    try:
        another = replace(process, start_ticks=process.start_ticks - 1)
        assert not another.alive
        another.send(signal.SIGKILL)
        assert not replace(process, boot="an earlier one").alive
        assert not wait_for(lambda: not process.alive, 0.3)
    finally:
        process.end()
    assert not process.alive


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    process = spawn([sys.executable, "-c", code], env={}, log=tmp_path / "log")
    assert wait_for(lambda: (tmp_path / "log").read_text() == "1\n", 240)
    process.end(patience_s=0.3)
    assert wait_for(lambda: not process.alive, 240)


def test_all_of_a_node_is_ended_and_nothing_of_another(tmp_path: Path) -> None:
    def node(name: str) -> Process:
        script = f"sleep 600 & setsid sleep 600 & echo $! >{tmp_path}/{name}; wait"
        return spawn(["sh", "-c", script], env={"MARK": name, "PATH": os.environ["PATH"]}, log=tmp_path / "log")

    first, second = node("cn1"), node("cn2")
    # A task has the job's environment, not slurmd's; it is known by what Slurm sets.
    task_env = {"SLURMD_NODENAME": "cn1", "SLURM_CONF": "/c/slurm.conf", "PATH": os.environ["PATH"]}
    task = spawn(["sleep", "600"], env=task_env, log=tmp_path / "log")
    try:
        assert wait_for(
            lambda: all((tmp_path / n).exists() and (tmp_path / n).read_text() for n in ("cn1", "cn2")), 240
        )
        child = Process.of(int((tmp_path / "cn1").read_text()))
        sibling = Process.of(int((tmp_path / "cn2").read_text()))
        end_all_on("cn1", {"MARK": "cn1"}, Path("/c/slurm.conf"))
        assert [p.alive for p in (first, child, task, second, sibling)] == [False, False, False, True, True]
    finally:
        end_all_on("cn1", {"MARK": "cn1"}, Path("/c/slurm.conf"))
        end_all_on("cn2", {"MARK": "cn2"}, Path("/c/slurm.conf"))
    assert not sibling.alive


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="cannot start /nothing"):
        spawn(["/nothing"], env={}, log=tmp_path / "log")


def test_the_state_file_reads_back_and_nonsense_is_refused(tmp_path: Path) -> None:
    state = State(replace(SETTINGS, folder=tmp_path), {"slurmctld": Process.of(os.getpid())})
    state.save()
    again = State.load(tmp_path)
    assert again == state
    assert again.alive("slurmctld")
    assert not again.alive("slurmd-cn1")
    assert State.load(tmp_path / "none") is None
    for text in ("{", "[]", '{"format": 1}', '{"format": 99, "settings": {}, "processes": {}}'):
        (tmp_path / "state.json").write_text(text)
        with pytest.raises(CorruptError):
            State.load(tmp_path)


def test_missing_packages_are_named_in_one_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcmass.devcluster.packages.search_path", lambda: str(tmp_path))
    assert missing_packages() == ["slurmctld", "slurmd", "slurm-client", "munge"]
    with pytest.raises(MissingDependency, match="apt-get install slurmctld slurmd slurm-client munge"):
        Cluster.up(tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert cli(["slurm", "up", "--folder", str(tmp_path / "c")]) == 2
    assert "apt-get install slurmctld slurmd slurm-client munge" in capsys.readouterr().err


def test_commands_for_a_cluster_that_never_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFound):
        Cluster.open(tmp_path)
    for words in (["down"], ["status"], ["env"], ["kill-node", "cn1"], ["start-node", "cn1"]):
        assert cli(["slurm", *words, "--folder", str(tmp_path)]) == 2
    assert "start one: hpcmass slurm up" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_pmix_plugin_is_led_to_a_link_beside_it(tmp_path: Path) -> None:
    """With a plugin made by hand, byte for byte as Debian's keeps the path."""
    library = tmp_path / "pmix2" / "lib"
    system, own = tmp_path / "plugins", tmp_path / "own"
    library.mkdir(parents=True)
    system.mkdir()
    (library / "libpmix.so.2").write_bytes(b"library")
    before = b"\x7fELF\0config\0" + str(library).encode() + b"\0\0\0/no/such/folder\0%s/\0libpmix.so\0"
    (system / "mpi_pmix_v4.so").write_bytes(before)
    assert plugin_path(system, own) == f"{own}:{system}"
    after = (own / "mpi_pmix_v4.so").read_bytes()
    assert len(after) == len(before)
    assert b"\0$ORIGIN\0" in after
    assert str(library).encode() not in after
    assert (own / "libpmix.so").read_bytes() == b"library"
    (library / "libpmix.so").symlink_to("libpmix.so.2")
    assert plugin_path(system, tmp_path / "unused") == str(system), "the link is there: nothing to mend"
    assert not (tmp_path / "unused").exists()
    assert plugin_path(None, own) == ""


def test_the_room_needs_the_standard_library_only() -> None:
    """So that any Python on a machine can end a cluster; -S hides everything that was installed."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import hpcmass.devcluster"
    subprocess.run([sys.executable, "-S", "-c", code, str(ROOT)], check=True, timeout=300)
