"""`shard`: every sample once, the same bytes for any number of workers, nothing left when it fails."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcmass.data import open_dataset, shard, verify_dataset
from hpcmass.data.cut import STRATEGIES
from hpcmass.errors import AlreadyExists, DataError, NameNotAllowed

SPLITS = {"train": 0.7, "valid": 0.2, "test": 0.1}
N = 3000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """3,000 samples: a number of its own in each, an image, a class, a group. Four blocks."""
    rng = np.random.default_rng(0)
    path = tmp_path / "source.npz"
    np.savez(
        path,
        number=np.arange(N),
        image=rng.integers(0, 255, (N, 96, 96), dtype=np.uint8),
        label=rng.integers(0, 5, N).astype(np.int16),
        group=np.sort(rng.integers(0, 90, N)),
    )
    return path


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.h5"))
    }


def left_behind(folder: Path, *known: str) -> list[str]:
    return sorted(set(os.listdir(folder)) - set(known))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_sample_once_as_plain_h5py_reads_it(source: Path, tmp_path: Path, strategy: str) -> None:
    by = "group" if strategy == "grouped" else None
    manifests = shard(source, tmp_path / "out", strategy=strategy, shards=2, splits=SPLITS, by=by, workers=1)
    reader = Path(__file__).with_name("plain_h5py_reader.py")
    seen = subprocess.run(
        [sys.executable, "-I", str(reader), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    rows = json.loads(seen.stdout)
    original = dict(np.load(source))
    assert sorted(row["number"] for row in rows) == list(range(N))
    for row in rows:
        number = row["number"]
        assert row["label"] == original["label"][number]
        assert row["sum"] == int(original["image"][number].sum())
    assert [m.samples for m in manifests] == [sum(row["split"] == name for row in rows) for name in SPLITS]
    assert left_behind(tmp_path, "source.npz", "out") == []
    assert left_behind(tmp_path / "out", *SPLITS) == []
    if strategy == "grouped":
        splits = {}
        for row in rows:
            splits.setdefault(int(original["group"][row["number"]]), set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
    if strategy == "contiguous":
        assert [row["number"] for row in rows if row["split"] == "train"] == list(range(2100))


def test_same_bytes_for_any_number_of_workers(source: Path, tmp_path: Path) -> None:
    ids, files = [], []
    for workers in (1, 2, 3):
        out = tmp_path / f"out{workers}"
        manifests = shard(source, out, strategy="stratified", shards=3, splits=SPLITS, seed=4, workers=workers)
        ids.append([manifest.id for manifest in manifests])
        files.append(files_of(out))
    assert ids[0] == ids[1] == ids[2]
    assert files[0] == files[1] == files[2]
    assert len(files[0]) == 9
    other = tmp_path / "other"
    shard(source, other, strategy="stratified", shards=3, splits=SPLITS, seed=5, workers=1)
    assert files_of(other) != files[0]


def test_manifest_tells_the_truth(source: Path, tmp_path: Path) -> None:
    stages = []
    (manifest,) = shard(
        source, tmp_path / "out", shards=2, meta=["number", "group"], progress=lambda *one: stages.append(one)
    )
    fields = {one.name: one for one in manifest.fields}
    original = np.load(source)
    assert {name: one.role for name, one in fields.items()} == {
        "number": "meta",
        "image": "input",
        "label": "target",
        "group": "meta",
    }
    assert fields["image"].stats["mean"] == pytest.approx(original["image"].mean())
    assert fields["image"].stats["std"] == pytest.approx(original["image"].std())
    assert fields["label"].classes == ["0", "1", "2", "3", "4"]
    assert fields["label"].stats == {"count": N, "class_counts": np.bincount(original["label"]).tolist()}
    assert manifest.source["files"][0]["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    for info in manifest.shards:
        data = (tmp_path / "out" / info.file).read_bytes()
        assert info.bytes == len(data)
        assert info.sha256 == hashlib.sha256(data).hexdigest()
        with h5py.File(tmp_path / "out" / info.file) as file:
            for name, offset in info.offsets.items():
                assert file[name].id.get_offset() == offset
    assert stages[-1][1] == stages[-1][2]
    assert ("shard", N, N) in stages


def test_the_id_depends_on_content_not_on_place(source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = elsewhere / source.name
    moved.write_bytes(source.read_bytes())
    (here,) = shard(source, tmp_path / "a", shards=2)
    (there,) = shard(moved, tmp_path / "b", shards=2)
    assert here.id == there.id
    assert shard(source, tmp_path / "c", shards=2, seed=1)[0].id != here.id


def test_roles_select_fields(source: Path, tmp_path: Path) -> None:
    (manifest,) = shard(source, tmp_path / "out", inputs=["image"])
    assert [(one.name, one.role) for one in manifest.fields] == [("image", "input"), ("label", "target")]
    (manifest,) = shard(source, tmp_path / "out2", inputs=["image"], targets=["group"], meta=["label"])
    assert {one.name: one.role for one in manifest.fields} == {
        "image": "input",
        "label": "meta",
        "group": "target",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": ["nothing"]}, "no field 'nothing'"),
        ({"inputs": ["image"], "targets": ["image"]}, "input and target"),
        ({"strategy": "sorted"}, "unknown strategy"),
        ({"strategy": "grouped"}, "needs the field with the group"),
        ({"strategy": "stratified", "by": "image"}, "no class or group number"),
        ({"strategy": "even", "by": "label"}, "goes by no field"),
        ({"shards": N + 1}, "too few"),
        ({"workers": 0}, "0 workers"),
    ],
)
def test_bad_arguments_leave_nothing(source: Path, tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        shard(source, tmp_path / "deep" / "out", **arguments)
    assert left_behind(tmp_path, "source.npz") == []


@pytest.mark.parametrize("name", ["../up", "$(reboot)"])
def test_names_that_could_escape_are_refused(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "a.npz", **{name: np.arange(4)})
    with pytest.raises(NameNotAllowed):
        shard(tmp_path / "a.npz", tmp_path / "out")
    np.save(tmp_path / "b.npy", np.arange(4))
    with pytest.raises(NameNotAllowed):
        shard(tmp_path / "b.npy", tmp_path / "out", splits={name: 1.0})
    assert left_behind(tmp_path, "a.npz", "b.npy") == []


def test_what_is_there_is_kept(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (first,) = shard(source, out)
    with pytest.raises(AlreadyExists) as caught:
        shard(source, out)
    assert caught.value.data["complete"]
    (second,) = shard(source, out, seed=9, overwrite=True)
    assert second.id != first.id
    assert verify_dataset(out).ok
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("x")
    with pytest.raises(AlreadyExists, match="other files"):
        shard(source, other, overwrite=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    shard(source, empty)
    assert left_behind(tmp_path, "source.npz", "out", "mine", "empty") == []


KILLED = """
import os, sys
from hpcmass.data import shard
rename = os.rename
def killed(source, target):
    if str(target) == sys.argv[2]:
        os._exit(9)
    rename(source, target)
if __name__ == "__main__":
    os.rename = killed
    shard(sys.argv[1], sys.argv[2], seed=9, overwrite=True, workers=1)
"""


def test_killed_in_mid_overwrite_the_old_dataset_is_put_back(source: Path, tmp_path: Path) -> None:
    out, script = tmp_path / "out", tmp_path / "killed.py"
    (first,) = shard(source, out)
    script.write_text(KILLED)
    for overwrite in (False, True):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run([sys.executable, str(script), str(source), str(out)], env=env, check=False)
        assert ended.returncode == 9
        assert not out.exists()
        if overwrite:
            (second,) = shard(source, out, seed=5, overwrite=True)
            assert second.id != first.id
        else:
            with pytest.raises(AlreadyExists, match="holds a dataset already"):
                shard(source, out)
        assert verify_dataset(out).ok
        if not overwrite:
            assert open_dataset(out).id == first.id
    assert left_behind(tmp_path, "source.npz", "out", "killed.py") == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from hpcmass.data import shard
from hpcmass.errors import StorageError
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
    try:
        shard(sys.argv[1], Path(sys.argv[2]), shards=2, workers=int(sys.argv[4]))
    except StorageError as error:
        print("refused:", error)
        sys.exit(2)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk_leaves_nothing(source: Path, tmp_path: Path, workers: int) -> None:
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)
    command = [sys.executable, str(script), str(source), str(tmp_path / "out"), "1000000", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    assert done.returncode == 2, done.stderr
    assert "limit" in done.stdout
    assert done.stderr == ""
    assert left_behind(tmp_path, "source.npz", "full.py") == []


INTERRUPTED = """
import sys, time
from pathlib import Path
from hpcmass.data import shard
def slowly(stage, done, total):
    print(stage, done, flush=True)
    time.sleep(3600)  # until the signal comes
if __name__ == "__main__":
    shard(sys.argv[1], Path(sys.argv[2]), shards=2, workers=2, progress=slowly)
"""


def test_interruption_leaves_nothing_and_kill_is_cleaned_up_by_the_next(source: Path, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(INTERRUPTED)
    known = ("source.npz", "slow.py")
    for number in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(
            [sys.executable, str(script), str(source), str(tmp_path / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            # Whoever started the tests in the background of a shell has it ignored, and Python would leave that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        process.wait(300)
        process.stdout.close()
        left = left_behind(tmp_path, *known)
        assert "out" not in left
        if number == signal.SIGINT:
            assert left == []
    deadline = time.time() + 30
    while time.time() < deadline and left_behind(tmp_path, *known) == []:
        time.sleep(0.1)
    assert all(name.startswith(".out.") for name in left_behind(tmp_path, *known))
    shard(source, tmp_path / "out")
    assert left_behind(tmp_path, *known, "out") == []


UNWRITABLE = """
import os, sys
from pathlib import Path
import hpcmass.data.sources.arrays
from hpcmass.data.write import shard
from hpcmass.errors import StorageError
if os.getuid() == 0:  # root may write anywhere; whom the folder does not belong to may not
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    shard(sys.argv[1], Path(sys.argv[2]))
except StorageError as error:
    print("refused:", error)
    sys.exit(2)
"""


def test_unwritable_folder() -> None:
    # Not below pytest's own folder, which another user could not even enter.
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        closed = base / "closed"
        closed.mkdir(mode=0o555)
        base.chmod(0o755)
        np.save(base / "x.npy", np.arange(10))
        (base / "run.py").write_text(UNWRITABLE)
        command = [sys.executable, str(base / "run.py"), str(base / "x.npy"), str(closed / "out")]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment())
        closed.chmod(0o755)
        assert done.returncode == 2, done.stderr
        assert "permissions" in done.stdout
        assert left_behind(closed) == []


def _environment() -> dict[str, str]:
    import hpcmass

    return {**os.environ, "PYTHONPATH": str(Path(hpcmass.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
