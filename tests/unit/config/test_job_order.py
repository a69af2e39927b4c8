"""Keys of `[data]` and `[train]` that say in which order samples come: what fits together, and what is said."""

from typing import Any

import pytest

from hpcmass.config import job_from_values, job_to_toml
from hpcmass.errors import ConfigError

BASE: dict[str, Any] = {"name": "j", "recipe": "r.py"}


def job(data: dict[str, Any] | None = None, **train: Any) -> Any:
    return job_from_values({**BASE, "data": {"train": ["a", "b"], **(data or {})}, "train": train})


@pytest.mark.parametrize(
    "data",
    [
        {"order": "block"},
        {"order": "block", "block": {"kib": 1024, "window": 4, "lanes": 8}},
        {"order": "stratified", "stratify": "y"},
        {"mix": {"a": 0.7, "b": 0.3}},
        {"mix": {"a": 7, "b": 3}, "order": "block", "block": {"window": 2}, "epoch_samples": 1000},
    ],
)
def test_orders_that_fit_stay_what_they_are(data: dict[str, Any]) -> None:
    made = job(data)
    tomllib = pytest.importorskip("tomllib")

    assert job_from_values(tomllib.loads(job_to_toml(made))) == made


@pytest.mark.parametrize(
    ("data", "key", "text"),
    [
        ({"order": "blocks"}, "data.order", "'block'"),
        ({"block": {"window": 4}}, "data.block", 'order is "global"'),
        ({"order": "block", "block": {"window": 0}}, "data.block.window", "0"),
        ({"stratify": "y"}, "data.stratify", 'order is "global"'),
        ({"mix": {"a": 1.0}}, "data.mix", "name each dataset"),
        ({"mix": {"a": 1.0, "c": 1.0}}, "data.mix", "name each dataset"),
        ({"mix": {"a": 1.0, "b": 0.0}}, "data.mix", "above 0"),
        ({"mix": {"a": 1.0, "b": "much"}}, "data.mix.b", "a number"),
        ({"mix": 3}, "data.mix", "a table"),
        ({"train": "a", "mix": {"a": 1.0}}, "data.mix", "name each dataset"),
        ({"train": ["a", "a"], "mix": {"a": 1.0}}, "data.mix", "name each dataset"),
        ({"order": "stratified", "mix": {"a": 1.0, "b": 1.0}}, "data.mix", "stratified"),
        ({"epoch_samples": 10}, "data.epoch_samples", "data.mix"),
    ],
)
def test_orders_that_do_not_fit_are_refused_with_the_key(data: dict[str, Any], key: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job(data)
    assert f"'{key}'" in str(caught.value)
    assert text in str(caught.value)
    assert len(caught.value.message.splitlines()) == 1  # one fault, said once


def test_a_mixture_and_a_model_a_shard_do_not_go_together() -> None:
    values = {
        **BASE, "data": {"train": ["a", "b"], "mix": {"a": 1, "b": 1}}, "train": {"mode": "per-shard"},
        "per_shard": {},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"data\.mix"):
        job_from_values(values)


def test_last_batch() -> None:
    assert job().train.last == "keep"
    assert job(drop_last=True).train.last == "drop"
    assert job(last_batch="drop", drop_last=True).train.last == "drop"
    assert job(last_batch="pad").train.last == "pad"
    with pytest.raises(ConfigError, match=r"'train\.drop_last'.*pad"):
        job(last_batch="pad", drop_last=True)
