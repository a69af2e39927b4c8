"""Training of estimators with scikit-learn's interface: the whole data at once, or streamed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpcmass.config.job import EarlyStopTable, Job
from hpcmass.data.memory import memory_left
from hpcmass.data.order import Order, PlainOrder
from hpcmass.errors import ConfigError, MissingDependency, RecipeError
from hpcmass.runs import RunFolder, State
from hpcmass.train.bundle_writer import write_estimator_bundle
from hpcmass.train.comm.agree import on_root
from hpcmass.train.comm.base import Communicator
from hpcmass.train.defaults import Sum
from hpcmass.train.feed import ReadAhead
from hpcmass.train.inputs import Prepared, flatten, prepare, select_fields
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.predictor import Array, estimator_outputs
from hpcmass.train.recipe import Recipe
from hpcmass.train.skops_files import check_storable

READ = 4096  # samples read and transformed at once, at most
_READ_BYTES = 32 << 20  # and their size: several such batches are read ahead
_SMALLEST = 1e-7  # probabilities are held above this before their logarithm is taken


@dataclass(frozen=True)
class _Task:
    """What one fit is about.

    Attributes:
        classes: Number of classes; None: the estimator is a regressor.
    """

    estimator: Any
    recipe: Recipe
    job: Job
    inputs: list[str]
    targets: list[str]
    classes: int | None

    def arrays(self, batch: dict[str, Array], *, train: bool) -> tuple[Array, Array]:
        """Features (n, features) float32 and the target, (n,) or (n, k)."""
        ready = prepare(batch, self.recipe, self.inputs, self.targets, train=train)
        return flatten(ready.inputs), self._target(ready)

    def _target(self, ready: Prepared) -> Array:
        assert isinstance(ready.targets, torch.Tensor)
        y: Array = ready.targets.numpy()
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if self.classes is None:
            return y.astype(np.float32, copy=False)
        if y.size and not 0 <= y.min() <= y.max() < self.classes:
            raise RecipeError(f"labels run from {y.min()} to {y.max()}, not from 0 to {self.classes - 1}")
        return y


def fit_estimator(
    estimator: Any,
    recipe: Recipe,
    job: Job,
    train_ds: DatasetLike,
    valid_ds: DatasetLike | None,
    run: RunFolder,
    comm: Communicator,
    *,
    say: Callable[[str], None] | None = None,
    should_stop: Callable[[], str | None] | None = None,
    order: Order | None = None,
) -> dict[str, float]:
    """Fit an estimator on rank 0, while the others wait; collective.

    `train.fit = "whole"` reads all data into memory and calls `fit`; `"stream"` calls `partial_fit` for every
    global batch, in the sample order; `"auto"` streams only where the data would take more than half of the
    memory that is left to this job and the estimator can. Seeds (`random_state`) and `n_jobs` that the recipe
    left None are set from the job. A `valid` record is appended at every evaluation, and the bundle lies in
    `run.model` afterwards, unless the run was asked to stop: then there is none.

    Args:
        estimator: Unfitted, from the recipe.
        recipe: Its `transform` and `metrics` are used; metrics get log-probabilities as outputs.
        job: Keys of `[data]` and `[train]`; epochs, batches and early stop concern streaming.
        train_ds: What to fit.
        valid_ds: What the metrics are computed on, or None: no metrics.
        run: Gets records, status and model.
        comm: The ranks.
        say: Shows one line to the user.
        should_stop: Asked between batches besides the run's stop file; a reason ends the fit.
        order: In which `stream` goes through the data; default: that of `data.order`, of the plain kinds.

    Returns:
        The last validation's metrics, named as for torch models (`loss`, and `accuracy` or `mae`).

    Raises:
        ConfigError: A mixture of data sets is to be fitted whole.
        RecipeError: The estimator does not suit the data, cannot be stored, or raised; on every rank.
        MissingDependency: scikit-learn or skops is not installed.
    """

    def fit() -> dict[str, float]:
        return _fit(
            estimator, recipe, job, train_ds, valid_ds, run, comm.size, say or _silent, should_stop, order
        )

    return dict(on_root(comm, fit))


def _fit(
    estimator: Any,
    recipe: Recipe,
    job: Job,
    train_ds: DatasetLike,
    valid_ds: DatasetLike | None,
    run: RunFolder,
    ranks: int,
    say: Callable[[str], None],
    should_stop: Callable[[], str | None] | None,
    order: Order | None,
) -> dict[str, float]:
    check_storable(estimator)
    task = _make_task(estimator, recipe, job, train_ds)
    if next(iter(run.records()), None) is not None:
        run.append({"kind": "resume", "from_step": 0, "ranks": ranks})  # there is nothing to go on from
    torch.manual_seed(job.train.seed)
    borrowed = _set_params(estimator, job)
    evaluator = _Evaluator(task, valid_ds, run, say)
    started = time.monotonic()

    def asked() -> str | None:
        return run.asked_to_stop() or (should_stop and should_stop())

    name = type(estimator).__name__
    if _streams(task, train_ds):
        say(f"{name}: partial_fit on {len(train_ds)} samples, {job.train.epochs} epochs at most")
        finished = _stream(task, train_ds, order, evaluator, asked)
    else:
        if job.data.mix is not None:
            raise ConfigError(
                "an estimator that is fitted whole sees each sample once, in no proportions", where="data.mix",
                hint='use train.fit = "stream", or leave data.mix out',
            )  # fmt: skip
        say(f"{name}: fit on {len(train_ds)} samples")
        _whole(task, train_ds)
        evaluator(step=1, epoch=0)
        finished = True
    if not finished:
        return evaluator.last
    estimator.set_params(**dict.fromkeys(borrowed)) if borrowed else None
    run.check_held()
    x_nf, _ = task.arrays(train_ds.batch(np.arange(min(2, len(train_ds)))), train=False)
    write_estimator_bundle(
        run.model,
        estimator,
        recipe,
        job.params,
        train_ds,
        sample_output=estimator_outputs(estimator, x_nf, task.classes),
        inputs=task.inputs,
        targets=task.targets,
        task="regression" if task.classes is None else "classification",
    )
    say(f"{name}: fitted in {time.monotonic() - started:.1f} s")
    return evaluator.last


def _silent(text: str) -> None:
    """Show nothing."""


# -- what fits what -------------------------------------------------------------------------------------
def _make_task(estimator: Any, recipe: Recipe, job: Job, dataset: DatasetLike) -> _Task:
    try:
        from sklearn.base import is_classifier
    except ImportError as error:
        raise MissingDependency(
            "estimators need scikit-learn", hint="pip install 'hpcmass[sklearn]'"
        ) from error
    inputs, targets = select_fields(dataset, job.data.inputs, job.data.targets)
    if len(targets) != 1:
        raise RecipeError(
            f"an estimator needs one target, the dataset has {len(targets)}",
            where=recipe.path,
            hint="name it: data.targets = [...] in the job file",
        )
    if len(dataset) == 0:
        raise RecipeError("the dataset is empty", where=recipe.path)
    if not is_classifier(estimator):
        return _Task(estimator, recipe, job, inputs, targets, None)
    if np.dtype(dataset.fields[targets[0]].dtype).kind not in "iub":
        raise RecipeError(
            f"{type(estimator).__name__} is a classifier, but the target {targets[0]!r} is not an integer",
            where=recipe.path,
            hint="use a regressor",
        )
    names = dataset.classes(targets[0])
    classes = len(names) if names else _count(dataset, targets[0], job.data.read)
    return _Task(estimator, recipe, job, inputs, targets, classes)


def _count(dataset: DatasetLike, target: str, read: str) -> int:
    """Classes of a target without names: the largest label and one."""
    with ReadAhead(dataset, _parts(dataset), read=read) as data:
        return 1 + max(int(data.batch(ids)[target].max()) for ids in _parts(dataset))


def _parts(dataset: DatasetLike) -> Iterator[Array]:
    """All sample numbers, in parts that are read at once."""
    n, row = len(dataset), sum(getattr(field, "row_bytes", 0) for field in dataset.fields.values())
    step = min(READ, max(1, _READ_BYTES // max(1, row)))
    return (np.arange(start, min(start + step, n)) for start in range(0, n, step))


def _set_params(estimator: Any, job: Job) -> list[str]:
    """Fill in seeds and `n_jobs` that were left None; returns what is to be None again in the bundle."""
    if not hasattr(estimator, "get_params"):
        return []
    threads = job.resources.threads_per_rank or torch.get_num_threads()
    # LogisticRegression still has the parameter, ignores it and warns.
    open_keys = [key for key, value in estimator.get_params().items() if value is None]
    seeds = {key: job.train.seed for key in open_keys if key.split("__")[-1] == "random_state"}
    jobs = {key: threads for key in open_keys if key.split("__")[-1] == "n_jobs" and threads > 1}
    for key in list(jobs):
        owner = estimator.get_params().get(key.rpartition("__")[0], estimator)
        if type(owner).__name__.startswith("LogisticRegression"):
            del jobs[key]
    estimator.set_params(**seeds, **jobs)
    return list(jobs)


def _streams(task: _Task, dataset: DatasetLike) -> bool:
    can = hasattr(task.estimator, "partial_fit")
    if task.job.train.fit == "stream" and not can:
        raise RecipeError(
            f"{type(task.estimator).__name__} has no partial_fit and cannot be streamed",
            where=task.recipe.path,
            hint='use train.fit = "whole", or an estimator such as SGDClassifier or MLPClassifier',
        )
    if task.job.train.fit != "auto":
        return task.job.train.fit == "stream"
    features = sum(math.prod(dataset.fields[name].shape) for name in task.inputs)
    left = memory_left()  # of the machine, and within the job's own limit
    return can and left is not None and 4 * features * len(dataset) > left / 2


# -- fitting ----------------------------------------------------------------------------------------------
def _fit_errors(task: _Task, method: str) -> Any:
    return task.recipe.errors(f"{type(task.estimator).__name__}.{method}")


def _whole(task: _Task, dataset: DatasetLike) -> None:
    from joblib import parallel_config  # type: ignore[import-untyped]

    x_nf: Array | None = None
    y: Array | None = None
    with ReadAhead(dataset, _parts(dataset), read=task.job.data.read) as data:
        for ids in _parts(dataset):
            features, target = task.arrays({**data.batch(ids), "sample_id": ids}, train=True)
            if x_nf is None or y is None:
                x_nf = np.empty((len(dataset), features.shape[1]), np.float32)
                y = np.empty((len(dataset), *target.shape[1:]), target.dtype)
            x_nf[ids[0] : ids[-1] + 1], y[ids[0] : ids[-1] + 1] = features, target
    # Threads, since processes forked beside MPI may hang.
    with _fit_errors(task, "fit"), parallel_config(backend="threading"):
        task.estimator.fit(x_nf, y)


def _stream(
    task: _Task,
    dataset: DatasetLike,
    order: Order | None,
    evaluator: _Evaluator,
    stopped: Callable[[], str | None],
) -> bool:
    """Stream the epochs; returns whether the fit came to its end (and was not asked to stop)."""
    table = task.job.data
    order = order or PlainOrder(table.order, len(dataset), table.seed)
    size, epochs = task.job.train.global_batch, range(task.job.train.epochs)
    plan = (ids for epoch in epochs for ids in _batches(order, size, epoch))
    with ReadAhead(dataset, plan, read=table.read, block=getattr(order, "block", None)) as data:
        return _stream_batches(task, data, order, evaluator, stopped)


def _stream_batches(
    task: _Task, data: ReadAhead, order: Order, evaluator: _Evaluator, stopped: Callable[[], str | None]
) -> bool:
    train = task.job.train
    first: dict[str, Any] = {} if task.classes is None else {"classes": np.arange(task.classes)}
    step = 0
    patience = Patience(train.early_stop) if train.early_stop else None
    for epoch in range(train.epochs):
        for ids in _batches(order, train.global_batch, epoch):
            batch = {**data.batch(ids), "sample_id": ids}
            x_nf, y = task.arrays(batch, train=True)
            if train.last == "drop" and len(y) < train.global_batch:
                continue
            with _fit_errors(task, "partial_fit"):
                task.estimator.partial_fit(x_nf, y, **first)
            first, step = {}, step + 1
            if step == train.max_steps:
                break
            if step % train.log_every_steps == 0 and stopped():
                return False
        if step == 0:
            raise RecipeError('the dataset is smaller than train.global_batch, and train.last_batch is "drop"')
        last = epoch + 1 == train.epochs or step == train.max_steps
        if last or (epoch + 1) % train.evaluate_every_epochs == 0:
            metrics = evaluator(step=step, epoch=epoch)
            last = (patience is not None and bool(metrics) and patience.used_up(metrics)) or last
        if last:
            return True
        if stopped():
            return False
    return True


def _batches(order: Order, size: int, epoch: int) -> Iterator[Array]:
    """The ids of one epoch's batches; several are worked out at a time, which is cheaper."""
    at_once = max(1, READ // size) * size
    for start in range(0, order.n, at_once):
        ids = order.ids(epoch, start, min(start + at_once, order.n))
        yield from (ids[low : low + size] for low in range(0, len(ids), size))


class Patience:
    """Counts evaluations without improvement."""

    def __init__(self, table: EarlyStopTable) -> None:
        self._table = table
        self._best, self._bad = math.inf, 0

    def used_up(self, metrics: dict[str, float]) -> bool:
        """Count one evaluation; whether it is time to stop.

        Raises:
            RecipeError: The metric of the table is none of these.
        """
        if self._table.metric not in metrics:
            raise RecipeError(
                f"there is no metric {self._table.metric!r}, there are {', '.join(metrics)}",
                where="train.early_stop.metric",
            )
        value = metrics[self._table.metric] * (1 if self._table.direction == "minimize" else -1)
        better = value < self._best - self._table.min_delta
        self._best, self._bad = (value, 0) if better else (self._best, self._bad + 1)
        return self._bad >= self._table.patience


class _Evaluator:
    """Computes metrics over the validation data, records and shows them."""

    def __init__(
        self, task: _Task, dataset: DatasetLike | None, run: RunFolder, say: Callable[[str], None]
    ) -> None:
        self.task, self.dataset, self.run, self.say = task, dataset, run, say
        self.last: dict[str, float] = {}

    def __call__(self, *, step: int, epoch: int) -> dict[str, float]:
        """Evaluate; returns nothing where there is no validation data."""
        if self.dataset is None:
            self.run.update(state=State.RUNNING, step=step, epoch=epoch)
            return {}
        self.last = _metrics(self.task, self.dataset)
        self.run.append({"kind": "valid", "step": step, "epoch": epoch, **self.last})
        finite = {name: value for name, value in self.last.items() if math.isfinite(value)}
        self.run.update(state=State.RUNNING, step=step, epoch=epoch, metrics=finite)
        text = "  ".join(f"{name} {value:.4g}" for name, value in self.last.items())
        self.say(f"epoch {epoch + 1} step {step}: valid {text}")
        return self.last


def _metrics(task: _Task, dataset: DatasetLike) -> dict[str, float]:
    """Means over a dataset of the recipe's metrics.

    The metrics get logarithms of the probabilities as outputs: cross entropy of these is the log loss, so
    estimators and torch models are measured alike.
    """
    sums: dict[str, float] = {}
    with ReadAhead(dataset, _parts(dataset), read=task.job.data.read) as data:
        for ids in _parts(dataset):
            x_nf, y = task.arrays({**data.batch(ids), "sample_id": ids}, train=False)
            said = np.ascontiguousarray(estimator_outputs(task.estimator, x_nf, task.classes))
            outputs = torch.from_numpy(said)
            if task.classes is not None:
                outputs = outputs.clamp_min(_SMALLEST).log()
            for name, values in task.recipe.metrics(outputs, torch.from_numpy(y)).items():
                total = values.mean * len(y) if isinstance(values, Sum) else float(values.double().sum())
                sums[name] = sums.get(name, 0.0) + total
    return {name: total / len(dataset) for name, total in sums.items()} if len(dataset) else {}
