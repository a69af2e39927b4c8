"""What a reproducible run (`train.reproducible`) holds fixed, and what it refuses before it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from hpcmass.config import Job
from hpcmass.errors import ConfigError, CorruptError, NotFound
from hpcmass.files import read_json, replace_json
from hpcmass.launch.topology import cpu_facts
from hpcmass.runs import RunFolder
from hpcmass.train.begun import has_trained
from hpcmass.train.comm.base import Communicator

FILE = "reproducible.json"
_FORMAT = 1


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Only operations of torch that give the same result each time; an other one raises, with its name."""
    if not on:
        yield
        return
    was, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filler: Any = torch.utils.deterministic
    filled = filler.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    filler.fill_uninitialized_memory = False  # only a program in error reads it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        filler.fill_uninitialized_memory = filled


def check_ranks(job: Job, comm: Communicator) -> None:
    """Refuse ranks that cannot keep it.

    Raises:
        ConfigError: More ranks than micro-batches, or a GPU.
    """
    many = job.train.micro_batches or 1
    if comm.size > many:
        raise ConfigError(
            f"a reproducible run of {many} micro-batches takes as many ranks at most, not {comm.size}",
            where="train.micro_batches",
            hint="start fewer ranks; a new run may have more micro-batches",
        )
    if comm.device.type != "cpu":
        raise ConfigError(
            "a reproducible run is for CPUs: the result of a GPU depends on more than is held fixed here",
            where="train.reproducible",
            hint="use a target without GPUs, or train.reproducible = false",
        )


def check_model(model: Any) -> None:
    """Refuse a model that cannot keep it.

    Raises:
        ConfigError: It is no torch model, or has a batch norm over the ranks.
    """
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            "is for torch models: how an estimator sums is its own business",
            where="train.reproducible",
            hint="leave it out; an estimator is fitted on one rank",
        )
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.SyncBatchNorm):
            raise ConfigError(
                f"cannot be kept with the batch norm over all ranks {name!r} (SyncBatchNorm): "
                "its statistics are summed in another order on another number of ranks",
                where="train.reproducible",
                hint="use BatchNorm: its statistics are those of a micro-batch, on any number of ranks",
            )


def settled(job: Job) -> dict[str, Any]:
    """What the result depends on beside the job: recorded when a run begins."""
    return {
        "format": _FORMAT,
        "micro_batches": job.train.micro_batches,
        "threads": torch.get_num_threads(),
        "cpu": f"{cpu_facts()['cpu']} ({torch.backends.cpu.get_cpu_capability()})",
        "torch": torch.__version__,
    }


def check_settled(run: RunFolder, now: dict[str, Any]) -> list[str]:
    """Hold this start against what the run began with.

    Returns:
        What differs and may change the result, in words.

    Raises:
        ConfigError: The number of threads differs.
        CorruptError: `reproducible.json` is not what it should be.
    """
    if not run.exists() or not has_trained(run):
        return []
    try:
        then = read_json(run.path / FILE)
    except NotFound:
        return []
    if not isinstance(then, dict) or "threads" not in then:
        raise CorruptError("is not what a reproducible run holds fixed", where=run.path / FILE)
    if then["threads"] != now["threads"]:
        raise ConfigError(
            f"the run was begun with {then['threads']} threads a rank, and now there are {now['threads']}: "
            "sums within a rank would be rounded otherwise",
            where="resources.threads_per_rank",
            hint=f"set it to {then['threads']}, or begin again (--fresh)",
        )
    return [
        f"the run was begun with {name} {then.get(key)}, and this is {now[key]}: the last bits may differ"
        for key, name in (("cpu", "the CPU"), ("torch", "torch"))
        if then.get(key) != now[key]
    ]


def record_settled(run: RunFolder, now: dict[str, Any]) -> None:
    """Write down what is held fixed, unless it is there from the run's beginning.

    Raises:
        StorageError: The file system refused.
    """
    if not has_trained(run) or not (run.path / FILE).exists():
        replace_json(run.path / FILE, now)


def unlike(comm: Communicator, cpu: str) -> list[str]:
    """Warn of ranks on CPUs of several models. Collective."""
    models = sorted(set(comm.share_objects(cpu)))
    if len(models) < 2:
        return []
    return [
        f"the ranks run on several CPU models ({'; '.join(models)}): another placement gives another result"
    ]
