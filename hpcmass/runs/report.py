"""What a training script of the user's own calls: `report` its metrics, ask whether it `should_stop`.

`hpcmass run` names the run folder in the environment variable `HPCMASS_RUN_DIR`. Without it, the same script
runs as it always did.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcmass.errors import ConfigError, LaunchError, StorageError
from hpcmass.files import append_record
from hpcmass.runs.folder import RunFolder

_STATUS_EVERY_S = 1.0
_OWN = ("kind", "step", "time", "rank")  # what a record says of itself
_log = logging.getLogger("hpcmass")


class ReportWriter:
    """Writes the reports of one process into one run folder.

    Args:
        run: The run.
        rank: Rank 0 writes `metrics.jsonl` and the status, rank R `metrics-rank-R.jsonl`.
        attempt: Which start of the run this is. From the second on, the first report takes back what
            earlier attempts had reported from its step on.
    """

    def __init__(self, run: RunFolder, rank: int, attempt: int = 1) -> None:
        self.run = run
        self.rank = rank
        self._resumed = attempt > 1
        self._told_at = -math.inf

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            ConfigError: As for the function `report`.
            StorageError: The record could not be written.
        """
        at = _scalar("step", step)
        if isinstance(at, (str, bool)) or at is None or (isinstance(at, float) and not at.is_integer()):
            raise ConfigError(f"{step!r} is not a whole number", where="hpcmass.report(step=…)")
        record: dict[str, Any] = {"kind": "report", "step": int(at)}
        for name, value in metrics.items():
            if name in _OWN:
                raise ConfigError(
                    "is a name that every record has for itself",
                    where=f"hpcmass.report({name}=…)",
                    hint=f"give the metric another name, such as train_{name}",
                )
            record[name] = _scalar(name, value)
        if self.rank != 0:
            file = self.run.path / f"metrics-rank-{self.rank}.jsonl"
            append_record(file, {**record, "rank": self.rank, "time": time.time()})
            return
        if self._resumed:
            self._resumed = False
            self.run.append({"kind": "resume", "from_step": int(at) - 1})
        self.run.append(record)
        self._tell(record)

    def _tell(self, record: dict[str, Any]) -> None:
        if time.monotonic() - self._told_at < _STATUS_EVERY_S:
            return
        self._told_at = time.monotonic()
        self.run.update(step=record["step"], metrics=numbers(record))


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a record that are numbers, as the status keeps them."""
    kept = {name: value for name, value in record.items() if name not in _OWN}
    return {n: float(v) for n, v in kept.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


_reporters: dict[tuple[str, int, int], ReportWriter] = {}
_said = False


def report(step: int, **metrics: Any) -> None:
    """Record metrics of a training step in the run folder; outside of hpcmass do nothing.

    Every rank may call it: what rank 0 reports are the run's metrics (and what a sweep optimises); the
    other ranks' reports lie beside them in files of their own.

    Args:
        step: The step, a whole number that grows.
        metrics: Numbers, texts, or scalars of torch or NumPy (anything with `item()`).

    Raises:
        ConfigError: The step is not a whole number (NaN, say), a value is not a single number, text or truth
            value, or a metric is called `kind`, `time` or `rank`, as the record's own entries are. These are
            mistakes of the script, told at its first report rather than lost in every one; a metric may be
            NaN or infinite.
        StorageError: The record could not be written.
    """
    global _said
    folder = os.environ.get("HPCMASS_RUN_DIR")
    if not folder:
        if not _said:
            _said = True
            _log.debug("hpcmass.report does nothing: this process was not started by hpcmass run")
        return
    rank = os.environ.get("HPCMASS_RANK") or os.environ.get("RANK") or "0"
    attempt = os.environ.get("HPCMASS_ATTEMPT", "1")
    # Keyed by process, because a forked data loader's worker must not share the throttle's state.
    key = (folder, int(rank) if rank.isdigit() else 0, os.getpid())
    if key not in _reporters:
        check_world(os.environ)
        if not Path(folder).is_dir():
            raise StorageError("the run folder is gone", where=folder)
        _reporters[key] = ReportWriter(RunFolder(folder), key[1], int(attempt) if attempt.isdigit() else 1)
    _reporters[key].report(step, metrics)


def check_world(env: Mapping[str, str]) -> None:
    """Refuse a script whose ranks did not find each other: N runs of one rank would look like one of N.

    Only what the script has loaded is asked: mpi4py, Horovod, torch.distributed.

    Raises:
        LaunchError: There is a communicator, and none has as many ranks as were started.
    """
    promised = env.get("HPCMASS_RANKS", "")
    found = _worlds()
    if not promised.isdigit() or not found or int(promised) in found.values():
        return
    name, size = next(iter(found.items()))
    raise LaunchError(
        f"{promised} ranks were started, but {size} found each other ({name})",
        where="launch",
        hint="the launcher is not the one of the script's MPI library: docs/launch.md says which pmi and "
        "launcher the site file's target needs",
        promised=int(promised),
        found=size,
    )


def _worlds() -> dict[str, int]:
    """Sizes of the communicators that are in use in this process."""
    found: dict[str, int] = {}
    mpi, hvd, dist = (sys.modules.get(name) for name in ("mpi4py.MPI", "horovod.torch", "torch.distributed"))
    with contextlib.suppress(Exception):
        if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
            found["mpi4py"] = int(mpi.COMM_WORLD.Get_size())
    with contextlib.suppress(Exception):
        if hvd is not None and hvd.is_initialized():
            found["horovod"] = int(hvd.size())
    with contextlib.suppress(Exception):
        if dist is not None and dist.is_initialized():
            found["torch.distributed"] = int(dist.get_world_size())
    return found


def should_stop() -> bool:
    """Whether the run was asked to end (a pruned trial, `stop` in the run folder); cheap, one `stat`.

    Ranks may see the answer change at different moments: where they must agree, let rank 0 ask and
    broadcast its answer.
    """
    folder = os.environ.get("HPCMASS_RUN_DIR")
    return bool(folder) and os.path.exists(os.path.join(str(folder), "stop"))


def _scalar(name: str, value: Any) -> int | float | str | bool | None:
    """A plain value, taken out of a tensor or array of one element without importing its library."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    try:
        plain = value.item()
    except (AttributeError, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"is a {type(value).__name__}, not a single number",
            where=f"hpcmass.report({name}=…)",
            hint="reduce it first, such as with .mean()",
        ) from error
    if not isinstance(plain, (bool, int, float, str)):
        raise ConfigError(f"is a {type(plain).__name__}, not a number", where=f"hpcmass.report({name}=…)")
    return plain
