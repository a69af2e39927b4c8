"""What `hpcmass init` leaves: a project folder with a recipe and a job file to start from."""

from __future__ import annotations

from pathlib import Path

from hpcmass.config import Project
from hpcmass.errors import AlreadyExists
from hpcmass.files import publish

RECIPE = '''\
"""A recipe: a plain Python file. hpcmass calls `build_model`; everything else has defaults."""

from torch import nn


def build_model(params):
    """The model; `params` is the [params] table of the job file."""
    return nn.Sequential(
        nn.Flatten(),
        nn.LazyLinear(params["width"]),
        nn.ReLU(),
        nn.Linear(params["width"], params["outputs"]),
    )


# Optional, with these defaults:
#   loss(outputs, targets)        cross entropy for integer targets, mean squared error for floats
#   metrics(outputs, targets)     {name: one value a sample}; accuracy, or mae
#   optimizer(model, params, lr)  train.optimizer of the job file
#   transform(batch, train)       uint8 inputs to float32 in 0…1
'''

JOB = """\
# What to train. Paths of [data] are relative to the project folder, `recipe` to this file.
name = "first"
recipe = "recipe.py"

[data]
train = "data/mine/train"
valid = "data/mine/valid"
test = "data/mine/test"

[params]                # handed to build_model
width = 64
outputs = 10

[train]
epochs = 5
global_batch = 64       # samples a step, over all ranks
optimizer = "AdamW"
lr = 1e-3

[sweep]                 # hpcmass sweep job.toml
trials = 12
parallel = 2
sampler = "tpe"
pruner = "median"
metric = "loss"
direction = "minimize"

[sweep.space]
width = { type = "int", low = 16, high = 256, log = true }
"train.lr" = { type = "float", low = 1e-4, high = 1e-2, log = true }
"""


def create_project(root: Path, name: str | None = None, *, bare: bool = False) -> Project:
    """Make a project folder.

    Args:
        root: The folder; made when it does not exist.
        name: The project's name; default: the folder's.
        bare: Without the recipe and job file.

    Raises:
        AlreadyExists: There is a project, or one of the two files, already.
    """
    if not bare:
        for file in ("recipe.py", "job.toml"):
            if (root / file).exists():
                raise AlreadyExists("is there already", where=root / file, hint="use --bare to leave it alone")
    project = Project.create(root, name)
    if not bare:
        publish(project.root / "recipe.py", RECIPE)
        publish(project.root / "job.toml", JOB)
    return project
