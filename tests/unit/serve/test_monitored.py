"""A real replica that is watched: what it writes about requests, and what labels become."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from hpcmass.data import shard
from hpcmass.monitor.answers import live
from hpcmass.monitor.baseline import read_baseline
from hpcmass.monitor.kept import read_kept
from hpcmass.monitor.windows import merge_windows, read_windows

from .conftest import Replica, request

INFER, LABELS = "/v2/models/toy/infer", "/v2/models/toy/labels"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, bundle: Path):
    """A replica that has answered, and its monitor's folder after it ended."""
    folder = tmp_path_factory.mktemp("watched")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        x=rng.normal(3, 2, (3000, 4)).astype(np.float32), k=rng.integers(0, 5, 3000),
        y=rng.normal(size=(3000, 3)).astype(np.float32),
    )  # fmt: skip
    shard(folder / "data.npz", folder / "data")
    words = ["--training-data", str(folder / "data"), "--window", "0.3", "--keep-samples", "50"]
    made = Replica(folder, str(bundle), "--notice", "0", "--monitor", str(folder / "monitor"), *words)
    try:
        made.until("ready")
        for number in range(60):
            body = request((rng.normal(3, 2, (2, 4))).tolist(), [number % 5, 2])
            assert made.ask("POST", INFER, {**body, "id": f"q{number}"})[0] == 200
        assert made.ask("POST", INFER, b"{}")[0] == 400
        truth = made.ask("POST", LABELS, {"id": "q0", "label": [0.0] * 6})
        several = made.ask("POST", LABELS, [{"id": "q1", "label": [1, 2]}, {"id": "never", "label": 1}])
        refused = [
            made.ask("POST", LABELS, body)[0]
            for body in (
                b"x",
                {"id": "q0"},
                {"id": 3, "label": 1},
                {"id": "q0", "label": {"a": 1}},
                [1],
                b"[NaN]",
            )
        ]
        wrong = made.ask("GET", LABELS)
        end = time.monotonic() + 30
        while sum(one.sampled for one in read_windows(folder / "monitor")) < 120:  # while it is written
            assert time.monotonic() < end, made.log.read_text()
            time.sleep(0.05)
    finally:
        assert made.stop() == 0, made.log.read_text()
    return folder / "monitor", (truth, several, refused, wrong)


def test_windows_tell_what_was_asked_and_answered(seen) -> None:
    whole = merge_windows(read_windows(seen[0]))
    assert (whole.requests, whole.rows, whole.sampled) == (60, 120, 120)
    assert whole.answers["400"] == 7  # one request, and six labels that were none
    assert sum(whole.latency) == 60
    assert 0 < whole.latency_s / 60 < 1
    x = whole.features["in:x[2]"]
    assert x.count == x.bins.sum() == 120
    assert abs(x.mean - 3) < 0.8
    assert whole.features["out:y[0]"].count == 120
    assert whole.features["in:k"].low == 0


def test_the_reference_is_that_of_the_training_data(seen) -> None:
    found = read_baseline(seen[0], "1")
    assert found is not None
    assert {"in:x[0]", "in:k", "out:y[2]"} <= set(found.sketches)
    assert found.sketches["in:x[3]"].count == 3000
    assert found.sketches["in:k"].bins.sum() == 3000
    assert np.allclose(found.sketches["in:x[3]"].bins, 3000 / 32, atol=2)


def test_labels_meet_their_answers(seen) -> None:
    folder, (truth, several, refused, wrong) = seen
    assert json.loads(truth[2]) == {"labels": 1}
    assert json.loads(several[2]) == {"labels": 2}
    assert refused == [400] * 6
    assert (wrong[0], wrong[1]["allow"]) == (405, "POST")
    (found,) = live(folder, {})
    assert (found.n, found.unknown) == (6, 1)  # of q1 there are six numbers, not two
    assert found.to_json()["metric"] == "mae"


def test_raw_samples_are_kept(seen) -> None:
    (found,) = read_kept(seen[0])
    assert found["in:x"].shape == (50, 4)
    assert found["in:x"].dtype == np.float32
    assert all(one.startswith(b"q") for one in found["id"])


def test_without_a_monitor_there_is_no_address_for_labels(replica: Replica) -> None:
    assert replica.ask("POST", LABELS, {"id": "q", "label": 1})[0] == 404
