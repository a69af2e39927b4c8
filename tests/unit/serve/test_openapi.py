"""The OpenAPI document, and Schemathesis: requests made from it, right and wrong, against a real replica."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Replica, request

pytest.importorskip("schemathesis", reason="schemathesis is not installed")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,negative_data_rejection,unsupported_method,ignored_auth"
)


def schemathesis(replica: Replica, *words: str) -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{replica.port}/openapi.json"
    return subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", url, "--checks", CHECKS, "--seed", "1",
         "--continue-on-failure", "--no-color", "--warnings", "off", *words],
        capture_output=True, text=True, cwd=replica.log.parent, timeout=600,
    )  # fmt: skip


def test_the_document_fits_the_answers_to_whatever_is_asked(replica: Replica) -> None:
    done = schemathesis(replica, "--phases", "examples,coverage,fuzzing", "--max-examples", "60")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "/v2/models/toy/infer" in replica.ask("GET", "/openapi.json")[2].decode()
    status, _, body = replica.ask("POST", "/v2/models/toy/infer", request([[0, 0, 0, 0]], [1]))
    assert status == 200, body


def test_the_document_of_a_replica_with_tokens(tmp_path: Path, bundle: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "hpcmass", "token", "ada", "--file", str(tmp_path / "tokens")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = ["--tokens", "tokens", "--notice", "0", "--runtime", "torch"]
    replica = Replica(tmp_path, str(bundle), *words)
    try:
        replica.until("ready")
        assert replica.ask("GET", "/openapi.json")[0] == 401
        line = f"Authorization: Bearer {made.stdout.strip()}"
        said = json.loads(replica.ask("GET", "/openapi.json", headers=dict([line.split(": ")]))[2])
        assert said["security"] == [{"token": []}]
        done = schemathesis(replica, "-H", line, "--phases", "coverage", "--max-examples", "10")
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    finally:
        assert replica.stop() == 0
