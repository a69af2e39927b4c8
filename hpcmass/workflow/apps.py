"""hpcmass's steps as Parsl apps: called within a user's own Parsl script, they return futures.

Every app names the executor that runs it (`cpu`, `gpu`, `cpu-nodes`: see `Site.parsl_config`). What goes
through Parsl are paths of run folders and datasets; what came of a step lies there, so a script that is run
again finds it done. An app may be given the future of another one in place of a path.

    from hpcmass.workflow import apps
    run = apps.train("job.toml", project=root, run="first", executor="gpu", ranks=2)
    score = apps.evaluate(run, "data/mine/test", project=root, executor="cpu")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import parsl

PathLike = str | os.PathLike[str]
# A path, or the app that gives it.
Given = PathLike | Future[str]


def shard(
    inputs: Sequence[PathLike], out: PathLike, *, project: PathLike, executor: str, **options: Any
) -> Future[str]:
    """Cut files into shards, unless `out` is there; gives the dataset's folder.

    Args:
        inputs: As for `hpcmass shard`, relative to the project's folder.
        out: The dataset's folder, relative to the project's.
        project: The project's folder.
        executor: Which executor runs it.
        options: As for `hpcmass.workflow.api.shard`: `shards`, `splits`, `strategy`, `by`, `seed`, ….
    """
    words = [_text(one) for one in inputs]
    return _call("shard_step", executor, _root(project), words, _text(out), dict(options))


def train(
    job: PathLike,
    *,
    project: PathLike,
    run: str,
    executor: str,
    ranks: int | None = None,
    sets: Sequence[str] = (),
    after: Sequence[Future[Any]] = (),
) -> Future[str]:
    """Train a job, or go on with its run; gives the run's folder once it has completed.

    Args:
        job: The job file.
        project: The project's folder.
        run: Name of the run.
        executor: Which executor runs it; its slots (`item` of `Site.parsl_config`) should hold the ranks.
        ranks: Ranks; default: the job's.
        sets: Overrides of the job, `key=value`.
        after: Futures to wait for first (of `shard`, say).
    """
    file = str(Path(job).absolute())
    return _call("train_step", executor, _root(project), file, run, ranks, list(sets), *after)


def evaluate(run: Given, dataset: Given, *, project: PathLike, executor: str) -> Future[str]:
    """Evaluate a run's model on a dataset; gives the file with the evaluation, in the run's folder."""
    return _call("evaluate_step", executor, _root(project), _given(run), _given(dataset))


def register(
    run: Given, *, project: PathLike, name: str, executor: str, evaluation: Given | None = None
) -> Future[str]:
    """Make a run's model a version in the catalogue, once; gives `NAME@VERSION`.

    Args:
        run: The run's folder.
        project: The project's folder.
        name: The model's name.
        executor: Which executor runs it.
        evaluation: What `evaluate` gave: its metrics go into the version.
    """
    file = None if evaluation is None else _given(evaluation)
    return _call("register_step", executor, _root(project), _given(run), name, file)


def _call(step: str, executor: str, *args: Any) -> Future[str]:
    from hpcmass.workflow import steps

    function = getattr(steps, step)
    future: Future[str] = parsl.python_app(function, executors=[executor], cache=False)(*args)
    return future


def _root(project: PathLike) -> str:
    """Absolute: a worker's folder is not the script's."""
    return os.path.abspath(project)


def _text(path: PathLike) -> str:
    return os.fspath(path)


def _given(value: Given) -> Any:
    return value if isinstance(value, Future) else _text(value)
