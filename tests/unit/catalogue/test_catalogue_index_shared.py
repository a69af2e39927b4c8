"""One cache folder and many processes: all see every version that was there before they asked."""

import errno
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from hpcmass.catalogue import Catalogue, Registration
from hpcmass.files import is_local

FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["live", "copied"])
def root(tmp_path, monkeypatch, request):
    monkeypatch.setattr("hpcmass.catalogue.index_file.is_local", lambda folder: request.param == "live")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w" * 100)
    return tmp_path / "catalogue"


def register(root, count=1, name="m", catalogue=None, **metrics):
    catalogue = catalogue or Catalogue(root)
    folder = root.parent / "model"
    return catalogue.register_many([Registration(name, folder, {"i": i, **metrics}) for i in range(count)])


def work(root, who, rounds, failed):
    try:
        catalogue = Catalogue(root)
        for i in range(rounds):
            # A key of its own now and then, so that columns are made by many at once.
            made = register(root, 2, f"m{who}", catalogue, **({f"key{who}-{i}": i} if i % 3 == 0 else {}))
            found = catalogue.search(f"name == 'm{who}'")
            assert [one.version for one in found] == list(range(1, made[-1].version + 1))
            if who == 0 and i == rounds // 2:
                catalogue.reindex()
            catalogue.search(f"metrics['key{who}-0'] == 0")
    except BaseException as error:
        failed.put(f"{who}: {type(error).__name__}: {error}")
        raise


def test_many_processes_refresh_one_index(root):
    failed = FORK.Queue()
    processes = [FORK.Process(target=work, args=(root, who, 8, failed)) for who in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4, failed.get(timeout=5)
    reader = Catalogue(root)
    assert reader.count() == 4 * 16
    assert reader.index.fresh().execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def refresh(root, ready):
    catalogue = Catalogue(root)
    catalogue.index.fresh()
    ready.set()
    while True:
        catalogue.search("i == 0")


def test_a_reader_that_is_killed_leaves_an_index_that_is_right(root):
    register(root, 300)
    writer = Catalogue(root)
    for turn in range(6):
        ready = FORK.Event()
        process = FORK.Process(target=refresh, args=(root, ready))
        process.start()
        assert ready.wait(60)
        for _ in range(5):
            register(root, 20, f"n{turn}", writer)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert Catalogue(root).count() == 300 + 100 * (turn + 1)
    assert Catalogue(root).index.fresh().execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_an_index_made_anew_by_another_is_taken_up_and_the_old_one_goes(root):
    register(root, 5)
    one, other = Catalogue(root), Catalogue(root)
    assert one.count() == other.count() == 5
    other.index.rebuild()
    register(root, 1)
    assert one.count() == other.count() == 6
    assert one.index.path == other.index.path
    # Not at once, for another process may be about to change it.
    for path in one.index.path.parent.iterdir():
        os.utime(path, times=(time.time() - 3600,) * 2)
    other.index.rebuild()
    left = {path.name.partition(".sqlite")[0] for path in one.index.path.parent.glob("*.sqlite*")}
    assert left == {other.index.path.stem}
    assert one.count() == 6


def test_an_index_that_another_keeps_for_too_long_is_made_anew(root, monkeypatch):
    register(root, 5)
    catalogue = Catalogue(root)
    assert catalogue.count() == 5
    monkeypatch.setattr("hpcmass.catalogue.index_file._WAIT_S", 0.1)
    holder = sqlite3.connect(catalogue.index.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    register(root, 1)
    assert catalogue.count() == Catalogue(root).count() == 6
    holder.close()


def child(catalogue, before, queue):
    mine = catalogue.index.fresh()
    register(catalogue.path, 1, catalogue=catalogue)
    whole = catalogue.index.fresh().execute("PRAGMA integrity_check").fetchall()
    queue.put((mine is not before, catalogue.count(), whole))


def test_a_forked_process_has_a_connection_of_its_own(root):
    register(root, 5)
    catalogue = Catalogue(root)
    before = catalogue.index.fresh()
    queue = FORK.Queue()
    process = FORK.Process(target=child, args=(catalogue, before, queue))
    process.start()
    assert queue.get(timeout=60) == (True, 6, [("ok",)])
    process.join()
    assert before.execute("SELECT count(*) FROM facts").fetchone() == (4,)
    assert catalogue.count() == 6


def test_threads_share_a_catalogue(root):
    catalogue = Catalogue(root)
    register(root, 1)
    wrong = []

    def look(who):
        try:
            for _ in range(10):
                made = register(root, 1, f"t{who}")
                if catalogue.count(f"t{who}") != made[-1].version:
                    wrong.append(made[-1].ref)
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=look, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_full_cache_is_made_do_without_and_what_is_new_is_seen(root, monkeypatch):
    register(root, 3)
    cache = root.parent / "cache"
    cache.write_text("a file, where a folder should be")
    catalogue = Catalogue(root)
    assert catalogue.count() == 3
    walks = []
    real = catalogue.index.tree
    monkeypatch.setattr(catalogue.index, "tree", lambda: walks.append(1) or real())
    register(root, 1)
    assert catalogue.count() == 4
    assert walks == []  # what is in memory is refreshed too


@pytest.mark.parametrize("step", ["fsync_file", "LiveIndex._point_to"])
def test_a_disk_that_fills_up_under_the_index(root, monkeypatch, step):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    register(root, 3)
    monkeypatch.setattr(f"hpcmass.catalogue.index_file.{step}", full)
    monkeypatch.setattr("hpcmass.catalogue.index_file.IndexFile._opened", full)
    catalogue = Catalogue(root)
    assert catalogue.count() == 3
    register(root, 2)
    assert catalogue.count() == Catalogue(root).count() == 5
    assert [path for path in root.parent.glob("cache/**/*") if path.is_file()] == []


def test_temporaries_of_the_dead_are_removed(root):
    register(root, 3)
    catalogue = Catalogue(root)
    catalogue.index.fresh()
    folder = catalogue.index.path.parent
    for name, age in ((".index-old.tmp", 1e6), (".index-new.tmp", 0)):
        (folder / name).write_text("x")
        os.utime(folder / name, (time.time() - age,) * 2)
    catalogue.index.rebuild()
    assert [path.name for path in folder.glob(".*")] == [".index-new.tmp"]


MOUNTS = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:30 / /home rw - nfs4 server:/home rw
23 21 0:31 / /my\040scratch rw - lustre a@tcp:/b rw
24 22 0:32 / /home/me/fast rw - xfs /dev/sdb rw
25 24 0:33 / /home/me/fast rw - nfs server:/x rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "local"),
    [
        *(("/var/tmp", True), ("/", True), ("/home", False), ("/home/me/.cache", False)),
        *(("/homely", True), ("/my scratch/x", False), ("/home/me/fast/x", False)),
    ],
)
def test_what_is_local(tmp_path, path, local):
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS)
    assert is_local(Path(path), mounts) is local


def test_what_cannot_be_told_is_not_local(tmp_path):
    assert is_local(tmp_path, tmp_path / "none") is False
