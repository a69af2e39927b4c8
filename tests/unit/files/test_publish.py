"""Publishing: complete or absent, once, whoever races."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmass.errors import AlreadyExists, CorruptError, NotFound, StorageError
from hpcmass.files import claim, publish, publish_json, publishing, read_json, replace_json
from hpcmass.files.publish import _link_once

CLAIM = """
import sys, time
from pathlib import Path
from hpcmass.files import claim
folder, me = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready-{me}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(40):
    if claim(folder / "claims" / f"{number:03d}", me * 1000):
        print(number)
"""


def test_of_many_processes_exactly_one_gets_each_name(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path), str(me)], stdout=subprocess.PIPE, text=True
        )
        for me in range(6)
    ]
    while len(list(tmp_path.glob("ready-*"))) < 6:
        assert all(racer.poll() is None for racer in racers)
    (tmp_path / "go").touch()
    won = {str(me): racer.communicate()[0].split() for me, racer in enumerate(racers)}
    assert all(racer.returncode == 0 for racer in racers)
    assert sorted(number for numbers in won.values() for number in numbers) == sorted(map(str, range(40)))
    for me, numbers in won.items():
        for number in numbers:
            assert (tmp_path / "claims" / f"{int(number):03d}").read_text() == me * 1000
    assert sorted(os.listdir(tmp_path / "claims")) == [
        f"{number:03d}" for number in range(40)
    ]  # no temporaries


def test_a_killed_writer_leaves_no_name(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from hpcmass.files import publishing
with publishing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""
    target = tmp_path / "blob"
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == -9
    assert not target.exists()
    publish(target, "whole")
    assert target.read_text() == "whole"


def test_a_body_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with publishing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write()
    assert os.listdir(tmp_path) == []


def test_a_name_is_written_once(tmp_path: Path) -> None:
    publish(tmp_path / "x", "first")
    with pytest.raises(AlreadyExists):
        publish(tmp_path / "x", "second")
    assert not claim(tmp_path / "x", "third")
    assert (tmp_path / "x").read_text() == "first"


def test_a_link_that_succeeds_and_reports_an_error_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over NFS, where the answer to a link that was done is lost and the repeated call says EEXIST."""
    real = os.link

    def lost_answer(source: Path, target: Path) -> None:
        real(source, target)
        raise FileExistsError(errno.EEXIST, "File exists", str(target))

    monkeypatch.setattr(os, "link", lost_answer)
    publish(tmp_path / "x", "content")
    assert (tmp_path / "x").read_text() == "content"


def test_without_hard_links_a_name_is_still_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(target))

    monkeypatch.setattr(os, "link", refused)
    for content in ("first", "second"):
        (tmp_path / content).write_text(content)
    _link_once(tmp_path / "first", tmp_path / "x")
    with pytest.raises(FileExistsError):
        _link_once(tmp_path / "second", tmp_path / "x")
    assert (tmp_path / "x").read_text() == "first"


def test_a_size_limit_is_a_plain_error_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from hpcmass.errors import StorageError
from hpcmass.files import publish
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    publish(Path(sys.argv[1]), b"x" * 5000)
except StorageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], check=True, capture_output=True, text=True
    )
    assert "limit" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_reader_sees_the_old_or_the_new_file(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from hpcmass.files import replace_json
for number in range(300):
    replace_json(Path(sys.argv[1]), {"number": number, "again": [number] * 500})
"""
    live = tmp_path / "live.json"
    replace_json(live, {"number": 0, "again": [0] * 500})
    writer = subprocess.Popen([sys.executable, "-c", code, str(live)])
    last = 0
    while writer.poll() is None:
        seen = read_json(live)
        assert seen["again"] == [seen["number"]] * 500
        assert seen["number"] >= last
        last = seen["number"]
    assert writer.returncode == 0
    assert read_json(live)["number"] == 299


def test_reading_what_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CorruptError, match="JSON"):
        read_json(tmp_path / "bad.json")


def test_nan_is_refused_in_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        publish_json(tmp_path / "x.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        publish(tmp_path / "file" / "x", "content")


def test_a_file_that_is_nested_too_deep_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_bytes(b"[" * 100_000)
    with pytest.raises(CorruptError, match="is not valid JSON"):
        read_json(tmp_path / "deep.json")
