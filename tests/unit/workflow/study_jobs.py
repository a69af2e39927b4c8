"""Jobs, a recipe and a script that the tests of studies share."""

import json
import sys

from hpcmass.config import load_job

RECIPE = """
import torch
from torch import nn

def build_model(params):
    if params.get("broken"):
        raise ValueError("no such model")
    return nn.Sequential(nn.Linear(4, params.get("width", 4)), nn.ReLU(), nn.Linear(params.get("width", 4), 2))
"""

SCRIPT = """
import argparse, os, hpcmass
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
x = parser.parse_args().x
for step in (1, 2):
    hpcmass.report(step=step, loss=x / step)
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
"""


def job_of(project, text, **sweep):
    file = project.root.parent / "job.toml"
    file.write_text(text)
    return load_job(file, [f"sweep.{key}={json.dumps(value)}" for key, value in sweep.items()])


RECIPE_JOB = """
name = "toy"
recipe = "recipe.py"
data = { train = "data/toy/train", valid = "data/toy/valid", test = "data/toy/test" }
train = { epochs = 2, global_batch = 32, lr = 0.01 }
[sweep]
sampler = "random"
trials = 2
parallel = 2
metric = "accuracy"
direction = "maximize"
[sweep.space]
width = { type = "int", low = 2, high = 16 }
"train.lr" = { type = "float", low = 1e-3, high = 1e-1, log = true }
"""

SCRIPT_JOB = f"""
name = "own"
command = "{sys.executable} train.py --x {{x}}"
[sweep]
sampler = "grid"
trials = 2
ranks = 2
[sweep.space]
x = {{ type = "categorical", choices = [3.0, 1.0] }}
"""
