"""A catalogue that a group shares, by real unprivileged users: right whatever the umask, and each one's own."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcmass.catalogue.doctor import diagnose
from hpcmass.catalogue.fsck import scan
from hpcmass.catalogue.mending import repair
from hpcmass.files import make_dir_as_parent, shared_mode

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which root alone may")

ANNA, BERT, GUEST, GROUP, OTHERS = 60001, 60002, 60003, 60100, 60200

WORK = """
import json, os, sys
uid, gid, umask, root, folder, what = sys.argv[1:]
from pathlib import Path
from hpcmass.catalogue import Catalogue, Registration
from hpcmass.catalogue.gc import collect
from hpcmass.catalogue.retention import Rules
from hpcmass.errors import HpcmassError
import getpass, pwd  # all that is imported, before the interpreter's own folder may not be read any more
os.setgroups([int(gid)])
os.setresgid(int(gid), int(gid), int(gid))
os.setresuid(int(uid), int(uid), int(uid))
os.umask(int(umask, 8))
os.environ["XDG_CACHE_HOME"] = f"/tmp/nowhere-{uid}"  # an index in memory
catalogue, folder, told = Catalogue(root), Path(folder), {}
try:
    if what == "register":
        told = [catalogue.register("m", folder, metrics={}, lineage={}).ref,
                *(one.ref for one in catalogue.register_many(
                    [Registration("m", folder), Registration(f"of-{uid}", folder)]))]
        catalogue.alias("m", "best", int(told[0][2:]), why="mine")
    elif what == "read":
        told = {"refs": [one.ref for one in catalogue.list()], "ok": catalogue.verify().ok,
                "found": len(catalogue.search()), "best": catalogue.aliases("m")["best"]}
    elif what == "change":
        told = {}
        for path in sorted(Path(root).rglob("*")):
            if path.is_file() and path.stat().st_uid != int(uid):
                for way in ("write", "chmod", "unlink"):
                    try:
                        open(path, "ab").close() if way == "write" else None
                        path.chmod(0o666) if way == "chmod" else None
                        path.unlink() if way == "unlink" else None
                        told.setdefault(way, []).append(str(path))
                    except PermissionError:
                        told.setdefault("refused", []).append(str(path))
    elif what == "gc":
        report = collect(Path(root), Rules(keep_last=1, history=False), grace_s=0, why="test")
        told = {"gone": [one.version.ref for one in report.gone], "refused": len(report.refused)}
except HpcmassError as error:
    told = {"error": str(error)}
print(json.dumps(told))
"""


def as_user(uid: int, root: Path, folder: Path, what: str, *, umask: str = "077", gid: int = GROUP) -> object:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-c", WORK, str(uid), str(gid), umask, str(root), str(folder), what]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that others can reach, which pytest's own is not; and a model in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "model").mkdir()
        (place / "model" / "w").write_text("weights")
        yield place


def shared(place: Path, mode: int) -> Path:
    root = place / "catalogue"
    root.mkdir()
    os.chown(root, ANNA, GROUP)
    root.chmod(mode)
    return root


@pytest.mark.parametrize("umask", ["077", "022", "002"])
@pytest.mark.parametrize("mode", [0o2775, 0o2770, 0o3775])
def test_two_users_register_whatever_their_umask(place: Path, mode: int, umask: str) -> None:
    root = shared(place, mode)
    assert as_user(ANNA, root, place / "model", "register", umask=umask) == ["m@1", "m@2", f"of-{ANNA}@1"]
    assert as_user(BERT, root, place / "model", "register", umask=umask) == ["m@3", "m@4", f"of-{BERT}@1"]
    assert as_user(ANNA, root, place / "model", "register", umask=umask)[0] == "m@5"
    for reader in (ANNA, BERT):
        seen = as_user(reader, root, place / "model", "read")
        assert (len(seen["refs"]), seen["ok"], seen["found"], seen["best"]) == (9, True, 9, 5)
    for path in root.rglob("*"):
        found = path.stat()
        assert found.st_gid == GROUP
        assert stat.S_IMODE(found.st_mode) == (
            mode if path.is_dir() else stat.S_IMODE(found.st_mode) & 0o600 | 0o044 & mode
        )
    assert scan(root).findings == []
    assert {one.name: one.state for one in diagnose(root).probes}["modes below"] == "good"


def test_a_version_of_anothers_is_readable_and_not_changeable(place: Path) -> None:
    root = shared(place, 0o3775)
    as_user(ANNA, root, place / "model", "register")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    told = as_user(BERT, root, place / "model", "change")
    assert set(told) == {"refused"}
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert as_user(BERT, root, place / "model", "read")["ok"]
    as_user(ANNA, root, place / "model", "register")
    told = as_user(BERT, root, place / "model", "gc")
    assert told == {"gone": [], "refused": told["refused"]}
    assert told["refused"] > 0
    assert as_user(BERT, root, place / "model", "read")["ok"]


def test_whom_nobody_asked_reads_or_does_not(place: Path) -> None:
    root = shared(place, 0o2775)
    as_user(ANNA, root, place / "model", "register")
    assert as_user(GUEST, root, place / "model", "read", gid=OTHERS)["ok"]
    assert "ermission" in as_user(GUEST, root, place / "model", "register", gid=OTHERS)["error"]
    assert set(as_user(GUEST, root, place / "model", "change", gid=OTHERS)) == {"refused"}
    for path in [root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o007)
    assert "ermission" in as_user(GUEST, root, place / "model", "read", gid=OTHERS)["error"]


def test_a_member_collects_what_others_registered(place: Path) -> None:
    root = shared(place, 0o2775)
    for user in (ANNA, BERT, ANNA):
        as_user(user, root, place / "model", "register")
    gone = ["m@1", "m@2", "m@3", "m@4", f"of-{ANNA}@1"]  # the alias has the fifth
    assert as_user(BERT, root, place / "model", "gc") == {"gone": gone, "refused": 0}
    assert as_user(ANNA, root, place / "model", "gc") == {"gone": [], "refused": 0}
    seen = as_user(ANNA, root, place / "model", "read")
    assert seen["ok"]
    assert seen["refs"] == ["m@5", "m@6", f"of-{ANNA}@2", f"of-{BERT}@1"]
    assert scan(root).findings == []


def test_doctor_finds_wrong_modes_and_fsck_mends_them(place: Path) -> None:
    root = shared(place, 0o2775)
    as_user(ANNA, root, place / "model", "register")
    (root / "models" / "m").chmod(0o755)
    (root / "cas" / "packs").chmod(0o775)  # without the set-group-ID bit
    os.chown(root / "models", ANNA, OTHERS)
    journal = next((root / "journals").iterdir())
    journal.chmod(0o600)
    told = as_user(BERT, root, place / "model", "register")
    assert "ermission" in told["error"]  # two versions of m were registered before it came to the wrong folder
    found = {one.name: one for one in diagnose(root).probes}
    assert found["modes below"].state == "bad"
    assert "4 do not follow" in found["modes below"].found
    assert {one.kind for one in scan(root).findings} == {"mode"}
    report = repair(root)
    assert report.ok
    assert as_user(BERT, root, place / "model", "register") == ["m@5", "m@6", f"of-{BERT}@1"]


def test_a_folder_that_is_group_writable_without_its_bit_is_named(place: Path) -> None:
    root = shared(place, 0o775)
    as_user(ANNA, root, place / "model", "register")
    (root / "of-bert").mkdir()
    os.chown(root / "of-bert", BERT, GROUP)
    one = {one.name: one for one in diagnose(root).probes}["sharing"]
    assert (one.state, "chmod 2775" in one.advice) == ("bad", True)
    root.chmod(0o777)
    assert "o-w" in {one.name: one for one in diagnose(root).probes}["sharing"].advice


def test_a_catalogue_made_in_a_shared_folder_is_shared(place: Path) -> None:
    place.chmod(0o2775)
    os.chown(place, ANNA, GROUP)
    as_user(ANNA, place / "made", place / "model", "register")
    assert shared_mode(place / "made") == 0o2775
    assert as_user(BERT, place / "made", place / "model", "register")[0] == "m@3"


def test_a_folder_of_a_shared_one_appears_with_its_mode(tmp_path: Path) -> None:
    """Never with the umask's first: another member could find it before it is opened to the group."""
    tmp_path.chmod(0o2775)
    seen, rename = [], os.rename
    before = os.umask(0o077)
    try:
        os.rename = lambda a, b: (
            seen.append((stat.S_IMODE(os.stat(a).st_mode), Path(b).exists())),
            rename(a, b),
        )
        make_dir_as_parent(tmp_path / "new", tmp_path / ".new.tmp")
        make_dir_as_parent(tmp_path / "new", tmp_path / ".new.tmp")
    finally:
        os.rename = rename
        os.umask(before)
    assert seen == [(0o2775, False)]
    assert sorted(os.listdir(tmp_path)) == ["new"]
