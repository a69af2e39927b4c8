"""A project with a dataset of two sites, and models of it that are as good as they are told to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hpcmass.catalogue import Catalogue, Version
from hpcmass.config import Project
from hpcmass.data import open_dataset
from hpcmass.train.bundle_writer import write_torch_bundle
from hpcmass.train.recipe import load_recipe

RECIPE = """
import torch


def build_model(params):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
"""


@dataclass
class Answer:
    code: int
    out: str
    err: str


@dataclass
class Lab:
    project: Project
    call: Callable[..., Answer]
    made: int = 0

    @property
    def root(self) -> Path:
        return self.project.root

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.project.catalogue)

    def model(self, name: str = "eyes", *, knows: int = 3, **lineage: object) -> Version:
        """A version that knows the first classes, and takes any other for one of them."""
        self.made += 1
        recipe, train = load_recipe(self.root / "recipe.py"), open_dataset(self.project.data / "d" / "train")
        model = recipe.build_model({})
        with torch.no_grad():
            model[1].weight.zero_()
            model[1].bias.zero_()
            model[1].bias[0] = 0.5
            for index in range(knows):
                model[1].weight[index, index] = 20.0 + self.made / 100
        folder = self.root / f"bundle-{self.made}"
        write_torch_bundle(folder, model, recipe, {"made": self.made}, train, torch.zeros(2, 3))
        job = {"data": {"train": "data/d/train"}, "params": {"made": self.made}}
        record = {"job": job, "datasets": {"train": train.id}, **lineage}
        return self.catalogue.register(name, folder, metrics={"accuracy": 0.5}, lineage=record)
