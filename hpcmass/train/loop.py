"""The training loop of one rank: steps, validation, early stop, checkpoints, agreed stops.

Step s of an epoch takes positions [s B, (s+1) B) of the epoch's sample order, B being the global batch, on any
number of ranks; a rank takes its slice of them. So the position of a run is two numbers, and it goes on
with exactly the samples not yet seen, whatever the number of ranks.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmass.errors import ConfigError, TrainError
from hpcmass.runs import RunFolder, State
from hpcmass.train.augment import Augment
from hpcmass.train.blame import gather_blame, in_words, judging
from hpcmass.train.checkpoint import Best, Mark
from hpcmass.train.comm.agree import agreed, is_agreed, on_root
from hpcmass.train.comm.base import Communicator
from hpcmass.train.defaults import Sum
from hpcmass.train.feed import Key, ReadAhead
from hpcmass.train.gradients import Gradients
from hpcmass.train.inputs import forward, prepare
from hpcmass.train.keeping import Keeper, lower_the_rate, restore, whole_state
from hpcmass.train.ordered import OrderedGradients
from hpcmass.train.pace import CHECKPOINT, COMPUTE, REDUCTION, WIDTH, Pace, Row
from hpcmass.train.precision import quiet_schedule
from hpcmass.train.profiling import Profiler
from hpcmass.train.progress import Reporter
from hpcmass.train.reducer import LOSS
from hpcmass.train.signals import Watch, give_up_s
from hpcmass.train.soundness import bad_loss_in_words
from hpcmass.train.task import Plan, Position, Task
from hpcmass.train.validate import validate


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
        self.plan = Plan.of(task.job, task.order.n)
        self.at = Position()
        self._window_started = time.perf_counter()
        self._window_timed = 0
        self._step_s = 0.0  # of a slow step: the slowest, forgotten by a tenth a step
        self._ask: str | None = None
        self._pace = Pace()
        self._parameters = [p for p in task.model.parameters() if p.requires_grad]
        weights = [name for name, value in task.model.named_parameters() if value.requires_grad]
        say = reporter.say if reporter is not None else lambda _: None
        self.keeper = Keeper(run, comm, self.job, self.state, weights, task.recipe.path, say, watch.alive)
        comm.broadcast_([*task.model.parameters(), *task.model.buffers()])
        kind = OrderedGradients if self.job.reproducible else Gradients
        self.gradients = kind(task, comm, self.plan, lambda: self.at, self._pace)
        self._precision = self.gradients.precision
        self._profiler = Profiler(self.job.profile_steps, run.path, comm, say)

    # -- the whole run --------------------------------------------------------------------------------
    def run(self) -> tuple[State, str | None]:
        """Train to the end, or until asked to stop. Whoever calls it calls `close` where it raises.

        Returns:
            COMPLETED or STOPPED, with a reason where there is one to tell.

        Raises:
            TrainError: The loss is NaN or infinite; raised on all ranks.
            StorageError: A checkpoint could not be written; raised on all ranks.
            LeaseHeld: Another process has taken the run over; raised on all ranks.
        """
        ended = self._run()
        self.close()
        return ended

    def close(self, error: BaseException | None = None) -> None:
        """End the threads; called after an error too, when its reason is told.

        Args:
            error: What ends the run. A checkpoint under way is waited for; not at a second signal, and where
                other ranks wait to hear of the error, no longer than for a stop.
        """
        waited_for = self.comm.size > 1 and error is not None and not is_agreed(error)
        self.keeper.close(now=isinstance(error, KeyboardInterrupt), wait_s=give_up_s() if waited_for else None)
        self.gradients.close()
        self._profiler.close()

    def _run(self) -> tuple[State, str | None]:
        at, plan = self.at, self.plan
        if at.step:
            self.gradients.soundness.first_loss = on_root(self.comm, self._first_loss)
        self._window_started = time.perf_counter()
        self._profiler.start()
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
                self._checkpoint(wait=False)

    def _boundary(self, last: bool) -> tuple[State, str | None] | None:
        """An epoch's end, or the run's: evaluate, keep, and say whether this is all."""
        at = self.at
        due = last or (at.epoch + 1) % self.job.evaluate_every_epochs == 0
        if due and at.evaluated != at.step:
            self._evaluate()
        early = self._early_stop()
        every = self.job.checkpoint_every_steps
        if last or early or not every or at.step % every == 0 or at.kept_step == at.step:
            self._checkpoint(wait=last or early is not None)
        if early or last:
            return State.COMPLETED, early
        asked = on_root(self.comm, self.run_folder.asked_to_stop)
        if asked is not None:
            self._checkpoint(wait=True)
            return State.STOPPED, str(asked)
        return None

    # -- a step ---------------------------------------------------------------------------------------
    def _step(self) -> bool:
        """One optimiser step; True when any rank was asked to stop."""
        at, task, began = self.at, self.task, time.perf_counter()
        start, stop = at.samples, min(at.samples + self.job.global_batch, self.plan.usable)
        self._pace.begin(at.step + 1)
        self.gradients.compute(at, stop, self._set_flags)
        self.gradients.reduce()
        asked, bad, lost, writing, failed = (float(flag) > 0 for flag in self.gradients.flags[:LOSS].tolist())
        if lost:
            raise agreed(self.run_folder.taken_over(), self.comm)
        if bad or not self.gradients.soundness.sound(self.gradients.step_loss):
            raise agreed(self._blame(finite=not bad), self.comm)
        at.loss_mean = self.gradients.soundness.mean
        if self.keeper.after_step(writing, failed):
            self._tell()
        self._pace.lap(CHECKPOINT, self.keeper.take_own_s())
        task.schedule.before(at.step)
        rate = task.schedule.lr
        self._update()
        at.step, at.samples = at.step + 1, stop
        at.window_samples += stop - start
        self._window_timed += stop - start
        self.watch.advance(at.step)
        self._profiler.step()
        self._pace.lap(COMPUTE)
        self._step_s = max(0.9 * self._step_s, time.perf_counter() - began)
        if self.reporter is not None:
            self.reporter.step(at.step, at.epoch, at.samples)
        if at.step % self.job.log_every_steps == 0 or at.step == self.plan.total_steps:
            self._log(rate)
        if asked:
            self._checkpoint(wait=True)
        return asked

    def _update(self) -> None:
        """The optimizer's step, or where fp16 overflowed none; it counts all the same."""
        at, task, precision = self.at, self.task, self._precision
        stepped = precision.step(task.optimizer, self._parameters, self.job.clip_norm)
        if not stepped and precision.hopeless:
            raise agreed(self._bad_loss("the gradients are NaN or infinite"), self.comm)
        at.scaler, at.skipped = precision.state(), at.skipped + (not stepped)
        with quiet_schedule(stepped):
            task.schedule.after(at.step)

    def _set_flags(self, sound: bool) -> None:
        asked = self._ask is not None or self.watch.requested is not None
        flags = self.gradients.flags
        flags[0] = float(asked)
        flags[1] = float(not sound)
        flags[2] = float(self.run_folder.lost)  # only rank 0 has the lease
        flags[3], flags[4] = self.keeper.flags()

    def _loss_of(self, ids: np.ndarray[Any, Any], *, train: bool = False) -> float:
        """The loss of some samples as in validation, or augmented as in training; the model stays as it is."""
        task = self.task
        self.watch.alive()  # samples are looked at one by one where the loss is bad
        arrays = self._augmented(ids) if train and task.recipe.augments else task.train.batch(ids)
        ready = prepare(
            {**arrays, "sample_id": ids}, task.recipe, *task.fields, train=train, device=self.comm.device
        )
        with torch.no_grad(), judging(task.model), self._precision.autocast():
            loss = task.recipe.loss(forward(task.model, task.recipe, ready.inputs), ready.targets)
        return loss.mean if isinstance(loss, Sum) else float(loss)

    def _augmented(self, ids: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Samples of this step, augmented as they were at their places in the epoch."""
        task, at = self.task, self.at
        stop = min(at.samples + self.job.global_batch, self.plan.usable)
        places = {int(one): at.samples + n for n, one in enumerate(task.order.ids(at.epoch, at.samples, stop))}
        with ReadAhead(task.train, [], augment=Augment(task.recipe, self.job.seed)) as data:
            return data.batch(ids, Key(at.epoch, [places[int(one)] for one in ids]))

    def _blame(self, *, finite: bool) -> TrainError:
        """The loss is bad: find out which samples are at fault. Collective."""
        self.keeper.finish_if_possible()
        gradients, limit = self.gradients, self.gradients.soundness.limit
        bad = gradients.own_step() if finite else gradients.spoilt
        blame = gather_blame(self.comm, bad, [self._loss_of, partial(self._loss_of, train=True)], limit)
        if self.reporter is not None:
            self.reporter.bad_loss(self.at.step + 1, self.at.epoch, blame)
        return self._bad_loss(bad_loss_in_words(blame, gradients.step_loss, limit), in_words(blame))

    def _bad_loss(self, what: str, said: str = "") -> TrainError:
        return TrainError(
            f"{what} at step {self.at.step + 1} (epoch {self.at.epoch + 1})" + (f": {said}" if said else ""),
            where=self.task.recipe.path,
            hint=lower_the_rate(self.keeper.kept),
            step=self.at.step + 1,
        )

    # -- records --------------------------------------------------------------------------------------
    def _first_loss(self) -> float | None:
        """That of the run's first record, where an earlier attempt made it."""
        record = next(self.run_folder.records("train"), None)
        loss = None if record is None else record.get("loss")
        return loss if isinstance(loss, float) else None

    def _paces(self) -> Row:
        """Collect the losses, and with them every rank's `Pace.row`: shape (ranks, `WIDTH`). Collective."""
        if self.at.step == self.plan.total_steps:
            self._pace.end()
        rows = np.zeros((self.comm.size, WIDTH))
        rows[self.comm.rank] = self._pace.row()
        return self.gradients.collect(self.at, rows.ravel()).reshape(rows.shape)

    def _log(self, rate: float) -> None:
        rows = self._paces()
        at, now = self.at, time.perf_counter()
        values = {
            "loss": at.window_loss / at.window_samples,
            "lr": rate,
            "samples_per_s": self._window_timed / max(now - self._window_started, 1e-9),
        }
        if self._precision.scale is not None:
            values |= {"loss_scale": self._precision.scale, "skipped_steps": at.skipped}
        if self.gradients.soundness.first_loss is None:
            self.gradients.soundness.first_loss = values["loss"]
        at.window_losses = None
        at.window_loss, at.window_samples, self._window_timed, self._window_started = 0.0, 0, 0, now
        at.skipped = 0
        if self.reporter is not None:
            self.reporter.train(at.step, at.epoch, values, rows)
            self._ask = self._ask or self.run_folder.asked_to_stop()
        shares = self.gradients.rebalance(rows) if at.step < self.plan.total_steps else None
        if shares is not None and self.reporter is not None:
            self.reporter.shares(at.step, at.epoch, shares)

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
        metrics = validate(
            task.model, task.recipe, task.valid, task.fields, self.comm,
            autocast=self._precision.autocast(), read=task.job.data.read, alive=self.watch.alive,
            **self.gradients.validation(),
        )  # fmt: skip
        on_root(self.comm, self.run_folder.check_held)
        self._judge(metrics)
        if self.reporter is not None:
            self.reporter.valid(at.step, at.epoch, at.samples, metrics)
        self._pace.skip()

    def _judge(self, metrics: dict[str, float]) -> None:
        """Early stop and keep-best: does this evaluation improve on the best one?"""
        table, at = self.job.early_stop, self.at
        metric, direction = (table.metric, table.direction) if table else ("loss", "minimize")
        if table is None and not self.job.keep_best:
            return
        if metric not in metrics:
            raise agreed(
                ConfigError(
                    f"validation gives no metric {metric!r}",
                    where="train.early_stop.metric",
                    hint=f"it gives: {', '.join(metrics)}",
                ),
                self.comm,
            )
        value, sign = metrics[metric], 1.0 if direction == "minimize" else -1.0

        def better(best: float | None, by: float) -> bool:
            return math.isfinite(value) and (best is None or sign * (best - value) > by)

        if self.job.keep_best and better(at.kept_best, 0.0):
            at.kept_best, at.kept_step = value, at.step
        if table is not None and better(at.best, table.min_delta):
            at.best, at.bad = value, 0
        elif table is not None:
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

    def _checkpoint(self, *, wait: bool) -> None:
        """Keep where the run is; committed on return if `wait`, else soon. Collective."""
        self.gradients.collect(self.at)
        self._share_buffers()
        self._pace.lap(REDUCTION)  # for ranks that come late, whatever kept them
        at, best = self.at, None
        if at.kept_best is not None:
            metric = self.job.early_stop.metric if self.job.early_stop else "loss"
            best = Best(at.kept_step, metric, at.kept_best)
        mark = Mark(at.step, at.epoch, at.samples, self.comm.size, step_s=self._step_s, best=best)
        self.keeper.keep(mark, wait=wait)
        if wait:
            self._tell()
        self._pace.lap(CHECKPOINT, self.keeper.take_own_s())

    def _tell(self) -> None:
        """A checkpoint is committed: bring the status up to date."""
        if self.reporter is not None:
            self.reporter.status(self.at.step, self.at.epoch, self.at.samples)

    def state(self) -> dict[str, Any]:
        """Everything that a run goes on from. Random states follow from (seed, step, rank): see `gradients`."""
        task = self.task
        return whole_state(task.model, task.optimizer, task.schedule, asdict(self.at))

    def restore(self, state: dict[str, Any], where: Path) -> None:
        """Go on from a checkpoint's state.

        Raises:
            TrainError: It does not fit this model or optimizer.
        """
        task = self.task
        self.at = restore(state, task.model, task.optimizer, task.schedule, self.at, where)
        self.keeper.kept = self.at.step
        self._precision.load(self.at.scaler)
        self.gradients.soundness.mean = self.at.loss_mean
        self.watch.begin(self.at.step)
