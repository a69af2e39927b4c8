"""Deployments with real processes, under load from another process: nothing is lost, whatever dies or changes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hpcmass.catalogue import Catalogue
from hpcmass.files import Lease
from hpcmass.serve.client import Client, ServeError
from hpcmass.serve.tokens import new_token

from .deploy_tools import Deployed, make_project, no_loss
from .test_command import PROGRAM


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("serving") / "p")


@pytest.fixture
def made(project: Path, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    one = Deployed(project, re.sub("[^a-z0-9]+", "-", request.node.name)[5:50].strip("-"))
    try:
        yield one
    finally:
        one.end()


def test_kill_9_of_one_of_three_replicas(made: Deployed) -> None:
    made.deploy("toy@production", "--replicas", "3")
    made.until(lambda: len(made.ready()) == 3)
    with made.load() as account:
        time.sleep(1)
        killed = made.replicas()[0]
        assert killed.job is not None
        os.kill(killed.job["pid"], signal.SIGKILL)
        made.until(lambda: killed.rid not in [one["id"] for one in made.ready()] and len(made.ready()) == 3)
        time.sleep(1)
    no_loss(account)
    assert len(made.processes()) == 3


def test_a_killed_controller_s_successor_takes_the_replicas_over(made: Deployed) -> None:
    url = made.deploy("toy@1", "--replicas", "2").strip()
    made.until(lambda: len(made.ready()) == 2)
    before = sorted(made.processes())
    with made.load(rate=50) as account:
        time.sleep(0.5)
        os.kill(made.gateway_pid(), signal.SIGKILL)
        assert made.deploy("toy@1") != url
    no_loss(account, 10)
    made.until(lambda: len(made.ready()) == 2)
    assert sorted(made.processes()) == before
    assert (made.folder.endpoint() or {})["generation"] == 2
    assert made.kinds().count("replica-started") == 2
    made.deploy("toy@1")  # asked again, nothing changes
    assert (made.folder.endpoint() or {})["generation"] == 2
    assert sorted(made.processes()) == before


def test_one_gateway_follows_another(made: Deployed) -> None:
    import subprocess
    import sys

    made.deploy("toy@1", "--replicas", "2")
    made.until(lambda: len(made.ready()) == 2)
    before, first = sorted(made.processes()), made.gateway_pid()
    with made.load() as account:
        time.sleep(0.5)
        follower = subprocess.Popen(
            [sys.executable, "-m", "hpcmass", "gateway", made.name, "--project", str(made.root)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        made.until(lambda: made.gateway_pid() == follower.pid)
        made.until(lambda: not Path(f"/proc/{first}").exists() or "Z" in _state(first))
        time.sleep(0.5)
    no_loss(account)
    assert sorted(made.processes()) == before
    made.hpcmass("undeploy", made.name)
    assert follower.wait(30) == 0


def test_rolling_update_rollback_and_an_alias_that_is_followed(made: Deployed, project: Path) -> None:
    made.deploy("toy@1", "--replicas", "2")
    with made.load() as account:
        made.deploy("toy@2")
        made.until(lambda: len(made.ready("toy@2")) == 2 and len(made.processes()) == 2)
        assert made.folder.asked().previous == "toy@1"
        assert "toy@1" in made.hpcmass("rollback", made.name)
        made.until(lambda: len(made.ready("toy@1")) == 2 and len(made.processes()) == 2)
        made.deploy("toy", "--follow", "production")
        Catalogue(project / "catalogue").alias("toy", "production", 3, why="better")
        made.until(lambda: len(made.ready("toy@3")) == 2 and len(made.processes()) == 2)
    no_loss(account)
    Catalogue(project / "catalogue").alias("toy", "production", 1, why="the first again")


@pytest.mark.parametrize(("version", "why"), [(4, "errors"), (5, "latency")])
def test_a_canary_that_is_worse_is_rolled_back(made: Deployed, version: int, why: str) -> None:
    made.deploy("toy@1", "--replicas", "2")
    made.until(lambda: len(made.ready()) == 2)
    with made.load(rate=60) as account:
        made.deploy(f"toy@{version}", "--canary", "30%")
        made.until(lambda: "canary-rolled-back" in made.kinds())
        made.until(lambda: len(made.processes()) == 2)
        time.sleep(1)
    no_loss(account)
    told = next(one for one in made.folder.events() if one["kind"] == "canary-rolled-back")
    assert why in told["reason"], told
    assert made.folder.asked().stable == "toy@1"
    assert {one["model"] for one in made.ready()} == {"toy@1"}


def test_a_canary_that_is_as_good_takes_over(made: Deployed) -> None:
    made.deploy("toy@1", "--replicas", "1")
    with made.load(rate=60) as account:
        made.deploy("toy@2", "--canary", "50%", "--canary-for", "4")
        made.until(lambda: made.folder.asked().stable == "toy@2")
        made.until(lambda: len(made.ready("toy@2")) == 1 and len(made.processes()) == 1)
    no_loss(account)
    assert "canary-rolled-back" not in made.kinds()


def test_from_none_and_back(made: Deployed) -> None:
    made.deploy("toy@1", "--replicas", "0:1", "--idle-s", "2")
    assert made.processes() == []
    client = Client(made.name, project=made.root)
    found = client.infer(x=np.zeros((2, 4), np.float32), k=np.array([1, 2]))[
        "y"
    ]  # it waits for the first replica
    assert found.shape == (2, 3)
    assert len(made.processes()) == 1
    made.until(lambda: made.processes() == [])
    assert client.infer(x=np.zeros((1, 4), np.float32), k=np.array([1]))["y"].shape == (1, 3)


def test_scaling_up_and_down_under_load(made: Deployed) -> None:
    made.deploy("toy@1", "--replicas", "1")
    with made.load() as account:
        made.deploy("toy@1", "--replicas", "4")
        made.until(lambda: len(made.ready()) == 4)
        made.deploy("toy@1", "--replicas", "1")
        made.until(lambda: len(made.processes()) == 1)
    no_loss(account)


def test_a_version_that_does_not_start_leaves_what_is_served(made: Deployed, project: Path) -> None:
    broken = project / "runs" / "toy"
    broken.mkdir(parents=True, exist_ok=True)
    made.deploy("toy@1", "--replicas", "1")
    with made.load() as account:
        said = made.deploy(str(broken), fails=True)
        assert "do not start" in said
        made.hpcmass("rollback", made.name)
        time.sleep(1)
    no_loss(account)
    assert [one["model"] for one in made.ready()] == ["toy@1"]


def test_a_controller_killed_at_any_moment_of_the_start(made: Deployed) -> None:
    draw = random.Random(0)
    for _ in range(6):
        made.deploy("toy@1", "--replicas", "3", "--wait", "0")
        time.sleep(draw.random())
        owner = Lease(made.folder.path / "controller", ttl_s=20.0).owner()
        assert owner is not None
        os.kill(owner.pid, signal.SIGKILL)
    made.deploy("toy@1")
    made.until(lambda: len(made.ready()) == 3 and len(made.replicas()) == 3)
    time.sleep(1)
    jobs = {one.job["pid"] for one in made.replicas() if one.job is not None}
    assert sorted(jobs) == sorted(made.processes())
    assert len(jobs) == 3


def test_tokens_labels_and_the_monitor_by_the_deployment_s_name(made: Deployed, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = new_token("ada", file)
    made.deploy("toy@3", "--replicas", "2", "--tokens", str(file), "--rate", "500", "--keep-samples", "20")
    made.until(lambda: len(made.ready()) == 2)
    x, k = np.zeros((1, 4), np.float32), np.array([1])
    with pytest.raises(ServeError, match="asks for a token"):
        Client(made.name, project=made.root).infer(x=x, k=k)
    client = Client(made.name, project=made.root, token=token)
    for number in range(40):
        client.infer({"x": x, "k": k}, f"q{number}")
    for number in range(40):  # to whichever replica
        client.label(f"q{number}", [0.0, 0.0, 0.0])
    secret = (made.folder.path / "gateway" / "token").read_text()
    for words in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            said = words.read_bytes().decode("utf-8", "replace")
            assert token not in said
            assert secret not in said
    assert token not in made.log()
    assert secret not in made.log()
    assert "undeploy" in made.deploy("toy@3", "--rate", "5", fails=True)  # nothing that a running one ignores
    made.hpcmass("undeploy", made.name)  # what both replicas have seen is written by then
    (live,) = json.loads(made.hpcmass("labels", made.name, "--json"))
    assert (live["version"], live["n"], live["unknown"]) == ("3", 120, 0)
    assert "version 3 has no reference" in made.hpcmass("drift", made.name, "--since", "1h", fails=True)
    kept = list((made.folder.path / "monitor").glob("kept-r-*.h5"))
    assert kept, sorted(one.name for one in (made.folder.path / "monitor").iterdir())


def test_another_program_behind_a_deployment(made: Deployed, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    words = f"python {tmp_path}/program.py {{port}} {tmp_path}"
    made.deploy("toy@1", "--replicas", "2", "--command", words, "--health", "/ready")
    made.until(lambda: len(made.ready()) == 2)
    client = Client(made.name, project=made.root)
    asked = {client.metadata()["pid"] for _ in range(4)}
    started = {int(line.split()[0]) for line in (tmp_path / "starts").read_text().splitlines()}
    assert asked == started
    assert len(asked) == 2
    os.kill(killed := min(asked), signal.SIGKILL)  # its replica starts it anew, at another port

    def again() -> bool:
        pids = {int(line.split()[0]) for line in (tmp_path / "starts").read_text().splitlines()} - {killed}
        return len(pids) == 2 and {client.metadata()["pid"] for _ in range(4)} == pids

    made.until(again)
    made.hpcmass("undeploy", made.name)
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_a_gateway_that_cannot_say_where_it_is_tries_again(made: Deployed) -> None:
    (made.folder.endpoint_file / "in the way").mkdir(parents=True)
    made.deploy("toy@1", "--wait", "0")
    made.until(lambda: "endpoint.json" in made.log())
    shutil.rmtree(made.folder.endpoint_file)
    made.until(lambda: len(made.ready()) == 1 and (made.folder.endpoint() or {}).get("state") == "ready")


def test_what_is_refused(made: Deployed, project: Path) -> None:
    for words, says in (
        (("toy@9",), "no version 9"),
        (("toy@1", "--replicas", "3:1"), "is no range"),
        (("toy@1", "--replicas", "x"), "is no range"),
        (("toy@1", "--canary", "10%"), "nothing yet"),
        (("toy@1", "--host", "0.0.0.0"), "no tokens are asked for"),
        (("toy@1", "--site", "no.toml"), "no.toml"),
    ):
        said = made.deploy(*words, fails=True)
        assert says in said
        assert "Traceback" not in said
    assert not made.folder.exists()
    for verb in ("endpoint", "rollback", "undeploy"):
        assert "there is no deployment" in made.hpcmass(verb, "nothing", fails=True)
    assert made.processes() == []


def test_the_client_needs_nothing_heavy() -> None:
    import subprocess
    import sys

    code = "import sys, hpcmass.serve.client; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "numpy" in loaded
    assert not {"torch", "parsl", "httptools", "uvloop", "orjson", "h5py", "submitit"} & set(loaded)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
