"""A project with versions of a model, and its deployments as a user handles them: by `hpcmass`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hpcmass.catalogue import Catalogue
from hpcmass.config import Project
from hpcmass.serve.deployment import Deployment, Known

from .conftest import RECIPE, write_bundle

BROKEN = RECIPE.replace(
    "if (k == 13).any():", "if (k > 99).any():"
)  # warms up, and fails at the load's requests
SLOW = RECIPE.replace("if (k == 7).any():\n            time.sleep(0.3)", "time.sleep(0.02)")


def make_project(root: Path) -> Path:
    """A project whose catalogue has `toy`: 1, 2 and 3 the same good model, 4 fails, 5 is slow; 1 is `production`."""
    import tests.unit.serve.conftest as base

    project = Project.create(root, "serving")
    catalogue = Catalogue(project.catalogue)
    for number, recipe in enumerate((RECIPE, RECIPE, RECIPE, BROKEN, SLOW), 1):
        folder = root / "made" / str(number)
        folder.mkdir(parents=True)
        before, base.RECIPE = base.RECIPE, recipe
        try:
            torch.manual_seed(0)
            bundle = write_bundle(folder / "toy")
        finally:
            base.RECIPE = before
        catalogue.register("toy", bundle, metrics={}, lineage={})
    catalogue.alias("toy", "production", 1, why="the first")
    return root


class Deployed:
    """A deployment of a project, and what a user can do to it."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.folder = Deployment(root / "deployments" / name)

    def hpcmass(self, *words: str, fails: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hpcmass", *words, "--project", str(self.root)],
            capture_output=True, text=True, timeout=170, cwd=self.root, check=False,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout + done.stderr + self.log()
        return done.stdout + (done.stderr if fails else "")

    def deploy(self, model: str, *words: str, fails: bool = False) -> str:
        return self.hpcmass("deploy", model, "--name", self.name, *words, fails=fails)

    def log(self) -> str:
        texts = []
        for file in [self.folder.path / "gateway" / "out.log", *self.folder.path.glob("replicas/*/out.log")]:
            with contextlib.suppress(OSError):
                texts.append(f"--- {file}\n{file.read_text(errors='replace')[-3000:]}")
        return "\n".join(texts)

    def status(self) -> dict[str, Any]:
        return self.folder.status() or {}

    def ready(self, model: str | None = None) -> list[dict[str, Any]]:
        found = [one for one in self.status().get("replicas", ()) if one["state"] == "ready"]
        return [one for one in found if model in (None, one["model"])]

    def until(self, what: Callable[[], Any], wait_s: float = 90.0) -> Any:
        end = time.monotonic() + wait_s
        while not (found := what()):
            assert time.monotonic() < end, json.dumps(self.status(), indent=1) + self.log()
            time.sleep(0.05)
        return found

    def kinds(self) -> list[str]:
        return [one["kind"] for one in self.folder.events()]

    def gateway_pid(self) -> int:
        return int((self.folder.endpoint() or {})["pid"])

    def replicas(self) -> list[Known]:
        return [one for one in self.folder.replicas() if one.job is not None]

    def processes(self) -> list[int]:
        """Every process that serves a replica of this deployment."""
        mark = os.fsencode(self.folder.path / "replicas")
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if mark in Path("/proc", entry, "cmdline").read_bytes():
                    found.append(int(entry))
        return found

    @contextlib.contextmanager
    def load(self, rate: float = 100, threads: int = 8) -> Iterator[dict[str, Any]]:
        """Open load from another process; the dictionary has its account afterwards."""
        account: dict[str, Any] = {}
        words = [
            str(Path(__file__).with_name("load_client.py")),
            str(self.root),
            self.name,
            str(rate),
            str(threads),
        ]
        child = subprocess.Popen(
            [sys.executable, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n", self.log()
            yield account
            said, _ = child.communicate(timeout=150)
            account.update(json.loads(said))
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()

    def end(self) -> None:
        """Undeploy; whatever happened, nothing of it is left running."""
        try:
            if self.folder.exists():
                self.hpcmass("undeploy", self.name)
                assert self.processes() == []
        finally:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def no_loss(account: dict[str, Any], at_least: int = 100) -> None:
    assert account["failed"] == [], account
    assert account["wrong"] == 0, account
    assert account["ok"] == account["sent"] >= at_least, account
