"""Model cards, and versions laid out as Hugging Face has them."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmass.catalogue import Catalogue, Evaluations, Version, lineage_graph
from hpcmass.catalogue.card import UNKNOWN, Card, render
from hpcmass.catalogue.graph import datasets_of
from hpcmass.catalogue.graph_text import to_mermaid
from hpcmass.config import Project
from hpcmass.data import open_dataset
from hpcmass.errors import AlreadyExists, HpcmassError
from hpcmass.files import fsync_dir, make_dir, replace, sha256_file, storage_errors
from hpcmass.runs import RunFolder
from hpcmass.slurm.client import Slurm
from hpcmass.workflow.compare import registered_metrics
from hpcmass.workflow.cost import Cost, cost_of
from hpcmass.workflow.projects import ProjectRef, project_of

LAYOUTS = ("huggingface",)
_WEIGHTS, _HF_WEIGHTS = "weights.safetensors", "model.safetensors"
_MOST_JSON = 8 << 20
_MOST_HEADER = 100 << 20  # safetensors' own limit
_IN_GRAPH = 40


def card_of(model: str, project: ProjectRef = None) -> Card:
    """What is known of a version, for its card.

    Args:
        model: `NAME@VERSION`, or any other reference.
        project: The project.

    Raises:
        NotFound: There is no such version.
    """
    found = project_of(project)
    catalogue = Catalogue(found.catalogue)
    version = catalogue.get(model)
    described = _json_file(catalogue, version, "model.json")
    aliases = {
        alias: catalogue.history(version.name, alias)[-1].gates for alias in catalogue.aliases_of(version)
    }
    cost, source = _cost(version)
    return Card(
        version=version,
        aliases=aliases,
        model=described,
        parameters=_parameters(catalogue, version),
        data=[
            (split, name, identity, _samples(found, name, identity))
            for split, identity, name in datasets_of(version)
        ],
        metrics=registered_metrics(version),
        evaluations=list(Evaluations(catalogue.path).latest(version).values()),
        cost=cost,
        cost_source=source,
        graph=to_mermaid(lineage_graph(catalogue, version.ref, most=_IN_GRAPH)),
    )


def card(model: str, project: ProjectRef = None) -> str:
    """The model card of a version, in Markdown; arguments and errors are those of `card_of`."""
    return render(card_of(model, project))


def export(model: str, to: Path, project: ProjectRef = None) -> Path:
    """Lay a version out as Hugging Face has it: the card as `README.md`, `config.json`, `model.safetensors`.

    The folder is a model's folder to hpcmass too: `hpcmass.load(to)` loads it. It appears whole or not at all.

    Args:
        model: `NAME@VERSION`, or any other reference.
        to: Does not exist yet, or is an empty folder.
        project: The project.

    Raises:
        AlreadyExists: The folder has something in it.
        NotFound: There is no such version, or a file of it is missing.
        CorruptError: A file does not fit its digest.
    """
    found = project_of(project)
    known = card_of(model, found)
    target = Path(to).absolute()
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise AlreadyExists("is there already and not an empty folder", where=target)
    make_dir(target.parent)
    temporary = target.with_name(f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        Catalogue(found.catalogue).materialise(known.version, temporary)
        with storage_errors(target, "write the folder"):
            _as_hugging_face(temporary, known)
            fsync_dir(temporary)
            try:
                os.rename(temporary, target)
            except OSError as error:
                if target.is_dir() and any(target.iterdir()):
                    raise AlreadyExists("is there already", where=target) from error
                raise
            fsync_dir(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _as_hugging_face(folder: Path, known: Card) -> None:
    model = dict(known.model)
    if model.get("kind") == "torch" and (folder / _WEIGHTS).is_file() and not (folder / _HF_WEIGHTS).exists():
        os.rename(folder / _WEIGHTS, folder / _HF_WEIGHTS)
        listed = model.get("files")
        files = dict(listed) if isinstance(listed, Mapping) else {}
        size = (folder / _HF_WEIGHTS).stat().st_size
        files.pop(_WEIGHTS, None)
        files[_HF_WEIGHTS] = {"bytes": size, "sha256": sha256_file(folder / _HF_WEIGHTS)}
        model |= {"weights": _HF_WEIGHTS, "files": files}
        replace(folder / "model.json", json.dumps(model, indent=1, sort_keys=True) + "\n")
    if not (folder / "config.json").exists():
        replace(folder / "config.json", json.dumps(_config(known), indent=2) + "\n")
    if (folder / "README.md").exists():  # the version's own
        os.rename(folder / "README.md", folder / "README.original.md")
    replace(folder / "README.md", render(known))


def _config(known: Card) -> dict[str, Any]:
    """What Hugging Face's tools look for in `config.json`, and what hpcmass knows beside it."""
    raw = known.model.get("signature")
    signature = raw if isinstance(raw, Mapping) else {}
    listed = signature.get("classes")
    classes = [str(one) for one in listed] if isinstance(listed, list) else []
    made: dict[str, Any] = {
        "model_type": "hpcmass",
        "hpcmass": {
            "model": known.version.ref,
            "kind": known.model.get("kind", UNKNOWN),
            "params": known.model.get("params", {}),
            "signature": signature,
        },
    }
    if classes:
        made |= {
            "num_labels": len(classes),
            "id2label": {str(number): name for number, name in enumerate(classes)},
            "label2id": {name: number for number, name in enumerate(classes)},
        }
    return made


def _json_file(catalogue: Catalogue, version: Version, name: str) -> Mapping[str, Any]:
    """A JSON object among a version's files; empty where it is not there, or is none."""
    entry = version.files.get(name)
    if entry is None or entry.bytes > _MOST_JSON:
        return {}
    with contextlib.suppress(HpcmassError, OSError, ValueError, RecursionError):
        raw = json.loads(catalogue.blobs.in_place(entry).read_text(encoding="utf-8"))
        if isinstance(raw, dict):
            return raw
    return {}


def _parameters(catalogue: Catalogue, version: Version) -> int | None:
    """Numbers in a version's safetensors files, from their headers; None where there are none to be read."""
    total = None
    for name, entry in version.files.items():
        if name.endswith(".safetensors"):
            try:
                total = (total or 0) + _count(catalogue.blobs.in_place(entry))
            except (HpcmassError, OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
                return None
    return total


def _count(path: Path) -> int:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MOST_HEADER, path.stat().st_size):
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= int(size)
            total += count
    return total


def _samples(project: Project, name: str, identity: str) -> int | None:
    """Samples of a data set, where it still is what it was."""
    if not name:
        return None
    with contextlib.suppress(HpcmassError, OSError, ValueError):
        folder = project.data_path(name)
        if folder.is_dir():
            dataset = open_dataset(folder)
            return len(dataset) if dataset.id == identity else None
    return None


def _cost(version: Version) -> tuple[dict[str, float | None], str]:
    """What its run cost: as it was registered, and what Slurm can add where the run is still there."""
    path = version.lineage.get("run")
    kept = Cost.from_json(version.lineage.get("cost"))
    now = None
    if isinstance(path, str) and path and (Path(path) / "status.json").is_file():
        run = RunFolder(Path(path))
        with contextlib.suppress(HpcmassError, ValueError, TypeError, AttributeError):
            if (run.status().started or 0.0) <= version.created:  # else another run has its name now
                now = cost_of(run, Slurm(patience_s=3.0) if shutil.which("sacct") else None)
    chosen = now if now is not None and now.source else kept or now or Cost()
    before = kept or Cost()
    raw, old = chosen.to_json(), before.to_json()
    keys = ("wall_hours", "node_hours", "cpu_hours", "gpu_hours", "energy_joules")
    return {key: raw[key] if raw[key] is not None else old[key] for key in keys}, chosen.source
