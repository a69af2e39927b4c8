"""The shell lines that unpack an environment, run by a real bash on a small archive."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

from hpcmass.errors import ConfigError
from hpcmass.launch.packed import RELOCATE, TOKEN, PackedEnv, scratch_word, unpack_function, unpack_lines


def archive(folder: Path, name: str = "env.tar", *, text: str = "one") -> PackedEnv:
    """An archive with a script that names its folder, and a file of data."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for inner, data in (
            ("bin/tool", f"#!/bin/sh\necho {TOKEN} {text}\n"),
            ("data", "x" * 100_000),
            (RELOCATE, "bin/tool\0"),
        ):
            info = tarfile.TarInfo(inner)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data.encode()))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    Path(f"{file}.json").write_text(f'{{"sha256": "{digest}"}}')
    return PackedEnv(str(file), digest, file.stat().st_size, 100_000, "3.11.7")


def unpack(env: PackedEnv, scratch: Path | str, **variables: str) -> subprocess.CompletedProcess[str]:
    lines = [*unpack_function(env, str(scratch)), "hpcmass_unpack || exit 1", '"$HPCMASS_ENV/bin/tool"']
    return subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


def test_it_is_unpacked_once_and_found_again(tmp_path: Path) -> None:
    env = archive(tmp_path)
    first, second = unpack(env, tmp_path / "disk"), unpack(env, tmp_path / "disk")
    where = tmp_path / "disk" / f"hpcmass-env-{os.getuid()}" / env.folder
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.splitlines()[-1] == second.stdout.splitlines()[-1] == f"{where} one"
    assert "unpacked in" in first.stdout
    assert "is there already" in second.stdout
    assert where.parent.stat().st_mode & 0o777 == 0o700


def test_many_at_once_unpack_once(tmp_path: Path) -> None:
    env, said = archive(tmp_path), []
    threads = [threading.Thread(target=lambda: said.append(unpack(env, tmp_path / "disk"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in said] == [0] * 8
    assert sum("unpacked in" in done.stdout for done in said) == 1
    assert {p.name for p in (tmp_path / "disk").glob("*/*")} | {
        p.name for p in (tmp_path / "disk").glob("*/.*")
    } == {
        env.folder,
        f"{env.folder}.lock",
    }


def test_what_a_killed_unpacking_left_is_cleared(tmp_path: Path) -> None:
    env = archive(tmp_path)
    base = tmp_path / "disk" / f"hpcmass-env-{os.getuid()}"
    here, elsewhere = (f".{env.folder}.{node}.AbCdEf" for node in (os.uname().nodename, "another"))
    (base / here / "bin").mkdir(parents=True)
    (base / elsewhere).mkdir()  # on a file system of many nodes: at work there
    assert unpack(env, tmp_path / "disk").returncode == 0
    assert {path.name for path in base.iterdir()} == {elsewhere, env.folder, f"{env.folder}.lock"}


def test_what_a_cleaner_of_old_files_left_gives_way(tmp_path: Path) -> None:
    env = archive(tmp_path)
    assert unpack(env, tmp_path / "disk").returncode == 0
    base = tmp_path / "disk" / f"hpcmass-env-{os.getuid()}"
    (base / env.folder / RELOCATE).unlink()
    (base / env.folder / "bin/tool").unlink()
    with open(base / env.folder / "data"):  # a job is at work in it
        done = unpack(env, tmp_path / "disk")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{base / env.folder} one"), done.stderr
    assert "unpacked in" in done.stdout
    assert {path.name for path in base.iterdir()} == {env.folder, f"{env.folder}.lock"}


def test_what_is_used_stays_young_and_its_mark_is_the_oldest(tmp_path: Path) -> None:
    env = archive(tmp_path)
    assert unpack(env, tmp_path / "disk").returncode == 0
    place = tmp_path / "disk" / f"hpcmass-env-{os.getuid()}" / env.folder
    old = time.time() - 9 * 86400
    for path in (*place.rglob("*"), place / RELOCATE):
        os.utime(path, (old, old))
    assert "is there already" in unpack(env, tmp_path / "disk").stdout
    mark = (place / RELOCATE).stat()
    assert mark.st_mtime > time.time() - 3600
    assert min(min(path.stat().st_mtime, path.stat().st_atime) for path in place.rglob("*")) >= mark.st_mtime


def test_two_archives_lie_side_by_side(tmp_path: Path) -> None:
    for name, text in (("a.tar", "one"), ("b.tar", "two")):
        done = unpack(archive(tmp_path, name, text=text), tmp_path / "disk")
        assert done.stdout.splitlines()[-1].endswith(text)


def test_an_archive_packed_anew_is_refused(tmp_path: Path) -> None:
    old = archive(tmp_path, text="one")
    new = archive(tmp_path, text="two")
    assert old.bytes == new.bytes  # so the size alone does not tell
    done = unpack(old, tmp_path / "disk")
    assert done.returncode == 1
    assert "was packed anew since this job was submitted" in done.stderr
    assert not list((tmp_path / "disk").glob("*/*/bin"))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, damage: str) -> None:
    env = archive(tmp_path)
    if damage == "gone":
        Path(env.archive).unlink()
    else:
        data = Path(env.archive).read_bytes()
        Path(env.archive).write_bytes(data[:60_000] + b"\0" * (len(data) - 60_000))
    done = unpack(env, tmp_path / "disk")
    assert done.returncode == 1
    assert "cannot be unpacked" in done.stderr
    assert [p.name for p in (tmp_path / "disk").glob("*/*")] == [f"{env.folder}.lock"]


def test_a_disk_without_room_is_told_before(tmp_path: Path) -> None:
    env = archive(tmp_path)
    done = unpack(PackedEnv(env.archive, env.sha256, env.bytes, 10**18, "3.11.7"), tmp_path / "disk")
    assert done.returncode == 1
    assert "kB free, it needs" in done.stderr


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = unpack(archive(tmp_path), tmp_path / "file" / "disk")
    assert done.returncode == 1
    assert "cannot be made" in done.stderr


def test_a_path_with_anything_in_it_reaches_tar(tmp_path: Path) -> None:
    env = archive(tmp_path / "a b;$(touch bad)'\"\\é", "env.tar")
    done = unpack(env, tmp_path / "disk")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("bad"))


def test_variables_of_the_scratch_folder_are_the_nodes(tmp_path: Path) -> None:
    env = archive(tmp_path)
    done = unpack(env, "$BASE/${SLURM_JOB_ID}/${NOWHERE:-x}", BASE=str(tmp_path), SLURM_JOB_ID="7")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "7" / "x").is_dir()


def test_a_variable_that_brings_a_space_is_refused_by_the_node(tmp_path: Path) -> None:
    done = unpack(archive(tmp_path), "$BASE", BASE=str(tmp_path / "a b"))
    assert done.returncode == 1
    assert "a shebang cannot hold" in done.stderr


@pytest.mark.parametrize(
    "text", ["/a b", "/x;y", "$(date)", "`date`", "/a'b", '/a"b', "/a\\b", "${X:-$(date)}", "${X"]
)
def test_what_no_folder_may_be_called_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a node-local folder"):
        scratch_word(text)


def test_a_job_of_several_nodes_unpacks_by_one_task_a_node(tmp_path: Path) -> None:
    lines = "\n".join(unpack_lines(archive(tmp_path), None))
    assert "--ntasks-per-node=1" in lines
    assert "srun" not in "\n".join(unpack_lines(archive(tmp_path), None, nodes=1))
    checked = subprocess.run(["bash", "-n"], input=lines, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
