"""Every call of the system that changes a catalogue killed in, or failing: nothing is ever half, and the next goes on.

`faults.c` is preloaded into `faulty_works.py`, which says what must hold after each.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
WORKS = ("Register", "First", "Many", "Alias", "Evaluate", "Gc", "Fsck")
FAULTS = ("kill", "eio", "enospc", "edquot", "late")  # late: it is done and reports EIO; a write is torn


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(words, check=True)
    return library


def tried(shim: Path, folder: Path, work: str, fault: str, links: str, first: int, step: int) -> dict[str, int]:
    env = {**os.environ, "LD_PRELOAD": str(shim), "XDG_CACHE_HOME": str(folder / "cache")}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    words = [sys.executable, HERE / "faulty_works.py", folder, work, fault, links, str(first), str(step)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found["tried"] == (found["calls"] - first) // step + 2
    return found


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", WORKS)
def test_some_calls(shim: Path, tmp_path: Path, work: str, fault: str) -> None:
    found = tried(shim, tmp_path, work, fault, "links", 2 + FAULTS.index(fault), 19)
    assert found["calls"] >= 8
    if fault == "kill":
        assert found["killed"] == found["tried"] - 1


@pytest.mark.parametrize("work", ["Register", "ManyWithoutLinks", "Gc"])
def test_some_calls_where_there_are_no_links(shim: Path, tmp_path: Path, work: str) -> None:
    assert tried(shim, tmp_path, work, "kill", "eopnotsupp", 4, 11)["killed"] > 1


@pytest.mark.soak
@pytest.mark.parametrize("links", ["links", "eperm", "eopnotsupp"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", WORKS)
def test_every_call(shim: Path, tmp_path: Path, work: str, fault: str, links: str) -> None:
    work = "ManyWithoutLinks" if work == "Many" and links != "links" else work
    found = tried(shim, tmp_path, work, fault, links, 1, 1)
    if fault in ("kill", "eio"):  # where there is no room, gc and fsck go on with what they keep in reserve
        assert found["killed" if fault == "kill" else "refused"] > 0
