"""Leases: one owner at a time; taken over from the dead at once, from the living never."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hpcmass.errors import LeaseHeld, StorageError
from hpcmass.files import Lease, Owner, read_json, replace_json

HOLD = """
import sys, time
from pathlib import Path
from hpcmass.files import Lease
lease = Lease(Path(sys.argv[1]))
lease.acquire()
print("held", flush=True)
time.sleep(3600)
"""
RACE = """
import sys, time
from pathlib import Path
from hpcmass.errors import LeaseHeld
from hpcmass.files import Lease
folder = Path(sys.argv[1])
(folder / f"ready-{sys.argv[2]}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    Lease(folder / "lease").acquire()
    print("won", flush=True)
except LeaseHeld:
    print("lost", flush=True)
sys.stdin.read()
"""


def hold(base: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(base)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_held_then_taken_over_after_kill_9(tmp_path: Path) -> None:
    holder = hold(tmp_path / "lease")
    with pytest.raises(LeaseHeld, match=str(holder.pid)):
        Lease(tmp_path / "lease").acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lease = Lease(tmp_path / "lease")
    lease.acquire()
    owner = lease.owner()
    assert owner is not None
    assert owner.pid == os.getpid()
    lease.release()
    assert lease.owner() is None


def test_a_killed_holder_that_nobody_reaped_is_dead(tmp_path: Path) -> None:
    holder = hold(tmp_path / "lease")
    holder.send_signal(signal.SIGKILL)
    while Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    assert Lease(tmp_path / "lease").owner() is None
    holder.wait()


def test_many_that_take_over_at_once_and_one_wins(tmp_path: Path) -> None:
    holder = hold(tmp_path / "lease")
    holder.kill()
    holder.wait()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), str(me)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in range(6)
    ]
    while len(list(tmp_path.glob("ready-*"))) < 6:
        assert all(racer.poll() is None for racer in racers)
    (tmp_path / "go").touch()
    answers = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    for racer in racers:
        racer.communicate()
    assert sorted(answers) == ["lost"] * 5 + ["won"]


def elsewhere(lease: Path, *, beat: float | None) -> None:
    """A lease of a process on another host."""
    owner = Owner("some-other-host", 4711, 1, "another-boot", None, time.time() - 1000)
    replace_json(lease.with_name("lease.1.json"), vars(owner))
    if beat is not None:
        replace_json(lease.with_name("lease.1.beat"), {"beat": beat})


def test_another_hosts_lease_is_held_while_it_is_renewed(tmp_path: Path) -> None:
    elsewhere(tmp_path / "lease", beat=time.time())
    with pytest.raises(LeaseHeld, match="some-other-host"):
        Lease(tmp_path / "lease").acquire()


@pytest.mark.parametrize("ahead_s", [-100, 0, 100])
def test_another_hosts_lease_is_held_while_it_is_renewed_by_whatever_clock(
    tmp_path: Path, ahead_s: float
) -> None:
    """Its clock is ahead of ours, or behind: what counts is that the beat changes."""
    elsewhere(tmp_path / "lease", beat=time.time() + ahead_s)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.2):
            replace_json(tmp_path / "lease.1.beat", {"beat": time.time() + ahead_s})

    holder = threading.Thread(target=renew)
    holder.start()
    try:
        for watch in (True, False):
            lease = Lease(tmp_path / "lease", ttl_s=30)
            with pytest.raises(LeaseHeld, match="some-other-host"):
                lease.acquire(watch=watch)
        while not lease.renewal_seen:
            with pytest.raises(LeaseHeld, match="some-other-host"):
                lease.acquire(watch=False)
    finally:
        ended.set()
        holder.join()


@pytest.mark.parametrize("ahead_s", [3600, 0, -30])
def test_another_hosts_lease_that_is_not_renewed_runs_out_by_our_clock(tmp_path: Path, ahead_s: float) -> None:
    elsewhere(tmp_path / "lease", beat=time.time() + ahead_s)
    lease = Lease(tmp_path / "lease", ttl_s=1)
    began = time.monotonic()
    while True:
        try:
            lease.acquire(watch=False)
            break
        except LeaseHeld:
            time.sleep(0.05)
    assert time.monotonic() - began >= 1
    assert not lease.renewal_seen
    lease.release()
    # One call does it as well, where the clocks allow that it has run out.
    elsewhere(tmp_path / "other" / "lease", beat=time.time() - 30)
    began = time.monotonic()
    with Lease(tmp_path / "other" / "lease", ttl_s=1):
        assert time.monotonic() - began >= 1


@pytest.mark.parametrize("beat", [0.0, None])
def test_another_hosts_lease_expires(tmp_path: Path, beat: float | None) -> None:
    elsewhere(tmp_path / "lease", beat=beat)
    with Lease(tmp_path / "lease") as lease:
        owner = lease.owner()
        assert owner is not None
        assert owner.host == socket.gethostname()


def test_a_pid_that_was_given_to_another_process_is_not_the_owner() -> None:
    me = Owner.this_process()
    assert me.alive() is True
    assert replace(me, start_ticks=me.start_ticks + 1).alive() is False
    assert replace(me, host="some-other-host").alive() is None


def test_a_process_of_another_container_is_not_known_to_be_dead() -> None:
    # Its process id means nothing here, though host name and boot are the same.
    me = Owner.this_process()
    assert replace(me, pid=2**22 + 1, pid_namespace="pid:[1]").alive() is None


def test_a_lease_can_be_given_back_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("cannot write the file: No space left on device")

    lease = Lease(tmp_path / "lease")
    lease.acquire()
    with monkeypatch.context() as patch:
        patch.setattr("hpcmass.files.lease.replace_json", full)
        lease.release()
    assert lease.owner() is None
    with Lease(tmp_path / "lease"):
        pass


def test_a_lease_is_renewed(tmp_path: Path) -> None:
    with Lease(tmp_path / "lease", ttl_s=0.3):
        first = read_json(tmp_path / "lease.1.beat")["beat"]
        deadline = time.monotonic() + 240
        while read_json(tmp_path / "lease.1.beat")["beat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def taken_by_another_host(base: Path, generation: int) -> None:
    owner = Owner("some-other-host", 4711, 1, "another-boot", None, time.time())
    replace_json(base.with_name(f"{base.name}.{generation}.json"), vars(owner))


def test_a_holder_that_was_taken_over_learns_it_and_writes_nothing_more(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "lease", ttl_s=0.3)
    lease.acquire()
    assert not lease.lost
    taken_by_another_host(tmp_path / "lease", 2)
    deadline = time.monotonic() + 240
    while not lease.lost:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = (tmp_path / "lease.1.beat").read_text()
    time.sleep(0.5)
    lease.release()
    assert lease.lost
    assert (tmp_path / "lease.1.beat").read_text() == before
    owner = Lease(tmp_path / "lease").owner()
    assert owner is not None
    assert owner.host == "some-other-host"


def test_a_holder_that_slept_learns_it_before_its_next_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While a machine is suspended its clock of the day goes on, the one that waits are timed by does not.
    real = time.time
    with Lease(tmp_path / "lease") as lease:
        taken_by_another_host(tmp_path / "lease", 2)
        monkeypatch.setattr(time, "time", lambda: real() + 100)
        assert lease.lost


def test_a_folder_that_was_set_aside_and_made_anew_is_another_lease(tmp_path: Path) -> None:
    first, second = Lease(tmp_path / "r" / "lease"), Lease(tmp_path / "r" / "lease")
    first.acquire()
    os.rename(tmp_path / "r", tmp_path / "r.old-1")
    second.acquire()  # of generation 1 too
    first.release()
    assert first.lost
    assert second.owner() is not None
    second.release()
    assert not second.lost


def test_a_held_lease_moves_with_its_folder(tmp_path: Path) -> None:
    with Lease(tmp_path / "r" / "lease", ttl_s=0.3) as lease:
        lease.rename_folder(tmp_path / "s")
        first = read_json(tmp_path / "s" / "lease.1.beat")["beat"]
        deadline = time.monotonic() + 240
        while read_json(tmp_path / "s" / "lease.1.beat")["beat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not lease.lost
    assert Lease(tmp_path / "s" / "lease").owner() is None
    assert not (tmp_path / "r").exists()


def test_old_generations_are_cleared_away(tmp_path: Path) -> None:
    for _ in range(5):
        with Lease(tmp_path / "lease"):
            pass
    assert sorted(os.listdir(tmp_path)) == ["lease.5.beat", "lease.5.json"]


def remote_owner(base: Path, **changes: object) -> None:
    """Make the lease's holder one of another machine, of whom this host cannot tell."""
    file = next(base.parent.glob("lease.*.json"))
    replace_json(file, {**read_json(file), "host": "elsewhere", "boot": "another", **changes})


def test_an_owner_that_is_proved_dead_is_taken_over_from_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCMASS_SLURM_JOB", "12")
    monkeypatch.setenv("HPCMASS_SLURM_RESTART", "1")
    old = Lease(tmp_path / "lease")
    old.acquire()
    remote_owner(tmp_path / "lease")
    asked: list[Owner] = []

    def dead(owner: Owner) -> bool:
        asked.append(owner)
        return owner.slurm_job_id == "12" and owner.slurm_restart < 2

    new = Lease(tmp_path / "lease")
    with pytest.raises(LeaseHeld):
        new.acquire(dead=lambda owner: False)
    new.acquire(dead=dead)
    assert [(owner.slurm_job_id, owner.slurm_restart) for owner in asked] == [("12", 1)]
    new.release()


def test_an_owner_that_lives_here_is_never_proved_dead(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "lease")
    lease.acquire()
    with pytest.raises(LeaseHeld):
        Lease(tmp_path / "lease").acquire(dead=lambda owner: True)
    assert not lease.lost
    lease.release()


def test_a_holder_that_was_taken_for_dead_learns_it_within_a_second_or_two(tmp_path: Path) -> None:
    """Its node was given up by Slurm, but it runs on, and its beats are fresh."""
    old = Lease(tmp_path / "lease", ttl_s=600)
    old.acquire()
    remote_owner(tmp_path / "lease")
    new = Lease(tmp_path / "lease")
    new.acquire(dead=lambda owner: True)
    until = time.monotonic() + 240
    while not old.lost:
        assert time.monotonic() < until
        time.sleep(0.05)
    old.release()
    assert not new.lost
    new.release()


def test_who_watches_a_lease_learns_that_its_holder_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, watch = Lease(tmp_path / "lease"), Lease(tmp_path / "lease", ttl_s=0.5)
    assert watch.gone()
    lease.acquire()
    assert not watch.gone()
    lease.release()
    assert watch.gone()
    lease.acquire()
    # As seen from another host, whose clock is years ahead: only what is not renewed while it looks is gone.
    monkeypatch.setattr(Owner, "alive", lambda self: None)
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert not watch.gone()
    until = time.monotonic() + 120
    while not watch.gone():
        assert time.monotonic() < until
        time.sleep(0.05)
    lease.drop()


def test_a_dropped_lease_is_not_written_again(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "folder" / "lease", ttl_s=0.03)
    lease.acquire()
    lease.drop()
    shutil.rmtree(tmp_path / "folder")
    lease.release()
    assert not (tmp_path / "folder").exists()
