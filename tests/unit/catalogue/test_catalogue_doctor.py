"""What `doctor` finds of real file systems, and what it says of such as lack something."""

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Registration
from hpcmass.catalogue import doctor as doctor_module
from hpcmass.catalogue.doctor import diagnose
from hpcmass.catalogue.doctor_room import mount_of, parse_quota, quota_probes, room_probes
from hpcmass.catalogue.fsck import scan
from hpcmass.catalogue.gc import collect
from hpcmass.catalogue.peer import Peer
from hpcmass.catalogue.retention import Rules
from hpcmass.errors import StorageError

publish_module = sys.modules["hpcmass.files.publish"]  # in the package, the name is that of a function


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w").write_text("w")
    catalogue = Catalogue(tmp_path / "c")
    catalogue.register("m", tmp_path / "model", metrics={}, lineage={})
    return catalogue


def states(root: Path, peer: Peer | None = None) -> dict[str, str]:
    return {one.name: one.state for one in diagnose(root, peer).probes}


def test_a_good_file_system(catalogue: Catalogue) -> None:
    before = sorted(os.listdir(catalogue.path))
    found = diagnose(catalogue.path)
    assert found.ok, found.probes
    tried = {one.name for one in found.probes if one.state == "good"}
    assert tried >= {
        "link",
        "O_EXCL",
        "rename over",
        "modes",
        "claims",
        "appending",
        "name cache",
        "flock",
        "clock",
    }
    assert sorted(os.listdir(catalogue.path)) == sorted([*before, "filesystem.json"])
    said = json.loads((catalogue.path / "filesystem.json").read_text())
    assert (said["links"], said["format"]) == (True, 1)


def test_before_there_is_a_catalogue(tmp_path: Path) -> None:
    found = diagnose(tmp_path / "not" / "yet")
    assert (found.folder, found.ok, found.recorded) == (tmp_path, True, False)
    assert os.listdir(tmp_path) == []


def test_memory_is_told(tmp_path: Path) -> None:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no file system in memory here")
    folder = Path("/dev/shm") / f"hpcmass-doctor-{os.getpid()}"
    folder.mkdir()
    try:
        one = {one.name: one for one in diagnose(folder).probes}["fsync"]
    finally:
        shutil.rmtree(folder)
    assert (one.state, "memory" in one.found) == ("note", True)


def test_the_second_process_by_a_command_with_and_without_a_shell(catalogue: Catalogue) -> None:
    odd = catalogue.path.with_name("a folder's; name")
    os.rename(catalogue.path, odd)
    assert states(odd, Peer(["env"]))["claims"] == "good"
    assert states(odd, Peer(["sh", "-c"], shell=True))["claims"] == "good"
    one = {one.name: one for one in diagnose(odd, Peer(["false"])).probes}["second process"]
    assert (one.state, "ended" in one.found) == ("bad", True)
    one = {one.name: one for one in diagnose(odd, Peer(["/no/such/ssh"])).probes}["second process"]
    assert one.state == "bad"


def test_without_hard_links_it_is_kept_and_later_writers_do_not_try(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a file system that refuses them with an error that publishing does not take for a lack of them."""

    def refused(*_: object, **__: object) -> None:
        tried.append(1)
        raise OSError(errno.EINVAL, "Invalid argument")

    tried: list[int] = []
    monkeypatch.setattr(publish_module, "_avoided", set())
    with monkeypatch.context() as broken:
        broken.setattr(os, "link", refused)
        found = diagnose(catalogue.path)
        assert (found.links, found.ok) == (False, True)
        publish_module._avoided.clear()  # as in a process that starts later
        tried.clear()
        later = Catalogue(catalogue.path)
        assert later.register("m", tmp_path / "model", metrics={}, lineage={}).ref == "m@2"
        (tmp_path / "model" / "w").write_text("new")
        assert [v.ref for v in later.register_many([Registration("m", tmp_path / "model")] * 2)] == [
            "m@3",
            "m@4",
        ]
        assert tried == []
    assert diagnose(catalogue.path).links  # the file system was mended


@pytest.mark.parametrize(
    ("call", "name", "state"),
    [("fsync", "fsync", "bad"), ("replace", "rename over", "bad"), ("chmod", "modes", "note")],
)
def test_what_does_not_work_is_told(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, call: str, name: str, state: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    # Modes are not refused there, but not kept; the other calls fail.
    with monkeypatch.context() as broken:
        broken.setattr(doctor_module.os, call, (lambda *_: None) if call == "chmod" else fails)
        found = {
            one.name: one for one in list(doctor_module._alone(catalogue.path, doctor_module.Diagnosis(Path())))
        }
    assert found[name].state == state


def test_a_race_that_gives_a_name_twice_is_told(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module.doctor_peer, "claim_all", lambda *_: list(range(100)))
    one = {one.name: one for one in diagnose(catalogue.path).probes}["claims"]
    assert (one.state, "twice" in one.found) == ("bad", True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB with 150 inodes."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounts a file system, which root alone may")
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=150", "tmpfs", folder]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("may not mount here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path, inodes: bool) -> None:
    """Use up all room, or all inodes."""
    with contextlib.suppress(OSError):
        if inodes:
            for number in range(1000):
                (folder / f"fill{number}").touch()
        with open(folder / "fill", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)


def test_how_much_room_there_is(small: Path) -> None:
    assert mount_of(small) == (str(small), "tmpfs", "tmpfs")
    assert {one.state for one in room_probes(small)} == {"good"}
    fill(small, inodes=False)
    found = {one.name: one for one in room_probes(small)}
    assert (found["space"].state, "gc" in found["space"].advice, found["inodes"].state) == ("bad", True, "good")
    (small / "fill").unlink()
    fill(small, inodes=True)
    assert {one.name: one.state for one in room_probes(small)}["inodes"] == "bad"


@pytest.mark.parametrize("inodes", [False, True])
def test_a_full_file_system_takes_nothing_half_and_gc_makes_room(
    small: Path, tmp_path: Path, inodes: bool
) -> None:
    catalogue, model = Catalogue(small / "c"), tmp_path / "model"
    model.mkdir()
    for number in range(4):
        (model / "w").write_bytes(bytes([number]) * 100_000)
        catalogue.register("m", model, metrics={}, lineage={})
    collect(catalogue.path)  # which keeps a little in reserve
    fill(small, inodes)
    (model / "w").write_bytes(b"9" * 100_000)
    for register in (
        lambda: catalogue.register("m", model, metrics={}, lineage={}),
        lambda: catalogue.register_many([Registration("m", model)]),
    ):
        with pytest.raises(StorageError, match="full"):
            register()
    assert [one.ref for one in Catalogue(catalogue.path).list()] == ["m@1", "m@2", "m@3", "m@4"]
    assert Catalogue(catalogue.path).verify().ok
    report = collect(catalogue.path, Rules(keep_last=1), grace_s=0)
    assert (len(report.gone), report.purged) == (3, 6)
    assert catalogue.register("m", model, metrics={}, lineage={}).ref == "m@5"
    assert scan(catalogue.path).findings == []


QUOTA = """Disk quotas for user anna (uid 1000):
     Filesystem   space   quota   limit   grace   files   quota   limit   grace
/dev/sdb1 99* 80 100 7days 5 0 10 0
nas:/home 20 0 0 0 12 0 0 0
"""


def test_quotas_are_read() -> None:
    assert parse_quota(QUOTA, {"/dev/sdb1", "/data"}) == {"space": (99, 80), "files": (5, 10)}
    assert parse_quota(QUOTA, {"nas:/home"}) == {"space": (20, 0), "files": (12, 0)}
    assert parse_quota(QUOTA, {"/elsewhere"}) is None


def test_a_quota_that_is_nearly_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = mount_of(tmp_path)
    assert mount is not None
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "quota"
    program.write_text(f"#!/bin/sh\necho '{mount[2]} 990000 0 1000000 0 5 0 0 0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert [(one.name, one.state) for one in quota_probes(tmp_path)] == [("quota of space", "bad")]
    program.write_text("#!/bin/sh\necho none\n")
    assert [one.state for one in quota_probes(tmp_path)] == ["good"]


def test_what_anybody_may_change_is_told(catalogue: Catalogue) -> None:
    catalogue.path.chmod(0o777)
    assert states(catalogue.path)["sharing"] == "bad"
    catalogue.path.chmod(0o755)
    journal = next((catalogue.path / "journals").iterdir())
    assert stat.S_IMODE(journal.stat().st_mode) & 0o400
    assert states(catalogue.path)["journals"] == "good"
