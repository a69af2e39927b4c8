"""`matching`: names of a folder that others may remove at any moment."""

from __future__ import annotations

import threading
from pathlib import Path

from hpcmass.files import matching


def test_names_in_order_and_nothing_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for name in ("b-2", "b-1", "a-1", ".b-3"):
        (tmp_path / name).touch()
    assert matching(tmp_path, "b-*") == [tmp_path / "b-1", tmp_path / "b-2"]
    assert matching(tmp_path / "none", "*") == []
    assert matching(tmp_path / "a-1", "*") == []


def test_a_folder_that_goes_while_it_is_read(tmp_path: Path) -> None:
    folder, end = tmp_path / "f", threading.Event()

    def come_and_go() -> None:
        while not end.is_set():
            folder.mkdir()
            folder.rmdir()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(20_000):
            assert matching(folder, "*") == []
    finally:
        end.set()
        thread.join()
