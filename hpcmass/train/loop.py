"""The training loop of one rank: steps, validation, early stop, checkpoints, agreed stops.

Step s of an epoch takes positions [s B, (s+1) B) of the epoch's sample order, B being the global batch, on any
number of ranks; a rank takes its slice of them. So the position of a run is two numbers, and it goes on
with exactly the samples not yet seen, whatever the number of ranks.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmass.config import Job
from hpcmass.data.order import epoch_ids, rank_slice
from hpcmass.errors import ConfigError, RecipeError, TrainError
from hpcmass.runs import RunFolder, State
from hpcmass.train import checkpoint
from hpcmass.train.comm.agree import agreed, on_root
from hpcmass.train.comm.base import Communicator
from hpcmass.train.compiled import compiled
from hpcmass.train.inputs import forward, prepare
from hpcmass.train.interfaces import DatasetLike
from hpcmass.train.optim import Schedule
from hpcmass.train.precision import WIRE_TYPES, Precision, quiet_schedule
from hpcmass.train.progress import Reporter
from hpcmass.train.recipe import Recipe
from hpcmass.train.reducer import GradientReducer
from hpcmass.train.signals import Watch
from hpcmass.train.validate import validate


@dataclass
class Task:
    """What is trained: built alike on every rank."""

    job: Job
    recipe: Recipe
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train: DatasetLike
    valid: DatasetLike | None
    fields: tuple[list[str], list[str]]


@dataclass
class Position:
    """How far a run is; the same on all ranks, and part of every checkpoint.

    Attributes:
        step: Optimiser steps done.
        epoch: The epoch it is in, from 0.
        samples: Samples of this epoch done.
        window_loss: Sum of the losses of the samples since the last `train` record.
        window_samples: Their number.
        best: Best value of the early-stop metric.
        bad: Evaluations since then.
        evaluated: Step of the last evaluation.
        scaler: State of fp16's loss scale.
        skipped: Steps since the last `train` record that were skipped, a gradient having overflowed.
    """

    step: int = 0
    epoch: int = 0
    samples: int = 0
    window_loss: float = 0.0
    window_samples: int = 0
    best: float | None = None
    bad: int = 0
    evaluated: int = -1
    scaler: dict[str, Any] | None = None
    skipped: int = 0


@dataclass(frozen=True)
class Plan:
    """Steps of a run, from the job and the number of samples."""

    usable: int
    steps_per_epoch: int
    total_steps: int

    @classmethod
    def of(cls, job: Job, samples: int) -> Plan:
        """Count.

        Raises:
            ConfigError: There is not one step to do.
        """
        batch = job.train.global_batch
        full, rest = divmod(samples, batch)
        steps = full + (1 if rest and not job.train.drop_last else 0)
        if steps == 0:
            raise ConfigError(
                f"there are {samples} samples, no whole batch of {batch}"
                if samples
                else "the dataset is empty",
                where="train.drop_last" if samples else "data.train",
                hint="lower train.global_batch, or drop_last = false" if samples else None,
            )
        total = steps * job.train.epochs
        return cls(min(samples, steps * batch), steps, min(total, job.train.max_steps or total))


class Loop:
    """One rank's way through the epochs. Every rank runs the same code with the same decisions."""

    def __init__(
        self, task: Task, comm: Communicator, run: RunFolder, watch: Watch, reporter: Reporter | None
    ) -> None:
        """Prepare.

        Args:
            task: Model, data and optimizer; the model's initial weights are taken from rank 0.
            comm: The ranks.
            run: The run folder; rank 0 writes checkpoints to it and looks for its stop file.
            watch: Tells of signals, and is told of steps.
            reporter: Rank 0's sinks; None elsewhere.
        """
        self.task, self.comm, self.run_folder, self.watch, self.reporter = task, comm, run, watch, reporter
        self.job = task.job.train
        self.plan = Plan.of(task.job, len(task.train))
        self.at = Position()
        self._local_loss = 0.0
        self._window_started = time.perf_counter()
        self._window_timed = 0
        self._step_s = 0.0  # of a slow step: the slowest, forgotten by a tenth a step
        self._ask: str | None = None
        self._parameters = [p for p in task.model.parameters() if p.requires_grad]
        comm.broadcast_([*task.model.parameters(), *task.model.buffers()])
        self._precision = Precision(self.job.precision, comm.device)
        self._forward = compiled(task.model, comm.device) if self.job.compile else task.model
        self._reducer = GradientReducer(task.model.parameters(), comm, wire=WIRE_TYPES[self.job.compression])

    # -- the whole run --------------------------------------------------------------------------------
    def run(self) -> tuple[State, str | None]:
        """Train to the end, or until asked to stop.

        Returns:
            COMPLETED or STOPPED, with a reason where there is one to tell.

        Raises:
            TrainError: The loss is NaN or infinite; raised on all ranks.
            StorageError: A checkpoint could not be written; raised on all ranks.
            LeaseHeld: Another process has taken the run over; raised on all ranks.
        """
        try:
            return self._run()
        finally:
            self._reducer.close()

    def _run(self) -> tuple[State, str | None]:
        at, plan = self.at, self.plan
        self._window_started = time.perf_counter()
        while True:
            last = at.step >= plan.total_steps
            if last or at.samples >= plan.usable:
                ended = self._boundary(last)
                if ended is not None:
                    return ended
                at.epoch, at.samples = at.epoch + 1, 0
            stop = self._step()
            if stop:
                return State.STOPPED, self._stop_reason()
            every = self.job.checkpoint_every_steps
            if every and at.step % every == 0 and at.samples < plan.usable and at.step < plan.total_steps:
                self._checkpoint()

    def _boundary(self, last: bool) -> tuple[State, str | None] | None:
        """An epoch's end, or the run's: evaluate, keep, and say whether this is all."""
        at = self.at
        due = last or (at.epoch + 1) % self.job.evaluate_every_epochs == 0
        if due and at.evaluated != at.step:
            self._evaluate()
        early = self._early_stop()
        every = self.job.checkpoint_every_steps
        if last or early or not every or at.step % every == 0:
            self._checkpoint()
        if early or last:
            return State.COMPLETED, early
        asked = on_root(self.comm, self.run_folder.asked_to_stop)
        if asked is not None:
            self._checkpoint()
            return State.STOPPED, str(asked)
        return None

    # -- a step ---------------------------------------------------------------------------------------
    def _step(self) -> bool:
        """One optimiser step; True when any rank was asked to stop."""
        at, task, job, began = self.at, self.task, self.task.job, time.perf_counter()
        start, stop = at.samples, min(at.samples + self.job.global_batch, self.plan.usable)
        low, high = rank_slice(start, stop, self.comm.rank, self.comm.size)
        ids = epoch_ids(job.data.order, len(task.train), job.data.seed, at.epoch, low, high)
        seed_step(self.job.seed, at.step, self.comm.rank)
        self._reducer.zero()
        loss_sum = self._backward(ids, stop - start)
        self._reducer.finish()
        asked, bad, lost = (float(flag) > 0 for flag in self._reducer.flags.tolist())
        if lost:
            raise agreed(self.run_folder.taken_over(), self.comm)
        if bad:
            raise agreed(self._bad_loss(), self.comm)
        task.schedule.before(at.step)
        rate = task.schedule.lr
        self._update()
        at.step, at.samples = at.step + 1, stop
        at.window_samples += stop - start
        self._window_timed += stop - start
        self._local_loss += loss_sum
        self.watch.advance(at.step)
        self._step_s = max(0.9 * self._step_s, time.perf_counter() - began)
        if self.reporter is not None:
            self.reporter.step(at.step, at.epoch, at.samples)
        if at.step % self.job.log_every_steps == 0 or at.step == self.plan.total_steps:
            self._log(rate)
        if asked:
            self._checkpoint()
        return asked

    def _update(self) -> None:
        """The optimizer's step, or where fp16 overflowed none; it counts all the same."""
        at, task, precision = self.at, self.task, self._precision
        stepped = precision.step(task.optimizer, self._parameters, self.job.clip_norm)
        if not stepped and precision.hopeless:
            raise agreed(self._bad_loss("the gradients are"), self.comm)
        at.scaler, at.skipped = precision.state(), at.skipped + (not stepped)
        with quiet_schedule(stepped):
            task.schedule.after(at.step)

    def _backward(self, ids: np.ndarray[Any, np.dtype[np.int64]], n_global: int) -> float:
        """Gradients of this rank's samples, weighed by their share of the global batch.

        Returns:
            The sum of their losses.
        """
        task, count = self.task, self.job.accumulation
        cuts = [rank_slice(0, len(ids), part, count) for part in range(count)]
        micros = [ids[low:high] for low, high in cuts if high > low]
        total = 0.0
        for number, micro in enumerate(micros):
            arrays = {**task.train.batch(micro), "sample_id": micro}
            ready = prepare(arrays, task.recipe, *task.fields, train=True, device=self.comm.device)
            if ready.n != len(micro):
                raise RecipeError(
                    f"transform made {ready.n} samples of {len(micro)}", where=task.recipe.path,
                    hint="change samples, but keep their number",
                )  # fmt: skip
            with self.autocast():
                loss = task.recipe.loss(forward(self._forward, task.recipe, ready.inputs), ready.targets)
            value = float(loss.detach())
            total += value * len(micro)
            if number == len(micros) - 1:
                self._set_flags(math.isfinite(total))
                self._reducer.start()
            with task.recipe.errors("the backward pass"):
                self._precision.scaled(loss * (len(micro) / n_global)).backward()  # type: ignore[no-untyped-call]
        if not micros:
            self._set_flags(True)
        return total

    def _set_flags(self, finite: bool) -> None:
        asked = self._ask is not None or self.watch.requested is not None
        self._reducer.flags[0] = float(asked)
        self._reducer.flags[1] = float(not finite)
        self._reducer.flags[2] = float(self.run_folder.lost)  # only rank 0 has the lease

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision that the job asks for."""
        return self._precision.autocast()

    def _bad_loss(self, what: str = "the loss is") -> TrainError:
        found = checkpoint.commits(self.run_folder.checkpoints) if self.comm.rank == 0 else []
        kept = f"; the checkpoint of step {found[-1].step} is kept" if found else ""
        return TrainError(
            f"{what} NaN or infinite at step {self.at.step + 1} (epoch {self.at.epoch + 1})",
            where=self.task.recipe.path,
            hint="lower train.lr, set train.clip_norm, or look for NaN in the data" + kept,
            step=self.at.step + 1,
        )

    # -- records --------------------------------------------------------------------------------------
    def _collect(self) -> None:
        """Bring the ranks' sums of losses together in the window."""
        self.at.window_loss += float(self.comm.allreduce_values(np.array([self._local_loss]))[0])
        self._local_loss = 0.0

    def _log(self, rate: float) -> None:
        self._collect()
        at, now = self.at, time.perf_counter()
        values = {
            "loss": at.window_loss / at.window_samples,
            "lr": rate,
            "samples_per_s": self._window_timed / max(now - self._window_started, 1e-9),
        }
        if self._precision.scale is not None:
            values |= {"loss_scale": self._precision.scale, "skipped_steps": at.skipped}
        at.window_loss, at.window_samples, self._window_timed, self._window_started = 0.0, 0, 0, now
        at.skipped = 0
        if self.reporter is not None:
            self.reporter.train(at.step, at.epoch, values)
            self._ask = self._ask or self.run_folder.asked_to_stop()

    def _stop_reason(self) -> str:
        """Why the ranks stop: the lowest rank that knows. Collective."""
        name = self.watch.requested
        mine = self._ask or (f"stopped by {name}, after a checkpoint" if name else None)
        return next((str(said) for said in self.comm.share_objects(mine) if said), "asked to stop")

    # -- evaluation and early stop --------------------------------------------------------------------
    def _evaluate(self) -> None:
        task, at = self.task, self.at
        at.evaluated = at.step
        if task.valid is None:
            return
        self._share_buffers()
        batch = max(1, -(-self.job.global_batch // self.comm.size))
        metrics = validate(
            task.model, task.recipe, task.valid, task.fields, self.comm, batch=batch, autocast=self.autocast()
        )
        on_root(self.comm, self.run_folder.check_held)
        self._judge(metrics)
        if self.reporter is not None:
            self.reporter.valid(at.step, at.epoch, at.samples, metrics)

    def _judge(self, metrics: dict[str, float]) -> None:
        """Early stop: does this evaluation improve on the best one?"""
        table, at = self.job.early_stop, self.at
        if table is None:
            return
        if table.metric not in metrics:
            raise agreed(
                ConfigError(
                    f"validation gives no metric {table.metric!r}",
                    where="train.early_stop.metric",
                    hint=f"it gives: {', '.join(metrics)}",
                ),
                self.comm,
            )
        value = metrics[table.metric]
        sign = 1.0 if table.direction == "minimize" else -1.0
        better = at.best is None or sign * (at.best - value) > table.min_delta
        if math.isfinite(value) and better:
            at.best, at.bad = value, 0
        else:
            at.bad += 1

    def _early_stop(self) -> str | None:
        table = self.job.early_stop
        if table is None or self.at.bad < table.patience:
            return None
        best = "never a number" if self.at.best is None else f"best {self.at.best:.6g}"
        return f"early stop: {table.metric} has not improved for {self.at.bad} evaluations ({best})"

    # -- checkpoints ----------------------------------------------------------------------------------
    def _share_buffers(self) -> None:
        """Running statistics (batch norm) differ from rank to rank; rank 0's count."""
        self.comm.broadcast_(list(self.task.model.buffers()))

    def _checkpoint(self) -> None:
        self._collect()
        self._share_buffers()
        at = self.at

        def write() -> None:
            self.run_folder.check_held()
            self._check_weights()
            checkpoint.save(
                self.run_folder.checkpoints, self.state(), step=at.step, epoch=at.epoch, position=at.samples,
                keep=self.job.keep_checkpoints, ranks=self.comm.size, step_s=self._step_s,
            )  # fmt: skip
            if self.reporter is not None:
                self.reporter.status(at.step, at.epoch, at.samples)

        on_root(self.comm, write)

    def _check_weights(self) -> None:
        """Refuse to keep weights that are spoilt: a finite loss may have a gradient that is not.

        Kept, they would take the place of the last good checkpoint, or be the model of a completed run.
        """
        for name, value in self.task.model.named_parameters():
            if value.requires_grad and not bool(torch.isfinite(value).all()):
                error = self._bad_loss()
                raise TrainError(
                    f"the weights {name!r} are NaN or infinite after step {self.at.step}",
                    where=error.where,
                    hint=error.hint,
                )

    def state(self) -> dict[str, Any]:
        """Everything that a run goes on from. Random states follow from (seed, step, rank): see `seed_step`."""
        return {
            "model": dict(self.task.model.state_dict()),
            "optimizer": self.task.optimizer.state_dict(),
            "schedule": self.task.schedule.state_dict(),
            "position": asdict(self.at),
        }

    def restore(self, state: dict[str, Any], where: Path) -> None:
        """Go on from a checkpoint's state.

        Raises:
            TrainError: It does not fit this model or optimizer.
        """
        checkpoint.load_model(self.task.model, state["model"], where)
        try:
            self.task.optimizer.load_state_dict(state["optimizer"])
            self.task.schedule.load_state_dict(state["schedule"])
            self.at = Position(**state["position"])
            self._precision.load(self.at.scaler)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TrainError(
                f"the checkpoint does not fit the optimizer or schedule ({error})", where=where,
                hint="undo the change of the recipe's optimizer, or begin again with --fresh",
            ) from error  # fmt: skip
        self.watch.advance(self.at.step)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the generators that dropout and augmentation draw from, as a function of (seed, step, rank)."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(3, np.uint64)
    torch.manual_seed(int(words[0] >> np.uint64(1)))
    random.seed(int(words[1]))
    np.random.seed(int(words[2] & np.uint64(0xFFFFFFFF)))
