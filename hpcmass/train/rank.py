"""One rank of a run, from the first handshake to the last status."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcmass import __version__
from hpcmass.config import Job, Project, Site
from hpcmass.data import Dataset, Order
from hpcmass.errors import ConfigError, HpcmassError, RankFailed, RecipeError
from hpcmass.files import Lease, replace_json
from hpcmass.launch import RankEnv, check_versions, describe, detect_ranks, leave_word, usable_cores
from hpcmass.runs import RunFolder, State, Status
from hpcmass.train import checkpoint, initial, opening, ragged, reproducible
from hpcmass.train.alike import check_alike
from hpcmass.train.begun import has_trained
from hpcmass.train.bundle_writer import write_torch_bundle
from hpcmass.train.comm import Communicator, open_communicator
from hpcmass.train.comm.agree import agreed, everywhere, is_agreed, on_root
from hpcmass.train.compiled import compiled
from hpcmass.train.datasets import open_all, open_train, verify_all, verify_unstaged
from hpcmass.train.ending import end_all, last_words, leave
from hpcmass.train.estimator import fit_estimator
from hpcmass.train.facts import facts_of
from hpcmass.train.inputs import forward, prepare, select_fields
from hpcmass.train.lazy import materialise
from hpcmass.train.loop import Loop
from hpcmass.train.optim import Schedule, make_optimizer
from hpcmass.train.orders import check_order, open_order, record_order
from hpcmass.train.pins import Pins, record_pins, settle
from hpcmass.train.process import process_state
from hpcmass.train.profiling import allow_timeline
from hpcmass.train.progress import Reporter, Screen
from hpcmass.train.recipe import Recipe, for_tokens, load_recipe
from hpcmass.train.signals import Peer, Watch
from hpcmass.train.staging import Staged, stage
from hpcmass.train.startup import Startup, how_it_trains, place_of, start_in_words, write_places
from hpcmass.train.task import Plan, Task


def train_rank(
    job: Job,
    run: RunFolder,
    project: Project,
    *,
    comm_name: str | None = None,
    console: bool = True,
    fresh: bool = False,
    site: Site | None = None,
) -> Status:
    """Run this process's rank of a run, from the first handshake to the last status.

    Every rank calls it with the same arguments. A run that is there already goes on from its last checkpoint,
    on any number of ranks. As one rank it can be called anywhere: threads, signal handlers, random states and
    the number of threads are as before when it returns.

    Args:
        job: What to train; has a recipe.
        run: The run's folder; made when everything that can be checked beforehand is right.
        project: What the job's data paths are relative to.
        comm_name: Overrides `train.backend`.
        console: Whether rank 0 shows its progress.
        fresh: Begin again; what is there is kept under another name.
        site: Written into a new run's folder.

    Returns:
        The status at the end: COMPLETED or STOPPED.

    Raises:
        HpcmassError: Agreed by all ranks, so every rank raises it; on ranks above 0 `data["told"]` is true,
            for rank 0 is the one to print it. What goes wrong on one rank only ends all processes instead.
    """
    try:
        check_versions(__version__, os.environ)
        startup = Startup()
        startup.mark("imports")
        ranks = detect_ranks(os.environ)
        with process_state(job, ranks):
            allow_timeline(job.train.profile_steps)
            comm = open_communicator(comm_name or job.train.backend, ranks)
            startup.mark("rendezvous")
            try:
                if job.train.reproducible:
                    everywhere(comm, lambda: reproducible.check_ranks(job, comm))
                rank = _Rank(job, run, project, comm, startup, console=console, fresh=fresh, site=site)
                return rank.train()
            except BaseException as error:
                if comm.size > 1 and not is_agreed(error):
                    end_all(comm, error)
                raise
            finally:
                comm.close()
    except HpcmassError as error:
        # Whoever started the ranks says it once.
        if leave_word(error):
            error.data["told"] = True
        raise


class _Rank:
    """The pieces of `train_rank`, in the order in which they are called."""

    def __init__(
        self, job: Job, run: RunFolder, project: Project, comm: Communicator, startup: Startup, *,
        console: bool, fresh: bool, site: Site | None,
    ) -> None:  # fmt: skip
        self.job, self.run, self.project, self.comm, self.startup = job, run, project, comm, startup
        self.fresh, self.site = fresh, site or Site.local()
        self.console = console and comm.rank == 0
        self.lease: Lease | None = None
        self.order: Order | None = None
        self.pins: Pins = {}
        self.attempt = 0
        self.hosts: list[str] = []
        self.staged: Staged | None = None
        self.settled: dict[str, Any] | None = None
        self.unlike: list[str] = []
        self.loop: Loop | None = None

    def train(self) -> Status:
        try:
            return self._train()
        finally:
            if self.staged is not None:
                self.staged.close()

    def _train(self) -> Status:
        found = on_root(self.comm, lambda: opening.look(self.job, self.run, fresh=self.fresh))
        if found["done"]:
            self._say(f"{self.run.path} is completed already: nothing to do (--fresh begins again)")
            return self.run.status()
        self.pins = on_root(self.comm, lambda: settle(self.job, self.project, self.run, fresh=self.fresh))
        on_root(self.comm, lambda: verify_all(self.job, self.project, self.pins))
        recipe, train, valid = everywhere(self.comm, self._open)
        if self.job.data.stage:
            train, valid = self._bring(train, valid)
        recipe, train, valid = everywhere(self.comm, lambda: self._shape(recipe, train, valid))
        self.startup.mark("data")
        fields = everywhere(self.comm, lambda: self._fields(train, valid))
        model = everywhere(self.comm, lambda: self._build(recipe, train))
        if self.job.train.reproducible:
            everywhere(self.comm, lambda: reproducible.check_model(model))
            self.settled = reproducible.settled(self.job)
            self.unlike = reproducible.unlike(self.comm, self.settled["cpu"])
        task = None
        if isinstance(model, torch.nn.Module):
            task = everywhere(self.comm, lambda: self._task(recipe, model, train, valid, fields))
            check_alike(task.model, self.comm, recipe.path)
        began_with = on_root(self.comm, lambda: self._begin_with(task))
        self.startup.mark("model")
        try:
            self.attempt = on_root(self.comm, self._begin)
            if began_with is not None:
                self._say(
                    f"{self.job.name}: {on_root(self.comm, lambda: initial.record(self.run, began_with))}"
                )
            return self._watched(task, model, recipe, train, valid)
        finally:
            if self.lease is not None:
                self.lease.release()

    # -- before the run folder is touched --------------------------------------------------------------
    def _open(self) -> tuple[Recipe, Dataset, Dataset | None]:
        assert self.job.recipe is not None
        recipe = load_recipe(Path(self.job.recipe))
        data = self.job.data
        if data.train is None:
            raise ConfigError("is missing: there is nothing to train on", where="data.train")
        look = self.comm.rank == 0  # thousands of ranks that look at every shard would hold up the file system
        train = open_train(self.project, data.train, self.run.path, self.pins, look=look)
        self.order = open_order(self.job, self.project, train, self.pins)
        if data.valid is None:
            return recipe, train, None
        return recipe, train, open_all(self.project, data.valid, self.pins, look=look)

    def _bring(self, train: Dataset, valid: Dataset | None) -> tuple[Dataset, Dataset | None]:
        """Both on this node's own disk, where there is room."""
        targets = self.site.targets
        target = targets.get(self.job.resources.target or "", targets[self.site.default_target])
        limit = None if target.scratch_gb is None else int(target.scratch_gb * 1e9)
        wanted = [train] if valid is None else [train, valid]
        verify = self.job.data.verify
        staged = stage(wanted, self.comm, target.scratch, limit, check_again=verify == "always")
        self.staged = staged
        notes = list(staged.notes)
        if verify == "auto" and (note := on_root(self.comm, lambda: verify_unstaged(staged.unchecked))):
            notes.append(note)
        if self.comm.rank == 0:  # a warning: into the log, also where there is no console
            for note in notes:
                print(f"{self.job.name}: {note}", file=sys.stderr, flush=True)
        return staged.datasets[0], None if valid is None else staged.datasets[1]

    def _shape(
        self, recipe: Recipe, train: Dataset, valid: Dataset | None
    ) -> tuple[Recipe, Dataset, Dataset | None]:
        """The same, with the batches of ragged fields that the job wants."""
        if not train.ragged and not self.job.data.ragged:
            return recipe, train, valid
        train = ragged.shape(self.job, train)
        if valid is not None:
            valid = ragged.shape(self.job, valid, alone=True)
        _, targets = select_fields(train, self.job.data.inputs, self.job.data.targets)
        return for_tokens(recipe) if ragged.has_ragged(train, targets) else recipe, train, valid

    def _fields(self, train: Dataset, valid: Dataset | None) -> tuple[list[str], list[str]]:
        data = self.job.data
        fields = select_fields(train, data.inputs, data.targets)
        if "sample_id" in train.fields:
            raise ConfigError("a field may not be called 'sample_id': batches use it", where="data.train")
        for name in (*fields[0], *fields[1]):
            if valid is not None and name not in valid.fields:
                raise ConfigError(f"the validation dataset has no field {name!r}", where="data.valid")
        ragged.check_packed(self.job, train, fields)
        return fields

    def _build(self, recipe: Recipe, train: Dataset) -> Any:
        seed = self.job.train.seed
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        facts = facts_of(train, self.job.data.inputs, self.job.data.targets)
        model = recipe.build_model(dict(self.job.params), facts)
        if recipe.augments and not isinstance(model, torch.nn.Module):
            raise RecipeError(
                "augment is for torch models, and build_model made an estimator", where=recipe.path,
                hint="take augment out, or have transform(batch, train) do it",
            )  # fmt: skip
        if not isinstance(model, torch.nn.Module) and (uneven := ragged.has_ragged(train, list(facts))):
            raise RecipeError(
                "build_model made an estimator, which takes as many columns of every sample, and samples of "
                f"{uneven[0]!r} differ in length", where=recipe.path,
                hint="use a torch model, or other inputs (data.inputs)",
            )  # fmt: skip
        return model

    def _task(
        self, recipe: Recipe, model: torch.nn.Module, train: Dataset, valid: Dataset | None,
        fields: tuple[list[str], list[str]],
    ) -> Task:  # fmt: skip
        model.to(self.comm.device)
        model.train()
        materialise(model, recipe, train, fields)
        assert self.order is not None
        plan = Plan.of(self.job, self.order.n)
        if self.job.train.compile:
            compiled(model, self.comm.device)  # refuses now what the first step would
        optimizer = make_optimizer(model, recipe, self.job)
        schedule = Schedule(optimizer, self.job, plan.total_steps)
        return Task(self.job, recipe, model, optimizer, schedule, train, valid, fields, self.order)

    def _begin_with(self, task: Task | None) -> dict[str, Any] | None:
        """Put the job's weights into rank 0's model, unless a checkpoint is there to go on from."""
        source = self.job.train.init_from
        if source is None or (not self.fresh and has_trained(self.run)):
            return None
        if task is None:
            raise initial.refuse_for_estimator()
        return initial.begin_with(task.model, source, self.project, strict=self.job.train.init_strict)

    # -- the run ---------------------------------------------------------------------------------------
    def _begin(self) -> int:
        """Rank 0 takes the lease and makes or opens the folder; the number of the attempt."""
        assert self.order is not None
        if not self.fresh:
            check_order(self.run, self.order)
            if self.settled is not None:
                self.unlike += reproducible.check_settled(self.run, self.settled)
        self.lease = opening.take(self.job, self.run, self.site, fresh=self.fresh)
        record_pins(self.run.path, self.pins)
        record_order(self.run, self.order)
        if self.settled is not None:
            reproducible.record_settled(self.run, self.settled)
        return opening.next_attempt(self.run, self.comm.size, self.comm.name)

    def _watched(
        self, task: Task | None, model: Any, recipe: Recipe, train: Dataset, valid: Dataset | None
    ) -> Status:
        self._record_place()
        peers = [Peer(**said) for said in self.comm.share_objects(asdict(Peer.this(self.comm.rank)))]
        places = self.comm.share_objects(place_of(self.comm.rank))
        self.hosts = [str(place["host"]) for place in places]
        if self.comm.rank == 0:
            write_places(self.run, self.attempt, places)
        hang_s = 0.0 if task is None else self.job.train.hang_s
        with Watch(self.run, self.attempt, self.comm.rank, peers, hang_s=hang_s) as watch:
            try:
                if task is None:
                    state, reason = self._fit(model, recipe, train, valid, watch)
                else:
                    state, reason = self._loop(task, watch)
                status = self._end(state, reason)
            except BaseException as error:
                last_words(self.run, self.attempt, self.comm, error, watch)
                if self.loop is not None:
                    with contextlib.suppress(HpcmassError):  # that error is worth more
                        self.loop.close(error)
                if is_agreed(error):
                    leave(self.comm, watch)
                raise
            leave(self.comm, watch)
            return status

    def _record_place(self) -> None:
        """Write down where this rank runs, for whoever holds it against Slurm's books."""
        if self.run.lost:
            return
        place = RankEnv(
            self.comm.rank, self.comm.size, self.comm.local_rank, self.comm.local_size, self.comm.name
        )
        record = describe(
            os.environ, place, host=socket.gethostname(), pid=os.getpid(), cpus=usable_cores(), at=time.time()
        )
        with contextlib.suppress(HpcmassError):
            replace_json(self.run.rank_file(self.attempt, self.comm.rank), record)

    def _loop(self, task: Task, watch: Watch) -> tuple[State, str | None]:
        newest = on_root(self.comm, lambda: checkpoint.latest_step(self.run.checkpoints))
        loaded = None
        if newest is not None:
            check = self.comm.local_rank == 0  # one a node; the others find the files in its cache
            loaded = everywhere(
                self.comm, lambda: checkpoint.load_latest(self.run.checkpoints, newest, check=check)
            )
        plan = Plan.of(self.job, task.order.n)
        screen = Screen(self.job.name, plan.total_steps, on=self.console)
        from_step = loaded[0].step if loaded else 0
        reporter = None
        if self.comm.rank == 0:
            reporter = Reporter(
                self.run, screen, from_step=from_step, total_steps=plan.total_steps, hosts=self.hosts
            )
            reporter.at_first_step = self._tell_startup
        loop = self.loop = Loop(task, self.comm, self.run, watch, reporter)
        if loaded is not None:
            commit, state = loaded
            everywhere(self.comm, lambda: loop.restore(state, commit.path))
        del loaded
        if reporter is not None:
            self._tell_start(from_step)
            screen.start(from_step)
        try:
            state_reason = loop.run()
        finally:
            if reporter is not None:
                reporter.close()
        if state_reason[0] is State.COMPLETED:
            on_root(self.comm, lambda: self._bundle(task))
        return state_reason

    def _tell_start(self, from_step: int) -> None:
        if self.attempt > 1:
            self.run.append({"kind": "resume", "from_step": from_step, "ranks": self.comm.size})
        for line in start_in_words(self.job, self.comm, self.attempt, from_step, self.unlike):
            self._say(f"{self.job.name}: {line}")

    def _tell_startup(self) -> None:
        self.startup.mark("first_step")
        how = how_it_trains(self.job, self.comm, self.settled, self.unlike)
        self.run.append({**self.startup.record(self.attempt), "training": how})

    def _bundle(self, task: Task) -> None:
        self.run.check_held()
        ids = np.arange(1, dtype=np.int64)
        arrays = {**task.train.batch(ids), "sample_id": ids}
        task.model.eval()
        with torch.no_grad():
            ready = prepare(arrays, task.recipe, *task.fields, train=False, device=self.comm.device)
            output = forward(task.model, task.recipe, ready.inputs)
        opening.remove_model(self.run)
        write_torch_bundle(
            self.run.model, task.model, task.recipe, dict(self.job.params), task.train, output,
            inputs=self.job.data.inputs, targets=self.job.data.targets,
        )  # fmt: skip

    def _fit(
        self, model: Any, recipe: Recipe, train: Dataset, valid: Dataset | None, watch: Watch
    ) -> tuple[State, str | None]:
        on_root(self.comm, lambda: opening.remove_model(self.run))

        def asked() -> str | None:
            return f"stopped by {watch.requested}" if watch.requested else None

        try:
            metrics = fit_estimator(
                model, recipe, self.job, train, valid, self.run, self.comm,
                say=self._say, should_stop=asked, order=self.order,
            )  # fmt: skip
        except HpcmassError as error:
            # It raises on every rank what went wrong on rank 0, but a lost rank.
            raise error if isinstance(error, RankFailed) else agreed(error, self.comm) from None

        def write() -> str | None:
            self.run.update(metrics={name: value for name, value in metrics.items() if np.isfinite(value)})
            return None if self.run.model.exists() else self.run.asked_to_stop() or asked() or "asked to stop"

        reason = on_root(self.comm, write)
        return (State.COMPLETED if reason is None else State.STOPPED), reason

    def _end(self, state: State, reason: str | None) -> Status:
        def write() -> None:
            self.run.update(state=state, reason=reason, ended=time.time())

        on_root(self.comm, write)
        return self.run.status()

    def _say(self, text: str) -> None:
        if self.console:
            print(text, file=sys.stderr, flush=True)
