"""Where a model came from, gathered from its run folder."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmass.catalogue.version import plain
from hpcmass.errors import CorruptError, NotFound
from hpcmass.files import read_json, storage_errors

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*@[0-9]+")
_PACKAGES = ("hpcmass", "torch", "numpy", "scikit-learn", "horovod", "mpi4py")


def lineage(
    run_dir: Path,
    *,
    datasets: Mapping[str, str] | None = None,
    job_folder: Path | None = None,
    parent: str | None = None,
) -> dict[str, Any]:
    """Gather where a run's model came from.

    Args:
        run_dir: A run folder with `job.toml` and `status.json`.
        datasets: Dataset id of each split that was used, such as `{"train": id}`.
        job_folder: Where the job file and the recipe are kept, for the git commit; default: the run folder.
        parent: Reference of the version that this one was made from; default: the one whose weights the run
            began with (`train.init_from`), if any.

    Returns:
        `run`, `job`, `datasets`, `metrics`, `parent`, `began_with` (what, and its digest; where the run began
        with weights of any kind), `commit` (None outside git; ends in `+changes` when
        the folder has changes that are not committed), `environment`.

    Raises:
        NotFound: The folder is no run.
        CorruptError: Its job file is no TOML.
    """
    run_dir = Path(run_dir).resolve()
    with storage_errors(run_dir, "read the run"):
        text = (run_dir / "job.toml").read_text(encoding="utf-8")
    try:
        job = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CorruptError(f"is not valid TOML ({error})", where=run_dir / "job.toml") from error
    try:
        status = read_json(run_dir / "status.json")
    except NotFound:
        status = {}
    began = _began_with(run_dir)
    if parent is None and began and _REF.fullmatch(began["what"]):
        parent = began["what"]
    gathered = {
        "run": str(run_dir),
        "job": job,
        "datasets": dict(datasets or {}),
        "metrics": status.get("metrics", {}) if isinstance(status, dict) else {},
        "parent": parent,
        "commit": git_commit(job_folder or run_dir),
        "environment": environment(),
        **({"began_with": began} if began else {}),
    }
    result: dict[str, Any] = plain(gathered, "lineage")
    return result


def _began_with(run_dir: Path) -> dict[str, str] | None:
    """What `init.json` of a run says that it began with: `what` (`mnist@3`, or a file) and its `sha256`."""
    try:
        raw = read_json(run_dir / "init.json")
    except NotFound:
        return None
    said = raw if isinstance(raw, dict) else {}
    what = said.get("what")
    return {"what": what, "sha256": str(said.get("sha256", ""))} if isinstance(what, str) and what else None


def environment() -> dict[str, Any]:
    """Python, platform and versions of the packages that matter, without importing any of them."""
    import importlib.metadata  # takes longer to import than a list of versions to print

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": versions}


def git_commit(folder: Path) -> str | None:
    """The commit of a folder's git repository, with `+changes` where the folder differs, or None."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--", ".")
    return f"{commit}+changes" if changes is None or changes else commit


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
