"""When checkpoints are written, by which ranks, and what training waits for.

In the background (`train.checkpoint_background`) the ranks copy the state, go on training, and threads hash,
write and commit the copy. One checkpoint is under way at most: the next one waits for it, and so does a stop,
whose own checkpoint is written at once and committed before anything else happens. A state above
`train.checkpoint_shard_mib` is written in parts by several ranks; rank 0 commits when all parts are durable.

What the threads met with is agreed on at the next step: two of the flags that ride along with the gradients
(`GradientReducer.flags`) say whether any rank is still writing, and whether any failed. So no thread ever
calls the communicator.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpcmass.config.job import TrainTable
from hpcmass.errors import HpcmassError, TrainError
from hpcmass.runs import RunFolder
from hpcmass.train import checkpoint
from hpcmass.train.checkpoint import Mark
from hpcmass.train.comm.agree import everywhere, on_root
from hpcmass.train.comm.base import Communicator
from hpcmass.train.optim import Schedule
from hpcmass.train.snapshot import Snapshot, Work, Worker
from hpcmass.train.tensorfile import Layout, bodies, encode, lay_out, nbytes_of, share_out, signature, spoilt

_MIB = 1 << 20
Position = TypeVar("Position", bound=Any)
T = TypeVar("T")


@dataclass
class _Found:
    """A state as it was looked at: its tensors, still the live ones, and the rest, which is copied."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    skeleton: Any = None

    def look(self, state: Callable[[], dict[str, Any]]) -> None:
        self.skeleton = encode(state(), "", self.tensors)


class Keeper:
    """Writes a run's checkpoints. All methods but `flags` and `close` are collective.

    Attributes:
        kept: Step of the newest checkpoint that is committed for certain; None where there is none.
        blocked_s: Seconds that training waited for the last checkpoint.
    """

    def __init__(
        self, run: RunFolder, comm: Communicator, table: TrainTable, state: Callable[[], dict[str, Any]],
        weights: Collection[str], recipe: Path, say: Callable[[str], None],
        alive: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Prepare.

        Args:
            run: The run; rank 0 holds its lease.
            comm: The ranks.
            table: `[train]`.
            state: Everything that the run goes on from, alike on all ranks.
            weights: Names of the tensors of its `model` that must be finite.
            recipe: Named in errors.
            say: A line for the user (rank 0).
            alive: Called as a checkpoint is written while training waits.
        """
        self._run, self._comm, self._table, self._state, self._say = run, comm, table, state, say
        self._recipe, self._alive = recipe, alive
        self._weights = frozenset(f"model/{name}" for name in weights)
        self.kept: int | None = None
        self.blocked_s = 0.0
        self._snapshot = Snapshot()
        self._open: Mark | None = None  # the checkpoint under way; the same on all ranks
        self._names: list[str] = []  # its files
        self._work: Work | None = None  # what this rank's thread does for it
        self._committing = False
        self._began = 0.0
        self._worker: Worker | None = None
        self._told = False
        self._own_s = 0.0

    # -- what the loop calls ----------------------------------------------------------------------------
    def keep(self, mark: Mark, *, wait: bool) -> None:
        """Make a checkpoint of the state as it is now.

        Args:
            mark: Where the run is.
            wait: Return when it is committed.

        Raises:
            StorageError: It, or the one before it, could not be written; on all ranks.
            LeaseHeld: Another process has taken the run over; on all ranks.
            TrainError: The weights are NaN or infinite, or the state holds what cannot be kept; on all ranks.
        """
        asked = time.perf_counter()
        self.finish()
        if self.kept == mark.step:
            return
        self._began, found = time.perf_counter(), _Found()
        self._names = on_root(self._comm, self._timed(lambda: self._plan(mark, found)))
        mine = self._share(mark, found)
        layout = lay_out(mine)
        skeleton = found.skeleton if self._comm.rank == 0 else None
        self._open, self._committing, self._work = mark, False, None
        if wait or not self._table.checkpoint_background or not self._room(layout):
            self._write_now(mark, layout, skeleton, mine)
            self.blocked_s = time.perf_counter() - asked
            return
        if mine:
            self._timed(lambda: self._snapshot.copy(mine))()
        self.blocked_s = time.perf_counter() - asked
        if mine or self._comm.rank == 0:
            self._work = self._start(lambda work: self._write(work, mark, layout, skeleton, None))
        self.blocked_s = time.perf_counter() - asked

    def take_own_s(self) -> float:
        """Seconds since the last call in which this rank worked at checkpoints, and did not wait for others."""
        own, self._own_s = self._own_s, 0.0
        return own

    def flags(self) -> tuple[float, float]:
        """Of this rank: whether its thread is at work, and whether it has failed."""
        if self._work is None:
            return 0.0, 0.0
        return float(self._work.running), float(self._work.failed)

    def after_step(self, running: bool, failed: bool) -> bool:
        """Go on with the checkpoint under way, as far as that needs no waiting.

        Args:
            running: Whether any rank's thread was at work when the flags were set.
            failed: Whether any had failed.

        Returns:
            Whether a checkpoint is committed now that was not before.

        Raises:
            HpcmassError: What a thread met with, on all ranks.
        """
        if self._open is None or (running and not failed):
            return False
        if len(self._names) > 1 and not self._committing:
            self._commit_parts(self._open, everywhere(self._comm, self._timed(self._result)))
            return False
        self.finish()
        return True

    def finish(self) -> None:
        """Wait until the checkpoint under way is committed.

        Raises:
            HpcmassError: It could not be, as `keep` tells; on all ranks.
        """
        mark = self._open
        if mark is None:
            return
        try:
            if len(self._names) > 1 and not self._committing:
                self._commit_parts(mark, everywhere(self._comm, self._timed(self._result)))
            on_root(self._comm, self._timed(self._wait))
        except HpcmassError:
            self._open = self._work = None
            raise
        self.kept, self._open, self._work = mark.step, None, None

    def finish_if_possible(self) -> None:
        """The same where another error is about to be told, which is worth more than this one's."""
        with contextlib.suppress(HpcmassError):
            self.finish()

    def close(self, *, now: bool = False, wait_s: float | None = None) -> None:
        """End this rank's thread: what it can commit alone, it does.

        Args:
            now: It is to commit nothing any more.
            wait_s: How long it is waited for; then it is to commit nothing any more.
        """
        if self._work is not None:
            self._work.end(now=now, wait_s=wait_s)
        self._work = self._open = None
        if self._worker is not None:
            self._worker.close()
            self._worker = None
        self._snapshot.close()

    # -- the parts of it --------------------------------------------------------------------------------
    def _plan(self, mark: Mark, found: _Found) -> list[str]:
        """Rank 0 looks at the state and says in which files it is kept."""
        self._run.check_held()
        found.look(self._state)
        total = sum(nbytes_of(tensor) for tensor in found.tensors.values())
        return checkpoint.file_names(mark.step, self._parts(total))

    def _parts(self, total: int) -> int:
        limit = self._table.checkpoint_shard_mib * _MIB
        if total <= limit or self._comm.size == 1:
            return 1
        # A part is a quarter of the limit at least: files are rationed on large machines.
        return min(self._comm.size, 4 * total // limit) if limit else self._comm.size

    def _share(self, mark: Mark, found: _Found) -> dict[str, Tensor]:
        """The tensors that this rank writes."""
        if len(self._names) > 1:
            if self._comm.rank > 0:
                self._timed(lambda: found.look(self._state))()
            alike = len(set(self._comm.share_objects(signature(found.tensors)))) == 1
            mine = self._number()
            if alike:
                names = [] if mine is None else share_out(found.tensors, len(self._names))[mine]
                return {name: found.tensors[name] for name in names}
            # A recipe's optimizer whose state differs from rank to rank: rank 0's counts, as ever.
            self._names = checkpoint.file_names(mark.step, 1)
        return found.tensors if self._comm.rank == 0 else {}

    def _number(self) -> int | None:
        """Which part is this rank's: the writers are spread over the ranks, and so over the nodes."""
        writers = [part * self._comm.size // len(self._names) for part in range(len(self._names))]
        return writers.index(self._comm.rank) if self._comm.rank in writers else None

    def _room(self, layout: Layout) -> bool:
        """Whether every rank has memory for the copy."""
        copies = self._comm.local_size if len(self._names) > 1 else 1
        make = self._timed(lambda: self._snapshot.make_room(layout, self._comm.device, copies=copies))
        room = not layout.slots or make()
        enough = all(self._comm.share_objects(room)) if self._comm.size > 1 else room
        if not enough and not self._told and self._comm.rank == 0:
            size = f"{layout.nbytes / 1e9:.2f} GB"
            self._say(
                f"training waits for its checkpoints: memory for a copy of the state ({size}) is not left"
            )
            self._told = True
        return enough

    def _write_now(self, mark: Mark, layout: Layout, skeleton: Any, mine: dict[str, Tensor]) -> None:
        """Write out of the live tensors, and commit, while training waits."""

        def write() -> dict[str, Any]:
            return self._write(None, mark, layout, skeleton, mine)

        try:
            if len(self._names) > 1:
                self._commit_parts(mark, everywhere(self._comm, self._timed(write)))
            else:
                on_root(self._comm, self._timed(write))
        except HpcmassError:
            self._open = None
            raise
        self.finish()

    def _write(
        self, work: Work | None, mark: Mark, layout: Layout, skeleton: Any, live: Mapping[str, Tensor] | None
    ) -> dict[str, Any]:
        """Write this rank's file, out of the copy or of the live tensors; commit it where it is the only one.

        Returns:
            What the commit says of the file; empty where this rank has none.
        """
        number = self._number()
        if number is None:
            return {}
        tensors = self._snapshot.tensors() if live is None else live
        self._check_weights(mark.step, tensors)
        header = layout.header({} if skeleton is None else checkpoint.metadata(skeleton))
        body = self._snapshot.pieces(work) if live is None else self._told_of(bodies(layout, tensors))
        part = checkpoint.write_part(self._run.checkpoints / self._names[number], chain([header], body))
        if len(self._names) == 1:
            self._commit(work, mark, [part])
        return part

    def _told_of(self, pieces: Iterable[Any]) -> Iterator[Any]:
        for piece in pieces:
            self._alive()
            yield piece

    def _commit_parts(self, mark: Mark, part: dict[str, Any]) -> None:
        """All parts are durable: rank 0 commits them, in a thread."""
        parts = [one for one in self._comm.share_objects(part) if one]
        parts.sort(key=lambda one: str(one["file"]))
        self._committing = True
        self._work = self._start(lambda work: self._commit(work, mark, parts)) if self._comm.rank == 0 else None

    def _commit(self, work: Work | None, mark: Mark, parts: list[dict[str, Any]]) -> None:
        self._run.check_held()
        if work is not None:
            work.check()
        took = time.perf_counter() - self._began
        # A stop that finds one under way waits for that one and then for its own.
        stop_s = took if work is None or not self._table.checkpoint_background else 2 * took
        pace = {
            "checkpoint_s": round(stop_s, 3),
            "blocked_s": round(took if work is None else self.blocked_s, 4),
        }
        checkpoint.commit(self._run.checkpoints, mark, parts, keep=self._table.keep_checkpoints, pace=pace)

    def _start(self, work: Callable[[Work], Any]) -> Work:
        if self._worker is None:
            self._worker = Worker("hpcmass-checkpoint")
        return self._worker.start(work)

    def _timed(self, function: Callable[[], T]) -> Callable[[], T]:
        """The same, whose time is this rank's own."""

        def timed() -> T:
            began = time.perf_counter()
            try:
                return function()
            finally:
                self._own_s += time.perf_counter() - began

        return timed

    def _wait(self) -> None:
        """Until this rank's thread is done; what it made is for nobody else, and no JSON."""
        self._result()

    def _result(self) -> Any:
        return {} if self._work is None else self._work.result()

    def _check_weights(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Refuse to keep weights that are spoilt: a finite loss may have a gradient that is not.

        Kept, they would take the place of the last good checkpoint, or be the model of a completed run.
        """
        name = spoilt([(name, tensor) for name, tensor in tensors.items() if name in self._weights])
        if name is not None:
            raise TrainError(
                f"the weights {name.removeprefix('model/')!r} are NaN or infinite after step {step}",
                where=self._recipe,
                hint=lower_the_rate(self.kept),
            )


def lower_the_rate(kept: int | None) -> str:
    """What to do about a loss or weights that are no numbers."""
    hint = "lower train.lr, set train.clip_norm, or look for NaN in the data"
    return hint if kept is None else f"{hint}; the checkpoint of step {kept} is kept"


def whole_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, position: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint holds; its tensors are the live ones."""
    return {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "position": position,
    }


def restore(
    state: dict[str, Any],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    position: Position,
    where: Path,
) -> Position:
    """Put a checkpoint's state into what trains.

    Returns:
        `position`, a dataclass, with the checkpoint's values.

    Raises:
        TrainError: It does not fit this model, optimizer or schedule.
    """
    checkpoint.load_model(model, state["model"], where)
    try:
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        return replace(position, **state["position"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainError(
            f"the checkpoint does not fit the optimizer or schedule ({error})", where=where,
            hint="undo the change of the recipe's optimizer, or begin again with --fresh",
        ) from error  # fmt: skip
