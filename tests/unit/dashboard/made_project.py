"""A project with some of everything, laid down by the product's own writers; and a dashboard that serves it."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcmass.catalogue import Catalogue
from hpcmass.config import Project
from hpcmass.dashboard.access import Access
from hpcmass.dashboard.app import Dashboard
from hpcmass.dashboard.server import Server
from hpcmass.files import append_record, replace_json
from hpcmass.runs import RankError, RunFolder, State

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">'\"&\u202e"


def made_run(project: Project, name: str, state: State, steps: int = 40, **facts: Any) -> RunFolder:
    """A run as its rank 0 leaves it."""
    run = RunFolder(project.runs / name)
    run.create('name = "made"\n', "")
    rng = random.Random(name)
    for step in range(10, steps + 1, 10):
        loss = 2 / step**0.5 + rng.gauss(0, 0.01)
        run.append({"kind": "train", "step": step, "epoch": 0, "loss": loss, "lr": 0.1, "samples_per_s": 900.0})
        run.append({"kind": "valid", "step": step, "epoch": 0, "loss": loss + 0.1, "accuracy": 1 - loss / 3})
    began = time.time() - 100
    said: dict[str, Any] = {
        "attempt": 1,
        "started": began,
        "ranks": 2,
        "backend": "mpi",
        "step": steps,
        "total_steps": 40,
    }
    if state is not State.CREATED:
        run.update(state=state, **{**said, **facts})
    return run


def made_version(project: Project, name: str, accuracy: float, tmp: Path, **lineage: Any) -> None:
    """A version of a model, of one small file."""
    folder = tmp / f"{name}-{accuracy}"
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_bytes(str(accuracy).encode())
    Catalogue(project.catalogue).register(
        name,
        folder,
        metrics={"accuracy": accuracy},
        lineage=lineage,
        description=f"about {accuracy}",
        tags=["demo"],
    )


def made_deployment(project: Project, name: str, **status: Any) -> Path:
    """A deployment as its gateway leaves it."""
    folder = project.root / "deployments" / name
    asked = {"name": name, "model": "net", "stable": "net@1", "follow": "net@production", "replicas": [1, 4],
             "slo_p99_ms": 10.0, "targets": ["cpu"], "state": "running", "created": time.time() - 60, "by": "ada"}  # fmt: skip
    replicas = [
        {"id": "r-0001", "state": "ready", "model": "net@1", "track": "stable", "node": "cn1", "target": "cpu",
         "job": "11", "weight": 1.0, "in_flight": 1, "rate": 90.0, "p99_ms": 4.25},
        {"id": "r-0002", "state": "ready", "model": "net@2", "track": "canary", "node": "gn1", "target": "gpu",
         "job": "12", "weight": 3.0, "in_flight": 2, "rate": 10.0, "p99_ms": 12.5},
    ]  # fmt: skip
    said = {"time": time.time(), "model": "net@1", "wanted": 3, "reason": "p99 above its goal", "rate": 100.0, "p50_ms": 2.0,
            "p99_ms": 8.5, "errors": 0, "queue": 1, "canary": {"model": "net@2", "share": 0.1}, "replicas": replicas}  # fmt: skip
    replace_json(folder / "deployment.json", {"format": 1, **asked})
    replace_json(
        folder / "endpoint.json", {"format": 1, "generation": 2, "url": "http://cn1:8000", "state": "ready"}
    )
    replace_json(folder / "gateway" / "status.json", {"format": 1, **said, **status})
    append_record(folder / "events.jsonl", {"kind": "created", "time": time.time(), "model": "net@1"})
    return folder


def made_project(root: Path) -> Project:
    """Runs in every state, two versions with an alias, and a deployment."""
    project = Project.create(root, "made")
    made_run(project, "done", State.COMPLETED, ended=time.time(), metrics={"loss": 0.4, "accuracy": 0.8})
    made_run(project, "lost", State.RUNNING)  # its process is gone: no lease
    made_run(project, "fresh", State.CREATED, steps=0)
    broken = made_run(project, "broken", State.FAILED, steps=20, reason=HOSTILE)
    broken.record_error(
        RankError(1, 1, "exception", "ValueError", HOSTILE, hint=f"mend {HOSTILE}", traceback=f"Traceback {HOSTILE}",
                  time=time.time(), host="cn7")
    )  # fmt: skip
    run = str(project.runs / "done")
    made_version(project, "net", 0.81, root, run=run, job={"params": {"lr": 0.1}})
    made_version(project, "net", 0.93, root, parent="net@1", run=run)
    Catalogue(project.catalogue).alias("net", "production", 2, why=HOSTILE)
    made_deployment(project, "front")
    return project


class Client:
    """Asks one dashboard, by any headers."""

    def __init__(self, server: Server) -> None:
        self.server, self.access = server, server.access

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers, body of one request with exactly these headers besides `Host`."""
        host, port = self.server.server_address[:2]
        connection = http.client.HTTPConnection(str(host), int(port), timeout=20)
        given = {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in given, skip_accept_encoding=True)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, {name.title(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def get(self, path: str, status: int = 200) -> Any:
        """JSON below `api/`, with the token."""
        code, _, body = self.ask(f"/api/{path}", Authorization=f"Bearer {self.access.token}")
        assert code == status, (code, body)
        return json.loads(body)


@contextmanager
def served(project: Project) -> Iterator[Client]:
    """A dashboard of a project while it lasts, on a free port."""
    server = Server("127.0.0.1", 0, Access(), Dashboard(project).answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Client(server)
    finally:
        server.end()
        thread.join()
