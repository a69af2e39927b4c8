"""Predict for all samples of a dataset, by any number of processes and ranks, and go on after any died."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch

from hpcmass.data import Dataset, open_dataset
from hpcmass.errors import DataError, HpcmassError
from hpcmass.evaluate.batch_out import Output, open_output
from hpcmass.evaluate.batch_plan import BatchPlan, identity_of, make_plan, part_batches
from hpcmass.train.model import Model, load_bundle

_WAIT_S = 0.5
_Arguments = tuple[Path, Path, Path, str, BatchPlan]
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Place:
    """This process among the ranks of a start; `workers` is how many processes it uses itself."""

    rank: int = 0
    ranks: int = 1
    workers: int = 1


@dataclass
class _Work:
    """What makes parts, in one process."""

    model: Model
    dataset: Dataset
    plan: BatchPlan
    output: Output

    def part(self, number: int) -> bool:
        return self.output.write(number, lambda: part_batches(self.model, self.dataset, self.plan, number))


def predict_dataset(
    bundle: Path,
    dataset: Path,
    out: Path,
    *,
    name: str = "",
    kind: str = "hdf5",
    keep: Iterable[str] | None = None,
    part_samples: int | None = None,
    place: Place = Place(),
    progress: Progress | None = None,
) -> tuple[BatchPlan, bool]:
    """Predict for every sample of a dataset.

    Parts are runs of whole batches at fixed places, each computed by one process with one thread, and published
    when it is whole. Each rank makes its share of them, then what other ranks have not begun. A later start, of
    any number of ranks and processes, makes what is missing. So neither ranks nor interruptions show.

    Args:
        bundle: The model's bundle.
        dataset: The dataset's folder. A start that goes on takes the samples that were there at the beginning.
        out: Folder of the predictions.
        name: The model as a catalogue calls it.
        kind: `hdf5` (a dataset again) or `parquet`.
        keep: Fields of the dataset that go along; default: those of role `meta`.
        part_samples: As for `make_plan`.
        place: This process among the ranks.
        progress: Called as progress(samples done, all samples).

    Returns:
        The plan, and whether all is complete: rank 0 waits for that, other ranks leave when nothing is left.

    Raises:
        DataError: What was begun in `out` is something else, or the model and the dataset do not fit.
        AlreadyExists: `out` holds something else.
    """
    output = open_output(out, kind)
    kept = None if keep is None else list(keep)
    with _one_thread():
        model, data = load_bundle(bundle), _opened(dataset, output.pinned())
        plan = make_plan(model, identity_of(bundle), data, name=name, keep=kept, part_samples=part_samples)
        output.agree(plan)
        work = _Work(model, data, plan, output)
        arguments, workers = (bundle, dataset, out, kind, plan), place.workers
        while True:
            missing = _mine_first(plan, output.done(), place)
            _tell(progress, plan, output)
            for _ in _made(work, missing, workers, arguments):
                _tell(progress, plan, output)
            if output.finish():
                return plan, True
            if place.rank:
                return plan, False
            # Others are at work on what is left; what they leave behind is made here.
            workers = 1
            time.sleep(_WAIT_S)


def _mine_first(plan: BatchPlan, done: set[int], place: Place) -> list[int]:
    """The parts that are missing: this rank's own, then those of others, the last first."""
    missing = [part for part in range(plan.parts) if part not in done]
    mine = [part for part in missing if part % place.ranks == place.rank]
    return [*mine, *(part for part in reversed(missing) if part % place.ranks != place.rank)]


def _made(work: _Work, parts: list[int], workers: int, arguments: _Arguments) -> Iterator[bool]:
    """Make parts that nobody else has made meanwhile."""
    if workers == 1 or len(parts) < 2:
        for part in parts:
            if part not in work.output.done():
                yield work.part(part)
        return
    # Spawned, not forked: this process holds torch's threads and HDF5's state.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(workers, len(parts)), context, _start_worker, arguments) as pool:
            waiting: set[Future[bool]] = set()
            for part in parts:
                if len(waiting) >= 2 * workers:
                    ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in ended)
                waiting.add(pool.submit(_in_worker, part))
            for one in waiting:
                yield one.result()
    except BrokenProcessPool as error:
        raise HpcmassError(
            "a process that was predicting died (out of memory?)",
            hint="what was finished is kept: start again, with fewer --workers",
            transient=True,
        ) from error


_work: _Work | None = None


def _start_worker(bundle: Path, dataset: Path, out: Path, kind: str, plan: BatchPlan) -> None:
    global _work
    torch.set_num_threads(1)
    output = open_output(out, kind)
    output.agree(plan)
    _work = _Work(load_bundle(bundle), open_dataset(dataset, id=plan.dataset), plan, output)


def _in_worker(part: int) -> bool:
    assert _work is not None
    return part not in _work.output.done() and _work.part(part)


def _opened(path: Path, pinned: str | None) -> Dataset:
    """The dataset, as it was when the prediction was begun."""
    if pinned is not None:
        with contextlib.suppress(HpcmassError):
            return open_dataset(path, id=pinned)
    return open_dataset(path)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads differ in their last bits with the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tell(progress: Progress | None, plan: BatchPlan, output: Output) -> None:
    if progress is not None:
        progress(min(plan.samples, len(output.done()) * plan.part_samples), plan.samples)


def workers_for(local_ranks: int, asked: int | None) -> int:
    """Processes of a rank: as asked, else the cores that it may use, shared among the ranks of the node.

    Raises:
        DataError: Fewer than one is asked for.
    """
    if asked is not None:
        if asked < 1:
            raise DataError(f"{asked} workers cannot be")
        return asked
    return max(1, len(os.sched_getaffinity(0)) // max(1, local_ranks))
