"""A replica that wraps another program: a small HTTP server of its own, started, watched and ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from .conftest import Replica

PROGRAM = """
import json, os, signal, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

port, folder = int(sys.argv[1]), Path(sys.argv[2])
with open(folder / "starts", "a") as log:
    log.write(f"{os.getpid()} {port}\\n")
begun = time.monotonic()
sick = threading.Event()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/ready":
            return self.say(503 if sick.is_set() or time.monotonic() - begun < 0.6 else 200, {})
        if self.path == "/die":
            os._exit(7)
        if self.path == "/sick":
            sick.set()
        if self.path == "/well":
            sick.clear()
        if self.path == "/slow":
            time.sleep(1.0)
        self.say(200, {"pid": os.getpid(), "words": sys.argv[1:]})

    def say(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words):
        pass

server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.daemon_threads = False  # what is under way is answered

def stop(number, frame):
    threading.Thread(target=server.shutdown).start()

if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, stop)
server.serve_forever()
server.server_close()
(folder / "ended").write_text("by itself")
"""


@pytest.fixture
def start(tmp_path: Path):
    made: list[Replica] = []
    (tmp_path / "program.py").write_text(PROGRAM)

    def begin(more: str = "", *words: str, command: str | None = None) -> Replica:
        text = command or f"python {tmp_path}/program.py {{port}} {tmp_path} {more}"
        made.append(Replica(tmp_path, "anything", "--command", text, "--health", "/ready", *words))
        return made[-1]

    yield begin
    for replica in made:
        replica.stop(signal.SIGKILL)


def starts(folder: Path) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in (folder / "starts").read_text().splitlines()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_program_is_started_told_of_and_ended(tmp_path: Path, start) -> None:
    replica = start("'two words' '; touch hacked' $HOME {{name}} {name}@{version}", "--notice", "0.1")
    said = replica.until("ready")
    status, _, body = replica.ask("GET", "/")
    found = json.loads(body)
    assert status == 200
    assert found["pid"] == said["command_pid"]
    assert found["words"] == [
        str(said["port"]), str(tmp_path), "two words", "; touch hacked", "$HOME", "{anything}", "anything@1",
    ]  # fmt: skip
    assert not (tmp_path / "hacked").exists()
    assert (said["model"], said["version"], said["health"]) == ("anything", "1", "/ready")
    answer: list[object] = []
    asking = threading.Thread(target=lambda: answer.append(replica.ask("GET", "/slow")[0]))
    asking.start()
    time.sleep(0.3)
    assert replica.stop() == 0
    asking.join()
    assert answer == [200]  # what was under way when it was told to end
    assert replica.state()["state"] == "ended"
    assert (tmp_path / "ended").read_text() == "by itself"
    assert not alive(found["pid"])


def test_a_program_that_dies_is_started_anew_and_given_up_at_last(tmp_path: Path, start) -> None:
    replica = start()
    for number in range(1, 5):

        def up(n: int = number) -> bool:
            said = replica.state()
            return (
                said["state"] == "ready"
                and len(lived := starts(tmp_path)) == n
                and lived[-1][0] == said["command_pid"]
            )

        until(up, f"start {number}")
        replica.port = replica.state()["port"]
        with contextlib.suppress(http.client.HTTPException, OSError):
            replica.ask("GET", "/die")
    assert replica.process.wait(30) == 2
    log = replica.log.read_text()
    assert "the command ended with exit code 7; it is started anew" in log
    assert "the command ended with exit code 7, 4 times" in log
    assert 'command.py", line' not in log  # the program has tracebacks of its own where a client leaves it
    assert replica.state()["state"] == "ended"
    assert len(starts(tmp_path)) == 4


def test_one_that_does_not_answer_is_not_ready_and_then_started_anew(tmp_path: Path, start) -> None:
    replica = start("", "--ready", "5", "--drain", "1")
    replica.until("ready")
    replica.ask("GET", "/sick")
    replica.until("loading")
    assert len(starts(tmp_path)) == 1
    replica.ask("GET", "/well")
    replica.until("ready")
    assert len(starts(tmp_path)) == 1
    replica.ask("GET", "/sick")
    until(lambda: len(starts(tmp_path)) == 2, replica.log.read_text())
    replica.until("ready")
    assert not alive(starts(tmp_path)[0][0])
    assert "was not ready for 5 s" in replica.log.read_text()
    assert replica.stop() == 0


def test_a_program_that_will_not_end_is_killed(tmp_path: Path, start) -> None:
    replica = start("stubborn", "--notice", "0", "--drain", "0.5")
    replica.until("ready")
    assert replica.stop() == 0
    assert not alive(starts(tmp_path)[0][0])
    assert not (tmp_path / "ended").exists()


def test_a_killed_replica_takes_its_program_with_it(tmp_path: Path, start) -> None:
    replica = start("stubborn")
    replica.until("ready")
    pid = starts(tmp_path)[0][0]
    assert alive(pid)
    os.kill(replica.process.pid, signal.SIGKILL)
    replica.process.wait()
    until(lambda: not alive(pid), "the program lives on")


def test_the_folder_of_a_model_is_one_word(tmp_path: Path, start, bundle: Path) -> None:
    from hpcmass.serve.command import Wrapped, words_of

    odd = Path("/tmp/a model; rm -rf {port} 'x")
    wrapped = Wrapped(name="m", version="2", command='python --at={model} -p {port} "{model}"', model=odd)
    assert words_of(wrapped, 80) == ["python", f"--at={odd}", "-p", "80", str(odd)]
    replica = Replica(
        tmp_path, str(bundle), "--command", f"python {tmp_path}/program.py {{port}} {tmp_path} {{model}}",
        "--health", "/ready", "--notice", "0",
    )  # fmt: skip
    try:
        replica.until("ready")
        assert json.loads(replica.ask("GET", "/")[2])["words"][2] == str(bundle)
    finally:
        assert replica.stop() == 0
    missing = start("{model}")
    assert missing.process.wait(30) == 2
    assert "there is no model, run or folder 'anything'" in missing.log.read_text()


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("python server.py", [], "has no {port}"),
        ("python '{port}", [], "cannot be split into words"),
        ("", [], "has no {port}"),
        ("no-such-program {port}", [], "there is no program 'no-such-program'"),
        ("python -c 1 {port}", ["--rate", "3"], "--rate: requests go to the command itself"),
        ("python -c 1 {port}", ["--rows", "3"], "limit rows: requests go to the command itself"),
        ("python -c 1 {port}", ["--host", "0.0.0.0"], "give --anybody"),
    ],
)
def test_what_is_no_command_is_said_in_one_line(
    tmp_path: Path, start, command: str, words: list[str], said: str
) -> None:
    replica = start("", *words, command=command or " ")
    assert replica.process.wait(60) == 2
    assert said in replica.log.read_text()
    assert "Traceback" not in replica.log.read_text()
