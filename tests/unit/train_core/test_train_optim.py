"""Optimizers and schedules by name."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hpcmass.config import job_from_values
from hpcmass.errors import ConfigError
from hpcmass.train.optim import Schedule, make_optimizer, optimizer_names, schedule_names

RECIPE = SimpleNamespace(optimizer=None, path=Path("recipe.py"))


def job(**train):
    return job_from_values({"name": "j", "recipe": "r.py", "data": {"train": "d"}, "train": train})


def test_every_optimizer_of_torch_takes_a_step_or_says_why() -> None:
    for name in sorted(set(optimizer_names()) - {"SparseAdam"}):
        model = torch.nn.Linear(2, 2, bias=False)
        before = model.weight.detach().clone()
        optimizer = make_optimizer(model, RECIPE, job(optimizer=name, lr=0.1))
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert not torch.equal(before, model.weight), name


@pytest.mark.parametrize(
    ("train", "where", "hint"),
    [
        ({"optimizer": "adamw"}, "train.optimizer", "AdamW"),
        ({"optimizer": "SDG"}, "train.optimizer", "SGD"),
        ({"optimizer": "LBFGS"}, "train.optimizer", ""),
        ({"optimizer": "SGD", "optimizer_args": {"momentun": 0.9}}, "train.optimizer_args", "momentum"),
        ({"optimizer": "AdamW", "optimizer_args": {"betas": [2.0, 0.9]}}, "train.optimizer_args", "betas"),
        ({"schedule": {"name": "CosineAnealingLR"}}, "train.schedule.name", "CosineAnnealingLR"),
        ({"schedule": {"name": "ReduceLROnPlateau"}}, "train.schedule.name", ""),
        ({"schedule": {"name": "StepLR"}}, "train.schedule.args", "step_size"),
    ],
)
def test_what_does_not_fit_is_told(train: dict, where: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(make_optimizer(torch.nn.Linear(2, 2), RECIPE, job(**train)), job(**train), 10)
    assert caught.value.where == where
    assert hint in (caught.value.hint or "")


def rates(train: dict, steps: int) -> list[float]:
    model = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(model, RECIPE, job(**train))
    schedule = Schedule(optimizer, job(**train), steps)
    found = []
    for step in range(steps):
        schedule.before(step)
        found.append(schedule.lr)
        optimizer.step()
        schedule.after(step)
    return found


def test_warm_up_then_the_schedule() -> None:
    train = {"lr": 1.0, "schedule": {"name": "CosineAnnealingLR", "warmup_steps": 4}}
    found = rates(train, 12)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[8] == pytest.approx(0.5)  # half of the 8 steps after warm-up
    assert found == sorted(found[:4]) + sorted(found[4:], reverse=True)
    assert rates({"lr": 0.5}, 3) == [0.5] * 3
    assert rates({"lr": 1.0, "schedule": {"name": "StepLR", "args": {"step_size": 2, "gamma": 0.1}}}, 5) == (
        pytest.approx([1, 1, 0.1, 0.1, 0.01])
    )


@pytest.mark.parametrize(
    "name", ["OneCycleLR", "CosineAnnealingLR", "ExponentialLR", "LinearLR", "MultiStepLR"]
)
def test_a_schedule_goes_on_where_it_was(name: str) -> None:
    assert name in schedule_names()
    args = {
        "OneCycleLR": {"max_lr": 1.0}, "ExponentialLR": {"gamma": 0.9}, "MultiStepLR": {"milestones": [3, 8]},
    }  # fmt: skip
    train = {"optimizer": "SGD", "optimizer_args": {"momentum": 0.9}, "lr": 1.0,
             "schedule": {"name": name, "warmup_steps": 2, "args": args.get(name, {})}}  # fmt: skip
    whole = rates(train, 12)
    model = torch.nn.Linear(2, 2)
    found: list[float] = []
    kept: tuple[dict, dict] | None = None
    for part in (range(0, 5), range(5, 12)):
        optimizer = make_optimizer(model, RECIPE, job(**train))
        schedule = Schedule(optimizer, job(**train), 12)
        if kept is not None:
            optimizer.load_state_dict(kept[0])
            schedule.load_state_dict(kept[1])
        for step in part:
            schedule.before(step)
            found.append(schedule.lr)
            optimizer.step()
            schedule.after(step)
        kept = optimizer.state_dict(), schedule.state_dict()
    assert found == pytest.approx(whole)
