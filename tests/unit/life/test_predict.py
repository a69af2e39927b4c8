"""`hpcmass predict … --out FOLDER`, as it is typed."""

from __future__ import annotations

import numpy as np
from life_lab import Lab

from hpcmass.data import open_dataset


def test_a_folder_of_predictions(lab: Lab) -> None:
    lab.model(knows=2), lab.model()
    lab.catalogue.alias("eyes", "production", 2, why="first")
    answer = lab.call(
        "predict", "eyes@production", "data/d/test", "--out", "said", "--keep", "label", "--workers", "1"
    )
    assert answer.code == 0, answer.err
    assert "120 predictions in said (1 shards)" in answer.out
    found = open_dataset(lab.root / "said")
    assert found.targets == ["label"]
    rows = found.batch(np.arange(120))
    assert (rows["predicted"] == rows["label"]).all()
    assert found.manifest.source["name"] == "eyes@2"
    # The alias has moved: what was begun with another version is not gone on with.
    lab.catalogue.alias("eyes", "production", 1, why="back")
    words = ("predict", "eyes@production", "data/d/test", "--keep", "label", "--workers", "1", "--out")
    answer = lab.call(*words, "said")
    assert answer.code != 0
    assert "another model, dataset or options" in answer.err
    assert "eyes@2" in answer.err
    # What was predicted can be evaluated against the truth that went along, and more be learned from it.
    assert lab.call("data", "verify", "said").code == 0


def test_words_that_do_not_fit(lab: Lab) -> None:
    lab.model()
    np.save(lab.root / "x.npy", np.zeros((2, 4, 4), np.uint8))
    for words, said in (
        (("x.npy", "--out", "said"), "is a file"),
        (("x.npy", "--out", "said.csv", "--workers", "2"), "need --out FOLDER"),
        (("data/nothing", "--out", "said"), "no "),
        (("data/d/test", "--out", "said", "--keep", "colour"), "no field 'colour'"),
    ):
        answer = lab.call("predict", "eyes", *words)
        assert answer.code != 0
        assert said in answer.err, answer.err
        assert "Traceback" not in answer.err
    assert not (lab.root / "said").exists()
