"""What a monitor's folder says of a version: the arrays it takes and gives, and its classes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hpcmass.errors import AlreadyExists, CorruptError, NotFound
from hpcmass.files import check_name, publish_json, read_json
from hpcmass.monitor.features import Side, Watched

FORMAT = 1


def _path(folder: Path, version: str) -> Path:
    return folder / f"model-{check_name(version, 'version')}.json"


def write_facts(folder: Path, version: str, watched: Watched, model: str = "") -> None:
    """Say once what a version takes and gives.

    Raises:
        StorageError: The file system refused.
    """
    sides = {
        name: [{"name": one.name, "shape": list(one.shape)} for one in side]
        for name, side in (("inputs", watched.inputs), ("outputs", watched.outputs))
    }
    classes = list(watched.names) if watched.classes is not None else None
    with contextlib.suppress(AlreadyExists):
        publish_json(
            _path(folder, version),
            {"format": FORMAT, "model": model, "version": version, **sides, "classes": classes},
        )


def model_name(folder: Path, version: str) -> str:
    """The name of the model of a version; empty where it is not known."""
    try:
        value = read_json(_path(folder, version))
    except NotFound:
        return ""
    return str(value.get("model", "")) if isinstance(value, dict) else ""


def read_facts(folder: Path, version: str) -> Watched | None:
    """What is said of a version; None where nothing is.

    Raises:
        CorruptError: The file is something else, or newer.
    """
    path = _path(folder, version)
    try:
        value = read_json(path)
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}")
        inputs, outputs = (
            tuple(Side(str(one["name"]), tuple(map(int, one["shape"]))) for one in value[side])
            for side in ("inputs", "outputs")
        )
        names = value["classes"]
        return Watched(inputs, outputs, len(names) if names else None, tuple(map(str, names or ())))
    except NotFound:
        return None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptError(f"says nothing of a model ({error})", where=path, hint="remove it") from error
