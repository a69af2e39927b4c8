"""What the training data look like to a model: the reference that drift is measured against.

Scalar fields are taken from the manifest, where all samples were counted; elements of vectors and what is
summed up of images need the samples, of which a part is read. The classes and scores to expect are the
model's own on samples that it was not trained on, for its mistakes are no drift.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.errors import AlreadyExists, CorruptError, NotFound
from hpcmass.files import check_name, publish_json, read_json
from hpcmass.monitor.features import CLASS, Watched
from hpcmass.monitor.sketch import Floats, Sketch, edges_of, thinned

ROWS = 16384  # samples that are read of the training data
COARSE = 0.25  # a bin of the manifest with more than this share tells too little
FORMAT = 1


@dataclass
class Baseline:
    """Edges and statistics of each feature.

    Attributes:
        version: Of the model, as text.
        edges: By feature; None of one that counts classes.
        sketches: Of the training data by feature.
        classes: The number of classes of a classification.
        datasets: Ids of the data it was made of, by what they were used for.
        created: When.
    """

    version: str
    edges: dict[str, Floats | None] = field(default_factory=dict)
    sketches: dict[str, Sketch] = field(default_factory=dict)
    classes: int | None = None
    datasets: dict[str, str] = field(default_factory=dict)
    created: float = field(default_factory=time.time)

    def add(self, name: str, values: Floats) -> None:
        """A feature out of values of samples, (n,)."""
        classes = self.classes if name == f"out:{CLASS}" else None
        edges = None if classes is not None else edges_of(values)
        self.edges[name], self.sketches[name] = edges, Sketch.of(values, edges, classes)

    def add_manifest(self, name: str, stats: Mapping[str, Any]) -> bool:
        """A scalar feature out of a manifest's statistics; False where these are too coarse."""
        counts = np.array(stats.get("histogram", {}).get("counts", []), np.int64)
        if not counts.size or stats.get("mean") is None or stats.get("std") is None:
            return False
        if counts.max() > COARSE * counts.sum():
            return False
        edges, found = thinned(np.array(stats["histogram"]["edges"], np.float64), counts)
        count, low, high = int(stats["count"]), float(stats["min"]), float(stats["max"])
        mean, squares = float(stats["mean"]), float(stats["std"]) ** 2 * count
        missing = int(stats.get("nonfinite", 0))
        self.edges[name] = edges
        self.sketches[name] = Sketch(count, missing, mean, squares, low, high, found.astype(np.int64))
        return True

    def sketch(self, name: str, values: Floats) -> Sketch:
        """The statistics of values with this reference's bins; without, where it does not know the feature."""
        if name not in self.edges:
            return Sketch.of(values, None)
        edges = self.edges[name]
        return Sketch.of(values, edges, self.classes if edges is None else None)

    def to_json(self) -> dict[str, Any]:
        """The value of the file."""
        return {
            "format": FORMAT,
            "version": self.version,
            "created": self.created,
            "classes": self.classes,
            "datasets": self.datasets,
            "features": {
                name: {
                    "edges": None if (edges := self.edges[name]) is None else edges.tolist(),
                    "stats": one.to_json(),
                }
                for name, one in self.sketches.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any, path: Path) -> Baseline:
        """Read what `to_json` wrote.

        Raises:
            CorruptError: It is something else, or newer.
        """
        try:
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']}")
            made = cls(str(value["version"]), classes=value["classes"], created=float(value["created"]))
            made.datasets = {str(name): str(one) for name, one in value["datasets"].items()}
            for name, one in value["features"].items():
                made.edges[name] = None if one["edges"] is None else np.array(one["edges"], np.float64)
                made.sketches[name] = Sketch.from_json(one["stats"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptError(f"is no reference of drift ({error})", where=path, hint="remove it") from error
        return made


def from_samples(
    watched: Watched,
    version: str,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    manifest: Mapping[str, Mapping[str, Any]],
) -> Baseline:
    """A reference out of samples.

    Args:
        watched: What of them.
        version: The model's.
        inputs: Inputs of training samples, one after the other.
        outputs: What the model gives for samples it was not trained on, where there are such.
        manifest: The training data's statistics by field.
    """
    made = Baseline(version, classes=watched.classes)
    for name, values in watched.of_inputs(inputs).items():
        stats = manifest.get(name.removeprefix("in:"))
        if stats is None or not made.add_manifest(name, stats):
            made.add(name, values)
    if outputs:
        for name, values in watched.of_outputs(outputs).items():
            made.add(name, values)
    return made


def baseline_path(folder: Path, version: str) -> Path:
    """Where the reference of a version lies in a monitor's folder."""
    return folder / f"baseline-{check_name(version, 'version')}.json"


def read_baseline(folder: Path, version: str) -> Baseline | None:
    """The reference of a version; None where there is none."""
    path = baseline_path(folder, version)
    try:
        return Baseline.from_json(read_json(path), path)
    except NotFound:
        return None


def keep_baseline(folder: Path, baseline: Baseline) -> Baseline:
    """Publish a reference; of two that were made at once the first is everybody's."""
    path = baseline_path(folder, baseline.version)
    with contextlib.suppress(AlreadyExists):
        publish_json(path, baseline.to_json())
    return read_baseline(folder, baseline.version) or baseline
