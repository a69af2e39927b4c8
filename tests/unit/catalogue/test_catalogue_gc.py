"""Collecting: what stays and why, what goes, and writers beside it that register the same content all the while."""

import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Registration
from hpcmass.catalogue import aliases as aliases_module
from hpcmass.catalogue import catalogue as catalogue_module
from hpcmass.catalogue import gc as gc_module
from hpcmass.catalogue import ranges as ranges_module
from hpcmass.catalogue.aliases import AliasMove
from hpcmass.catalogue.aside import lease, runs
from hpcmass.catalogue.claims import claim_json
from hpcmass.catalogue.fsck import scan
from hpcmass.catalogue.gc import collect
from hpcmass.catalogue.journal import Pointer, append
from hpcmass.catalogue.moved import elsewhere, read_moved
from hpcmass.catalogue.removing import gravestones, revive
from hpcmass.catalogue.retention import Rules, decide
from hpcmass.catalogue.survey import pending, survey
from hpcmass.catalogue.version import FileEntry
from hpcmass.errors import CatalogueError, LeaseHeld, NotFound
from hpcmass.files import temporary_beside

READER = Path(__file__).parents[3] / "docs" / "read_catalogue.py"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def model(tmp_path: Path, number: int, size: int = 2000) -> Path:
    folder = tmp_path / "models" / f"{number}-{size}"
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / "w").write_bytes(random.Random(number).randbytes(size))
    return folder


def register(catalogue: Catalogue, tmp_path: Path, count: int, name: str = "m", **lineage: str) -> None:
    for number in range(count):
        catalogue.register(
            name,
            model(tmp_path, number),
            metrics={"loss": -number, "test": {"accuracy": number}},
            lineage=lineage,
        )


def refs(catalogue: Catalogue) -> list[str]:
    return [version.ref for version in Catalogue(catalogue.path).list()]


def kept(catalogue: Catalogue, rules: Rules) -> dict[str, tuple[str, ...]]:
    return {
        one.version.ref: one.why for one in decide(survey(catalogue.path), rules, time.time()) if not one.goes
    }


def files(catalogue: Catalogue) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in catalogue.path.rglob("*") if path.is_file()}


# -- rules -----------------------------------------------------------------------------------------
def test_each_rule_keeps_what_it_says(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 8)
    for version in (2, 3):
        catalogue.alias("m", "production", version, why="")
    catalogue.register("m", model(tmp_path, 20), metrics={}, lineage={"parent": "m@5"})
    catalogue.register(
        "m", model(tmp_path, 21), metrics={}, lineage={"parent": None, "began_with": {"what": "m@9"}}
    )
    catalogue.register("m", model(tmp_path, 22), metrics={"loss": "NaN"}, lineage={})
    catalogue.alias("m", "candidate", 10, why="")
    assert len(kept(catalogue, Rules())) == 11
    always = {
        "m@2": ("alias production had it",),
        "m@3": ("alias production",),
        "m@5": ("ancestor of m@10",),
        "m@9": ("ancestor of m@10",),
        "m@10": ("alias candidate",),
        "m@11": ("newest of its model",),
    }
    assert kept(catalogue, Rules(newer_than_s=0)) == always
    assert set(kept(catalogue, Rules(newer_than_s=0, history=False))) == {*always} - {"m@2"}
    best = kept(catalogue, Rules(keep_best=(("loss", 2, True), ("test.accuracy", 1, False))))
    assert best["m@8"] == ("loss: best 1 of 8", "test.accuracy: best 1 of 8")
    assert set(best) == {*always, "m@8", "m@7"}
    assert set(kept(catalogue, Rules(keep_best=(("loss", 1, False),)))) == {*always, "m@1"}
    assert set(kept(catalogue, Rules(keep_last=4))) == {*always, "m@8"}
    assert len(kept(catalogue, Rules(newer_than_s=3600))) == 11


def test_a_quota_takes_the_oldest_and_no_more_than_it_must(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 6)
    register(catalogue, tmp_path, 6, "same")  # the same content: it is freed when both are gone
    decisions = decide(survey(catalogue.path), Rules(max_bytes=6 * 2000), time.time())
    assert not [one for one in decisions if one.goes]
    decisions = decide(survey(catalogue.path), Rules(max_bytes=5 * 2000), time.time())
    gone = [(one.version.ref, one.frees) for one in decisions if one.goes]
    assert gone == [("m@1", 0), ("m@2", 0), ("m@3", 0), ("m@4", 0), ("m@5", 0), ("same@1", 2000)]
    decisions = decide(survey(catalogue.path), Rules(max_files=15), time.time())  # 12 claims, 6 blobs
    assert [one.version.ref for one in decisions if one.goes] == ["m@1", "m@2", "m@3"]
    assert decide(survey(catalogue.path), Rules(max_files=15), time.time())[4].why == ("within the quota",)


# -- collecting ------------------------------------------------------------------------------------
def test_a_dry_run_changes_nothing_and_says_what_a_real_one_does(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 5)
    catalogue.search()
    before, rules = files(catalogue), Rules(keep_last=2)
    dry = collect(catalogue.path, rules, dry_run=True)
    assert files(catalogue) == before
    real = collect(catalogue.path, rules, grace_s=0, why="room")
    assert (
        [one.version.ref for one in dry.gone] == [one.version.ref for one in real.gone] == ["m@1", "m@2", "m@3"]
    )
    assert (dry.unused, dry.unused_bytes) == (real.unused, real.unused_bytes) == (3, 6000)
    assert real.purged == 6  # three blobs, three claims
    assert refs(catalogue) == ["m@4", "m@5"]
    with pytest.raises(NotFound, match="room"):
        catalogue.get("m@2")
    said = json.loads((catalogue.path / "removals" / "000001.json").read_text())
    assert (said["versions"], said["why"], said["rules"]["keep_last"]) == (["m@1", "m@2", "m@3"], "room", 2)
    assert "@" in said["by"]


def test_what_was_measured_of_a_version_goes_with_it(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 2)
    for number in (1, 2):
        (catalogue.path / f"models/m/evaluations/{number:06d}").mkdir(parents=True)
        (catalogue.path / f"models/m/evaluations/{number:06d}/000001.json").write_text("{}")
    assert collect(catalogue.path, Rules(keep_last=1), grace_s=0).purged == 3
    assert os.listdir(catalogue.path / "models/m/evaluations") == ["000002"]


def test_readers_indices_learn_what_is_gone_and_no_number_is_given_twice(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 3)
    assert len(catalogue.search()) == 3
    collect(catalogue.path, Rules(keep_last=1), grace_s=0)
    assert [one.ref for one in catalogue.search()] == ["m@3"]
    assert catalogue.index.fresh().execute("SELECT * FROM pending").fetchall() == []  # they will not come
    assert catalogue.register("m", model(tmp_path, 0), metrics={}, lineage={}).ref == "m@4"
    assert [one.ref for one in catalogue.search()] == ["m@3", "m@4"]


def test_a_writer_that_stalls_beside_a_collector_gets_no_number_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, stalled = Catalogue(tmp_path / "c"), Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 1)
    announce, seen = stalled._announce, []

    def slowly(name: str, number: int) -> None:
        announce(name, number)
        if not seen:
            register(catalogue, tmp_path, 2)
            collect(catalogue.path, Rules(keep_last=1), grace_s=0)
        seen.append(number)

    monkeypatch.setattr(stalled, "_announce", slowly)
    made = stalled.register("m", model(tmp_path, 9), metrics={}, lineage={})
    assert (seen, made.ref) == ([2, 4], "m@4")
    with pytest.raises(NotFound):
        catalogue.get("m@2")
    assert refs(catalogue) == ["m@3", "m@4"]
    # Nobody stalls for longer than an hour: then what stands there goes, and an alias still brings a version back.
    folder = catalogue.path / "models/m/versions"
    assert sorted(os.listdir(folder)) == [f"{n:06d}.json" for n in (1, 2, 3, 4)]
    for number in (1, 2, 4):
        os.utime(folder / f"{number:06d}.json", (time.time() - 3700,) * 2)
    assert not scan(catalogue.path).findings
    assert not collect(catalogue.path).gone
    assert sorted(os.listdir(folder)) == ["000003.json", "000004.json"]
    assert catalogue.register("m", model(tmp_path, 10), metrics={}, lineage={}).ref == "m@5"


def test_a_version_that_is_brought_back_to_where_its_stone_goes_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 3)
    collect(catalogue.path, Rules(keep_last=1))
    path = catalogue.path / "models/m/versions/000001.json"
    os.utime(path, (1, 1))

    def slowly(root: Path) -> list[Path]:
        found = gravestones(root)
        assert found == [path]
        assert revive(root, "m", 1)
        catalogue.alias("m", "back", 1, why="")
        return found

    monkeypatch.setattr("hpcmass.catalogue.gc.gravestones", slowly)
    collect(catalogue.path)
    assert catalogue.get("m@back").version == 1
    assert catalogue.verify().ok


def test_what_comes_back_of_a_claim_that_lost_versions_in_turn_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = itertools.count()  # within a second runs would have names in any order
    monkeypatch.setattr("hpcmass.catalogue.aside.secrets.token_hex", lambda _: f"{next(number):08x}")
    catalogue = Catalogue(tmp_path / "c")
    catalogue.register_many([Registration("m", model(tmp_path, one), {"n": one}) for one in range(3)])
    catalogue.register("m", model(tmp_path, 9), metrics={}, lineage={})
    for left in (2, 1):
        collect(catalogue.path, Rules(keep_best=(("n", left, False),)))
    assert refs(catalogue) == ["m@3", "m@4"]
    os.utime(catalogue.path / "models/m/versions/000001.json", (1, 1))
    collect(catalogue.path, Rules(keep_last=1))
    assert sorted(os.listdir(catalogue.path / "models/m/versions")) == ["000004.json"]
    assert revive(catalogue.path, "m", 3)  # of the copies of the claim the newest says what else is gone
    assert refs(catalogue) == ["m@3", "m@4"]
    assert Catalogue(catalogue.path).verify().ok


def test_of_a_claim_of_several_the_others_stay(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    catalogue.register_many([Registration("m", model(tmp_path, one), {"n": one % 10}) for one in range(40)])
    before = {version.ref: version for version in catalogue.list()}
    collect(catalogue.path, Rules(keep_best=(("n", 4, False),)), grace_s=0, why="only the best")
    assert refs(catalogue) == ["m@10", "m@20", "m@30", "m@40"]
    again = Catalogue(catalogue.path)
    for ref in refs(catalogue):
        assert again.get(ref) == before[ref]
        folder = again.materialise(again.get(ref), tmp_path / ref)
        assert (folder / "w").read_bytes() == (model(tmp_path, before[ref].version - 1) / "w").read_bytes()
    assert again.get("m").version == 40
    with pytest.raises(NotFound, match="only the best"):
        again.get("m@7")
    # 36 of 40 files of the pack were dead: what is left lies in another one.
    packs = [path for path in (catalogue.path / "cas" / "packs").rglob("*") if len(path.name) == 64]
    assert [path.stat().st_size for path in packs] == [4 * 2000]
    assert again.register("m", model(tmp_path, 50), metrics={}, lineage={}).ref == "m@41"
    done = subprocess.run(
        [sys.executable, "-I", READER, catalogue.path], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "m@1..40")
    # The claim is the last one no more, and goes when all of it goes; what says where the pack went goes, too.
    os.utime(catalogue.path / "models/m/versions/000001.json", (1, 1))
    collect(catalogue.path, Rules(keep_last=1), grace_s=0)
    assert refs(catalogue) == ["m@41"]
    assert not [path for path in (catalogue.path / "cas" / "packs").rglob("*") if path.is_file()]
    assert sorted(os.listdir(catalogue.path / "models/m/versions")) == ["000041.json"]


def test_a_pack_is_written_anew_again_and_again(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    catalogue.register_many([Registration("m", model(tmp_path, one), {"n": one}) for one in range(64)])
    for left in (20, 6, 2):
        collect(catalogue.path, Rules(keep_best=(("n", left, False),)), grace_s=0)
        assert len(refs(catalogue)) == left
        assert Catalogue(catalogue.path).verify().ok
    entry = Catalogue(catalogue.path).get("m@64").files["w"]
    assert read_moved(catalogue.path / "cas", entry.pack)[entry.sha256][0] != entry.pack
    # Registered again, the very same pack comes back; both ways to it are good.
    again = Catalogue(catalogue.path)
    again.register_many([Registration("m", model(tmp_path, one), {"n": one}) for one in range(64)])
    assert again.verify().ok


def test_what_goes_lies_in_the_trash_for_the_grace_and_readers_find_it(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 3)
    first = catalogue.get("m@1")
    report = collect(catalogue.path, Rules(keep_last=1))
    assert (len(report.gone), report.unused, report.purged) == (2, 2, 0)
    assert catalogue.materialise(first, tmp_path / "copy").is_dir()  # who had it in hand
    assert catalogue.open_files(first)["w"].read_bytes() == (model(tmp_path, 0) / "w").read_bytes()
    assert collect(catalogue.path).purged == 0
    for aside in runs(catalogue.path, "trash"):
        os.rename(aside.folder, aside.folder.with_name(f"{int(time.time()) - 90000:010d}-{aside.run[-8:]}"))
    assert collect(catalogue.path).purged == 4
    assert not os.listdir(catalogue.path / "trash")
    assert refs(catalogue) == ["m@3"]


def test_content_that_a_writer_may_be_about_to_use_is_left(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 1)
    (tmp_path / "new").write_text("new")
    entry = catalogue.blobs.add(tmp_path / "new")
    assert collect(catalogue.path).unused == 0
    os.utime(catalogue.blobs.where(entry), (1, 1))
    assert collect(catalogue.path).unused == 1


def test_what_killed_writers_left_goes_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 1)
    left = [
        temporary_beside(catalogue.path / where)
        for where in ("cas/x", "models/m", "journals/j", "catalogue.json")
    ]
    for path in left:  # folders, too: such as are made under another name
        path.mkdir() if path.parent.name == "models" else path.write_text("half")
    (left[1] / "in it").write_text("x")
    assert collect(catalogue.path, grace_s=0).unused == 0
    for path in left[:3]:
        os.utime(path, (time.time() - 90_000,) * 2)
    report = collect(catalogue.path, grace_s=0)
    assert (report.unused, report.purged) == (3, 3)
    assert [path.exists() for path in left] == [False, False, False, True]
    process = subprocess.Popen(["true"])
    process.wait()
    dead = left[3].with_name(left[3].name.replace(f"-{os.getpid()}-", f"-{process.pid}-"))
    os.rename(left[3], dead)
    os.utime(dead, (time.time() - 90,) * 2)  # of this machine it is known at once, or after a minute
    assert collect(catalogue.path, grace_s=0).purged == 1
    assert not dead.exists()
    assert not list((catalogue.path / "trash").iterdir())


def test_nothing_is_deleted_while_a_version_is_announced_and_not_there(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 3)
    append(catalogue.path / "journals", [Pointer("m", 4)])  # a writer between announcing and claiming, or dead
    assert pending(catalogue.path) == {Pointer("m", 4)}
    report = collect(catalogue.path, Rules(keep_last=1), grace_s=0)
    assert (report.purged, "m@4" in report.waiting[0]) == (0, True)
    catalogue.register(
        "m", model(tmp_path, 1), metrics={}, lineage={}
    )  # it was about to use what lies in the trash
    report = collect(catalogue.path, grace_s=0)
    assert report.purged > 0
    assert refs(catalogue) == ["m@3", "m@4"]
    assert catalogue.verify().ok


def test_one_at_a_time_and_not_where_claims_cannot_be_read(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 2)
    with lease(catalogue.path), pytest.raises(LeaseHeld):
        collect(catalogue.path, Rules(keep_last=1))
    path = catalogue.path / "models/m/versions/000001.json"
    path.chmod(0o644)
    path.write_text("{")
    for dry_run in (True, False):
        with pytest.raises(CatalogueError, match="fsck"):
            collect(catalogue.path, Rules(keep_last=1), dry_run=dry_run)
    with pytest.raises(CatalogueError, match="no catalogue"):
        collect(tmp_path / "nowhere")


# -- races, each step in its turn ------------------------------------------------------------------
@pytest.mark.parametrize("packed", [False, True])
def test_content_deleted_before_a_version_is_announced_is_there_when_it_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """A writer that is killed right after its claim leaves a whole version, too."""
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 2)
    if packed:
        catalogue.register_many([Registration("m", model(tmp_path, 3))])
        register(catalogue, tmp_path, 1)
    announce, claim, done, looked = catalogue._announce, ranges_module.claim_json, [], []

    def announced(name: str, number: int) -> None:
        if not done:
            done.append(collect(catalogue.path, Rules(keep_last=1), grace_s=0))
        announce(name, number)

    def claimed(path: Path, value: dict, **options: bool) -> bool:
        entries = [FileEntry(**entry) for entry in value["files"].values()]
        looked.extend(elsewhere(catalogue.path / "cas", entry, trash=False) for entry in entries)
        return claim(path, value, **options)

    monkeypatch.setattr(catalogue, "_announce", announced)
    monkeypatch.setattr(ranges_module, "claim_json", claimed)
    if packed:  # by a catalogue that knows of a pack
        made = catalogue.register_many([Registration("m", model(tmp_path, 3))])[0]
    else:
        made = catalogue.register("m", model(tmp_path, 0), metrics={}, lineage={})  # it found its blob there
    assert done[0].purged >= 2
    assert len(looked) == 1
    assert looked[0] is not None
    assert Catalogue(catalogue.path).get(made.ref) == made
    assert Catalogue(catalogue.path).verify().ok


def test_content_taken_between_looking_and_claiming_is_put_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 2)
    claim, done = ranges_module.claim_json, []

    def claimed(path: Path, value: dict, **options: bool) -> bool:
        done.append(collect(catalogue.path, Rules(keep_last=1), grace_s=0))
        return claim(path, value, **options)

    monkeypatch.setattr(ranges_module, "claim_json", claimed)
    made = catalogue.register("m", model(tmp_path, 0), metrics={}, lineage={})
    assert (done[0].unused, done[0].purged, len(done[0].waiting)) == (1, 0, 1)
    assert catalogue.blobs.where(made.files["w"]).exists()  # and not in the trash alone
    assert Catalogue(catalogue.path).verify().ok


def test_content_of_a_version_claimed_as_it_is_taken_is_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its writer is killed before it can look again."""
    catalogue = Catalogue(tmp_path / "c")
    register(catalogue, tmp_path, 3)
    first, pending = catalogue.get("m@1"), gc_module.pending

    def looked(root: Path) -> set[Pointer]:
        assert not catalogue.blobs.where(first.files["w"]).exists()
        claim_json(root / "models/m/versions/000004.json", {**first.to_json(), "version": 4})
        return pending(root)

    monkeypatch.setattr(gc_module, "pending", looked)
    report = collect(catalogue.path, Rules(keep_last=1), grace_s=0)
    assert report.brought_back == [first.files["w"].sha256]
    assert report.purged == 3  # another blob, and two claims
    assert Catalogue(catalogue.path).get("m@4").files == first.files
    assert Catalogue(catalogue.path).verify().ok


def several(catalogue: Catalogue, tmp_path: Path) -> None:
    """A claim of several versions, and three of one."""
    catalogue.register_many([Registration("m", model(tmp_path, one)) for one in range(5)])
    register(catalogue, tmp_path, 3)


@pytest.mark.parametrize("version", [2, 6])  # of a claim of several, of one of its own
def test_an_alias_moved_as_its_version_goes_brings_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Its move is announced, so nothing is deleted; and it looks at the version again when it has moved."""
    catalogue, done = Catalogue(tmp_path / "c"), []
    several(catalogue, tmp_path)
    claim_json = catalogue_module.claim_json

    def claimed(path: Path, value: dict) -> bool:
        done.append(collect(catalogue.path, Rules(keep_last=1), grace_s=0))
        return claim_json(path, value)

    measured = catalogue.path / f"models/m/evaluations/{version:06d}/000001.json"
    measured.parent.mkdir(parents=True)
    measured.write_text("{}")
    for module in (catalogue_module, aliases_module):  # whichever of them claims the move
        monkeypatch.setattr(module, "claim_json", claimed, raising=False)
    catalogue.alias("m", "late", version, why="")
    assert measured.exists()  # what was measured of it went, and came back
    assert (len(done[0].gone), done[0].purged, len(done[0].waiting)) == (7, 0, 1)
    assert Catalogue(catalogue.path).get("m@late").version == version
    assert Catalogue(catalogue.path).verify().ok
    collect(catalogue.path, Rules(keep_last=1), grace_s=0)
    assert f"m@{version}" in refs(catalogue)
    assert Catalogue(catalogue.path).verify().ok
    assert f"m@{version}" in [one.ref for one in Catalogue(catalogue.path).search()]


def test_an_alias_is_refused_whose_version_is_deleted_before_it_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tmp_path / "c")
    several(catalogue, tmp_path)
    append = catalogue_module.append

    def announced(folder: Path, pointers: list[Pointer]) -> None:
        collect(catalogue.path, Rules(keep_last=1), grace_s=0)
        append(folder, pointers)

    monkeypatch.setattr(catalogue_module, "append", announced)
    with pytest.raises(CatalogueError, match="removed meanwhile"):
        catalogue.alias("m", "late", 2, why="")
    assert catalogue.aliases("m") == {}


@pytest.mark.parametrize("version", [2, 6])
def test_a_collector_that_finds_an_alias_at_what_it_took_puts_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """The alias moved between its look and its taking, and whoever moved it was killed before looking again."""
    catalogue = Catalogue(tmp_path / "c")
    several(catalogue, tmp_path)
    take_out = gc_module.take_out

    def taken(*args: object) -> bool:
        move = AliasMove(1, version, None, "", 0.0, "")
        (catalogue.path / "models/m/aliases/late").mkdir(parents=True, exist_ok=True)
        claim_json(catalogue.path / "models/m/aliases/late/000001.json", move.to_json())
        return take_out(*args)

    monkeypatch.setattr(gc_module, "take_out", taken)
    report = collect(catalogue.path, Rules(keep_last=1), grace_s=0)
    assert report.brought_back[0] == f"m@{version}"
    assert [one.version.version for one in report.gone] == [one for one in range(1, 8) if one != version]
    assert Catalogue(catalogue.path).get("m@late").version == version
    assert Catalogue(catalogue.path).verify().ok


WRITER = """
import random, sys, time
from pathlib import Path
from hpcmass.catalogue import Catalogue, Registration
from hpcmass.catalogue import aliases as aliases_module
from hpcmass.catalogue import catalogue as catalogue_module
from hpcmass.catalogue import gc as gc_module
from hpcmass.catalogue import ranges as ranges_module
from hpcmass.catalogue.aliases import AliasMove
from hpcmass.errors import CatalogueError, NotFound
root, models, seed, until = Path(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir()), int(sys.argv[3]), float(sys.argv[4])
pick, catalogue, made = random.Random(seed), Catalogue(root), []
while time.time() < until:
    some = [Registration("m", pick.choice(models), {"by": seed}) for _ in range(pick.choice([1, 1, 5]))]
    if len(some) == 1:
        made.append(catalogue.register("m", some[0].folder, metrics={}, lineage={}))
    else:
        made += catalogue.register_many(some)
    if pick.random() < 0.2:
        try:
            catalogue.alias("m", f"of-{seed}", pick.choice(made[-20:]).version, why="")
        except (NotFound, CatalogueError):
            pass  # it was removed before
print(len(made))
"""


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.soak)])
def test_writers_of_the_same_content_beside_a_collector_without_grace(tmp_path: Path, seconds: int) -> None:
    """Three writers register the same few models again and again while everything old is deleted at once."""
    root = tmp_path / "c"
    for number in range(6):
        model(tmp_path, number)
    register(Catalogue(root), tmp_path, 1)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-c", WRITER, str(root), str(tmp_path / "models")]
    until = time.time() + seconds
    writers = [
        subprocess.Popen([*words, str(seed), str(until)], stdout=subprocess.PIPE, text=True, env=env)
        for seed in range(3)
    ]
    gone = purged = looks = 0
    while any(process.poll() is None for process in writers) or not looks:
        report = collect(root, Rules(keep_last=2, history=False), grace_s=0)
        gone, purged, looks = gone + len(report.gone), purged + report.purged, looks + 1
    told = [int(process.communicate()[0]) for process in writers]
    assert [process.returncode for process in writers] == [0, 0, 0]
    catalogue = Catalogue(root)
    report = catalogue.verify()
    assert report.ok, report.problems
    assert gone > 5
    assert purged > 5
    last = max(version.version for version in catalogue.list())
    assert last == sum(told) + 1  # no number was given twice, none left out
    assert [one.ref for one in catalogue.search()] == [version.ref for version in catalogue.list()]
