"""A real replica, `hpcmass serve`: what it answers, to whom, and what no client can do to it or to others."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Replica, request

INFER = "/v2/models/toy/infer"


def expected(bundle: Path, x: list, k: list) -> np.ndarray:
    from hpcmass.train.model import load_bundle

    return load_bundle(bundle)({"x": np.array(x, np.float32), "k": np.array(k)})


def raw(port: int, data: bytes, *, half_close: bool = True, timeout: float = 20) -> bytes:
    """Everything that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as client:
        with contextlib.suppress(OSError):  # the replica may have said no already
            client.sendall(data)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                found += part
        return found


def post(body: bytes, *lines: bytes, path: bytes = INFER.encode()) -> bytes:
    head = b"\r\n".join([b"POST " + path + b" HTTP/1.1", b"Host: x", b"Content-Length: %d" % len(body), *lines])
    return head + b"\r\n\r\n" + body


def good(replica: Replica) -> None:
    status, _, body = replica.ask("POST", INFER, request([[0, 0, 0, 0]], [1]))
    assert status == 200, body


# -- what it answers --------------------------------------------------------------------------------------
def test_the_addresses(replica: Replica) -> None:
    assert replica.ask("GET", "/v2/health/live")[0] == 200
    assert replica.ask("GET", "/v2/health/ready")[0] == 200
    assert replica.ask("GET", "/v2/models/toy/versions/1/ready")[0] == 200
    assert json.loads(replica.ask("GET", "/v2")[2])["extensions"] == ["binary_tensor_data"]
    said = json.loads(replica.ask("GET", "/v2/models/toy")[2])
    assert said["versions"] == ["1"]
    assert said["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    assert replica.ask("GET", "/v2/models/other")[0] == 404
    assert replica.ask("GET", "/v2/models/toy/versions/2")[0] == 404
    status, headers, _ = replica.ask("GET", INFER)
    assert (status, headers["allow"]) == (405, "POST")
    status, headers, body = replica.ask("HEAD", "/v2")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_json_in_and_out(replica: Replica, bundle: Path) -> None:
    x, k = [[1, 2, 3, 4], [5, 6, 7, 8.5]], [2, 3]
    for path in (INFER, "/v2/models/toy/versions/1/infer"):
        status, headers, body = replica.ask("POST", path, {"id": "a", **request(x, k)})
        found = json.loads(body)
        assert (status, headers["content-type"], found["id"]) == (200, "application/json", "a")
        values = np.array(found["outputs"][0]["data"], np.float32).reshape(found["outputs"][0]["shape"])
        np.testing.assert_allclose(values, expected(bundle, x, k), rtol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient(replica: Replica, bundle: Path, binary: bool) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{replica.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy", "1")
    assert client.get_server_metadata()["name"] == "hpcmass"
    assert client.get_model_metadata("toy")["name"] == "toy"
    rng = np.random.default_rng(0)
    x, k = rng.normal(size=(5, 4)).astype(np.float32), np.arange(5)
    inputs = [triton.InferInput("x", [5, 4], "FP32"), triton.InferInput("k", [5], "INT64")]
    inputs[0].set_data_from_numpy(x, binary_data=binary)
    inputs[1].set_data_from_numpy(k, binary_data=not binary)
    wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
    found = client.infer("toy", inputs, outputs=wanted, request_id="r1")
    np.testing.assert_allclose(found.as_numpy("y"), expected(bundle, x, k), rtol=1e-5)
    assert found.get_response()["id"] == "r1"
    with pytest.raises(triton.InferenceServerException, match="the model has no input 'z'"):
        client.infer("toy", [triton.InferInput("z", [1], "FP32").set_data_from_numpy(np.zeros(1, np.float32))])
    client.close()


def test_metrics_count_what_happened(replica: Replica) -> None:
    def read() -> dict[str, float]:
        lines = replica.ask("GET", "/metrics")[2].decode().splitlines()
        return {one.rpartition(" ")[0]: float(one.rpartition(" ")[2]) for one in lines if one[0] != "#"}

    before = read()
    good(replica)
    replica.ask("POST", INFER, {"inputs": 3})
    after = read()
    for name, more in (
        ("hpcmass_inferences_total", 1), ("hpcmass_rows_total", 1), ("hpcmass_request_seconds_count", 1),
        ('hpcmass_answers_total{code="200"}', 2), ("hpcmass_ready", 0), ("hpcmass_queue_requests", 0),
    ):  # fmt: skip
        assert after[name] - before[name] == more, name
    assert after['hpcmass_answers_total{code="400"}'] == before.get('hpcmass_answers_total{code="400"}', 0) + 1
    assert after['hpcmass_request_seconds_bucket{le="+Inf"}'] == after["hpcmass_request_seconds_count"]
    assert after["hpcmass_ready"] == 1


def test_many_at_once_each_gets_its_own_whoever_fails_or_leaves(replica: Replica, bundle: Path) -> None:
    weights = expected(bundle, [*np.eye(4).tolist(), [0, 0, 0, 0]], [0] * 5)
    wrong: list[object] = []

    def client(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(40):
            x, k = (
                [[draw.random() for _ in range(4)] for _ in range(draw.choice([1, 1, 3]))],
                draw.randrange(20, 99),
            )
            body = json.dumps(request(x, [13 if draw.random() < 0.1 else k] * len(x))).encode()
            if draw.random() < 0.15:  # killed in the middle of its request, or before the answer
                with socket.create_connection(("127.0.0.1", replica.port)) as one:
                    whole = post(body)
                    one.sendall(whole[: draw.choice([len(whole), len(whole) // 2, 30])])
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                continue
            status, _, answer = replica.ask("POST", INFER, body)
            if b"13" in body.partition(b'"k"')[2]:
                if status != 500:
                    wrong.append((status, answer))
                continue
            found = np.array(json.loads(answer)["outputs"][0]["data"]).reshape(-1, 3) if status == 200 else None
            right = np.array(x) @ (weights[:4] - weights[4]) + weights[4] + k
            if found is None or not np.allclose(found, right, atol=1e-4):
                wrong.append((status, answer))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    good(replica)


def test_pipelined_requests_are_answered_in_order(replica: Replica) -> None:
    bodies = [json.dumps({"id": str(n), **request([[0, 0, 0, 0]], [n % 5])}).encode() for n in range(30)]
    many = b"".join(
        post(body) + (b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" if n % 3 == 0 else b"")
        for n, body in enumerate(bodies)
    )
    found = raw(replica.port, many)
    assert found.count(b"HTTP/1.1 200 OK") == 40
    places = [found.index(b'"id":"%d"' % n) for n in range(30)]
    assert places == sorted(places)


# -- what clients may not do ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET /v2 HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
        (b"GET /v2 HTTP/1.1\r\nA: " + b"b" * 500_000, b"431"),
        (post(b"", b"Content-Length: 5"), b"400"),
        (post(b"5\r\nhello\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"), b"400"),
        (post(b"{}", b"Content-Encoding: gzip"), b"415"),
        (post(b"{}", b"Inference-Header-Content-Length: x"), b"400"),
        (post(b"{}", b"Inference-Header-Content-Length: 1", b"Inference-Header-Content-Length: 2"), b"400"),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
         + b"100000\r\n" + bytes(0x100000) + b"\r\n" + (b"100000\r\n" + bytes(0x100000) + b"\r\n") * 9, b"413"),
        (b"GET /v2 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"501"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"501"),
        (b"PUT /v2 HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", b"405"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /%2e%2e\xff HTTP/1.1\r\n\r\n", b"400"),
    ],
    ids=range(18),
)  # fmt: skip
def test_what_is_no_request_is_answered_so(replica: Replica, data: bytes, status: bytes) -> None:
    found = raw(replica.port, data)
    assert found.startswith(b"HTTP/1.1 " + status), found[:200]
    assert b'{"error":"' in found
    good(replica)


def test_a_chunked_body_and_one_that_waits_to_be_asked_for(replica: Replica) -> None:
    body = json.dumps(request([[0, 0, 0, 0]], [1])).encode()
    head = b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\n"
    cut = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:20], body[20:]))
    assert raw(replica.port, head + b"Transfer-Encoding: chunked\r\n\r\n" + cut + b"0\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )
    with socket.create_connection(("127.0.0.1", replica.port), timeout=20) as client:
        client.sendall(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_http_1_0_and_close(replica: Replica) -> None:
    found = raw(replica.port, b"GET /v2 HTTP/1.0\r\n\r\n", half_close=False)
    assert b"Connection: close" in found
    found = raw(replica.port, b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"Connection: keep-alive" in found
    twice = b"GET /v2 HTTP/1.1\r\nConnection: close\r\n\r\n" + b"GET /v2 HTTP/1.1\r\n\r\n"
    assert raw(replica.port, twice, half_close=False).count(b"HTTP/1.1 200") == 1


ODD = st.sampled_from(
    [b"\r\n", b"\n", b"\0", b":", b" ", b"\xff", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_end_the_replica_nor_anybody_elses_request(replica: Replica, data: st.DataObject) -> None:
    whole = post(json.dumps(request([[0, 0, 0, 0]], [1])).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at, end = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
        end = end if data.draw(st.booleans()) else at
        whole = whole[:at] + data.draw(st.binary(max_size=20) | ODD) + whole[end:]
    with socket.create_connection(
        ("127.0.0.1", replica.port), timeout=20
    ) as other:  # halfway through meanwhile
        mine = post(json.dumps({"id": "mine", **request([[1, 1, 1, 1]], [3])}).encode())
        other.sendall(mine[:100])
        found = raw(replica.port, whole)
        other.sendall(mine[100:])
        answer = other.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"id":"mine"' in answer
    assert not found or found.startswith(b"HTTP/1.1 ")
    assert b"mine" not in found
    assert replica.process.poll() is None


# -- the process ------------------------------------------------------------------------------------------
def test_slow_clients_are_cut_and_cost_nobody_anything(tmp_path: Path, bundle: Path) -> None:
    code = (
        "import sys; from hpcmass.serve import interfaces as i; d = i.Limits.__init__.__kwdefaults__;"
        "d.update(head_s=0.5, body_s=0.5, idle_s=0.5, connections=5);"
        "from hpcmass.__main__ import main; sys.argv = ['hpcmass', *sys.argv[1:]]; main()"
    )
    made = Replica(tmp_path, str(bundle), "--notice", "0", start=["-c", code])
    try:
        made.until("ready")
        slow = {
            "head": b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-",
            "body": post(bytes(100))[:-50],
            "idle": b"GET /v2 HTTP/1.1\r\n\r\n",
            "silent": b"",
        }
        clients = {}
        for name, data in slow.items():
            clients[name] = socket.create_connection(("127.0.0.1", made.port), timeout=20)
            clients[name].sendall(data)
        good(made)
        fifth = socket.create_connection(("127.0.0.1", made.port), timeout=20)
        sixth = socket.create_connection(("127.0.0.1", made.port), timeout=20)
        assert sixth.recv(1000).startswith(b"HTTP/1.1 503")
        found = {}
        for name, client in clients.items():
            found[name] = b""
            while part := client.recv(65536):
                found[name] += part
        assert found["head"].startswith(b"HTTP/1.1 408")
        assert found["body"].startswith(b"HTTP/1.1 408")
        assert found["idle"].startswith(b"HTTP/1.1 200")
        assert found["silent"] == b""
        for client in (*clients.values(), fifth, sixth):
            client.close()
        good(made)
    finally:
        assert made.stop() == 0


def test_sigterm_loses_no_request(tmp_path: Path, bundle: Path) -> None:
    made = Replica(tmp_path, str(bundle), "--notice", "0.3")
    try:
        port = made.until("ready")["port"]
        lost: list[object] = []
        answered = [0] * 6
        stop = threading.Event()

        def client(number: int) -> None:
            one = None
            while not stop.is_set():
                try:
                    one = one or socket.create_connection(("127.0.0.1", port), timeout=30)
                except ConnectionRefusedError:
                    return
                slow = 7 if random.random() < 0.05 else 1
                try:
                    one.sendall(post(json.dumps(request([[0, 0, 0, 0]], [slow])).encode()))
                    answer = one.recv(65536)
                except OSError as error:
                    answer = repr(error).encode()
                if not answer.startswith(b"HTTP/1.1 200"):
                    lost.append(answer)
                    return
                answered[number] += 1
                if b"Connection: close" in answer:
                    one.close()
                    one = None

        threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(30) == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert lost == []
        assert min(answered) > 0
        assert made.state()["state"] == "ended"
        assert "connections cut" not in made.log.read_text()
    finally:
        made.stop(signal.SIGKILL)


def test_the_queue_is_bounded_and_the_overload_is_told(tmp_path: Path, bundle: Path) -> None:
    made = Replica(tmp_path, str(bundle), "--notice", "0", "--queue", "2")
    try:
        made.until("ready")
        found: list[tuple[int, dict]] = []

        def client() -> None:
            status, headers, _ = made.ask("POST", INFER, request([[0, 0, 0, 0]], [7]))
            found.append((status, headers))

        threads = [threading.Thread(target=client) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [headers for status, headers in found if status == 429]
        assert {status for status, _ in found} <= {200, 429, 503}
        assert refused
        assert all(int(headers["retry-after"]) >= 1 for headers in refused)
        assert any(status == 200 for status, _ in found)
        good(made)
    finally:
        assert made.stop() == 0


def test_tokens_and_tls(tmp_path: Path, bundle: Path) -> None:
    import sys

    made = subprocess.run(
        [sys.executable, "-m", "hpcmass", "token", "ada", "--file", str(tmp_path / "tokens")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    token = made.stdout.strip()
    assert token not in (tmp_path / "tokens").read_text()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    words = ["--tokens", "tokens", "--tls-cert", "cert.pem", "--tls-key", "key.pem", "--notice", "0"]
    replica = Replica(tmp_path, str(bundle), *words)
    try:
        said = replica.until("ready")
        assert said["url"].startswith("https://")
        trust = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

        def ask(path: str, given: str | None) -> bytes:
            line = f"Authorization: Bearer {given}\r\n" if given is not None else ""
            with (
                socket.create_connection(("127.0.0.1", replica.port), timeout=20) as plain,
                trust.wrap_socket(plain, server_hostname="127.0.0.1") as one,
            ):
                one.sendall(f"GET {path} HTTP/1.1\r\nConnection: close\r\n{line}\r\n".encode())
                found = b""
                while part := one.recv(65536):
                    found += part
                return found

        assert ask("/v2/health/ready", None).startswith(b"HTTP/1.1 200")
        for path in ("/v2", "/metrics", "/v2/models/toy", "/nowhere"):
            for wrong in (None, "", "x", token[:-1], token + "x"):
                assert ask(path, wrong).startswith(b"HTTP/1.1 401"), (path, wrong)
        assert b"WWW-Authenticate: Bearer" in ask("/v2", None)
        assert ask("/v2/models/toy", token).startswith(b"HTTP/1.1 200")
        assert raw(replica.port, b"GET /v2 HTTP/1.1\r\n\r\n")[:4] != b"HTTP"
        assert ask("/v2", token).startswith(b"HTTP/1.1 200")
    finally:
        assert replica.stop() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing-here"], "there is no model, run or folder 'nothing-here'"),
        (["{bundle}", "--host", "0.0.0.0"], "give --tokens FILE, or --anybody"),
        (["{bundle}", "--tokens", "none"], "there is no file of tokens"),
        (["{bundle}", "--tls-cert", "a.pem"], "certificate and key go together"),
        (["{bundle}", "--tls-cert", "a.pem", "--tls-key", "a.pem"], "certificate and key cannot be used"),
        (["{bundle}", "--host", "203.0.113.9", "--anybody"], "cannot listen at 203.0.113.9"),
        (["{bundle}", "--latency-ms", "-1"], "latency_s: is -0.001, not more than 0"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    tmp_path: Path, bundle: Path, words: list[str], said: str
) -> None:
    import sys

    command = [word.format(bundle=bundle) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "hpcmass", "serve", "--port", "0", *command],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_damaged_model_is_said_and_is_never_ready(tmp_path: Path, bundle: Path) -> None:
    import shutil

    shutil.copytree(bundle, tmp_path / "bad")
    file = tmp_path / "bad" / "weights.safetensors"
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    made = Replica(tmp_path, "./bad")
    assert made.process.wait(60) == 2
    assert "does not fit its checksum" in made.log.read_text()
    assert "Traceback" not in made.log.read_text()
    assert made.state()["state"] == "ended"


def test_a_version_by_its_alias_with_a_damaged_cache(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcmass.catalogue import Catalogue

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "hpcmass.toml").write_text('name = "lab"\n')
    catalogue = Catalogue(tmp_path / "catalogue")
    for _ in range(2):
        version = catalogue.register("tiny", bundle, metrics={"loss": 1.0}, lineage={})
    catalogue.alias("tiny", "production", 1, why="test")
    for damage in (False, True):
        if damage:
            file = next((tmp_path / "cache").rglob("weights.safetensors"))
            whole = bytearray(file.read_bytes())
            whole[-1] ^= 1
            file.chmod(0o644)
            file.write_bytes(whole)
        replica = Replica(tmp_path, "tiny@production", "--notice", "0")
        try:
            assert replica.until("ready")["version"] == str(1), version
            status, _, body = replica.ask("POST", "/v2/models/tiny/infer", request([[1, 2, 3, 4]], [1]))
            assert status == 200
            values = np.array(json.loads(body)["outputs"][0]["data"])
            np.testing.assert_allclose(values, expected(bundle, [[1, 2, 3, 4]], [1])[0], rtol=1e-5)
        finally:
            assert replica.stop() == 0
        replica.endpoint.unlink()
