"""The driver of a study: draws trials, has them run, watches their run folders, counts them.

The study's folder is the truth. A trial is on disk before it is started, and counted by one file that is
written once; so a driver that is killed at any moment loses nothing, and the next one goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from hpcmass.config import Job
from hpcmass.errors import ConfigError, LeaseHeld
from hpcmass.files import Lease
from hpcmass.sweep.alike import Alike
from hpcmass.sweep.budget import Budget, nodes_of
from hpcmass.sweep.events import Event, StudyResult, result_of
from hpcmass.sweep.flight import (
    Flight,
    Submit,
    ended_of,
    expect,
    outcome_from,
    reached,
    room_for,
    slurm_state,
)
from hpcmass.sweep.halving import Halving
from hpcmass.sweep.history import TrialHistory, learnt
from hpcmass.sweep.interrupt import Interruption
from hpcmass.sweep.log import StudyLog
from hpcmass.sweep.records import Outcome, TrialSpec, objective_values, trial_path, violations
from hpcmass.sweep.settling import Attempts, Settled
from hpcmass.sweep.study import Study, asked_ahead
from hpcmass.sweep.trials import Trials, no_collection
from hpcmass.sweep.warm import WarmStart, read_warm_start
from hpcmass.sweep.watch import PRUNED, Values, Verdict, is_running, judge

_POLL_S = 0.5


def run_study(
    job: Job,
    folder: Path,
    *,
    workers: Callable[[], AbstractContextManager[Submit]],
    prepare: Callable[[TrialSpec], None],
    begin: Callable[[], str] = lambda: "",
    held: Callable[[TrialSpec], bool] = lambda _: False,
    on_event: Callable[[Event], None] = lambda _: None,
) -> StudyResult:
    """Run a study to its end, from wherever its folder says it is.

    Args:
        job: A job with `[sweep]`.
        folder: The study's folder.
        workers: Opens the workers; entered only when there is something to run, left at the end.
        prepare: Lays down a trial's run folder; called once its `trial.json` is there.
        begin: Called once this driver has the study, to lay down or to check what is in its folder; what it
            returns is told with the `opened` event.
        held: Whether a worker of an earlier driver still has a trial, known by more than its run's lease; asked
            of every unfinished trial before the workers are opened, and of those that have one until they end.
        on_event: Told what happens, in the driver's thread.

    Raises:
        LeaseHeld: Another driver, alive, has this study, or took it over while this one slept.
        SweepError: The first trials all failed the same way, or there are no workers any more.
        CorruptError: A record of the study is not what it should be.
    """
    assert job.sweep is not None
    lease = Lease(folder / "lease")
    try:
        lease.acquire()
    except LeaseHeld as error:
        raise LeaseHeld(
            f"another driver works on this study ({error.message})",
            where=folder,
            hint="watch it with: hpcmass sweep show; or end that process and start again",
            transient=True,
            **error.data,
        ) from None
    with ExitStack() as stack:
        stack.callback(lease.release)
        note = begin()
        log = StudyLog(folder, job.name, job.sweep)
        stack.callback(log.close)
        note = "; ".join(filter(None, (note, log.note)))
        interruption = stack.enter_context(Interruption())
        driver = _Driver(job, folder, prepare, held, on_event, interruption, lease, log)
        stack.callback(driver.settle)  # once the workers have ended
        return driver.run(stack, workers, note)


class _Driver:
    def __init__(
        self,
        job: Job,
        folder: Path,
        prepare: Callable[[TrialSpec], None],
        held: Callable[[TrialSpec], bool],
        on_event: Callable[[Event], None],
        interruption: Interruption,
        lease: Lease,
        log: StudyLog,
    ) -> None:
        assert job.sweep is not None
        self.job, self.sweep, self.folder = job, job.sweep, folder
        self.prepare, self.held, self.on_event = prepare, held, on_event
        self.interruption, self.lease = interruption, lease
        self.log, trials = log, log.trials
        warm = read_warm_start(folder) or WarmStart()
        known = [learnt(job.sweep, -1 - place, one) for place, one in enumerate(warm.taken)]
        with no_collection():
            history = TrialHistory(job.sweep, trials)
            self.study = Study(job.sweep, history, known=known, evaluations=job.evaluations)
        self.outcomes, self.specs = trials.outcomes, trials.specs
        self.again = [trials.spec(number) for number in trials.unfinished()]
        self.ready: list[TrialSpec] = []  # drawn ahead
        self.fresh: set[int] = set()  # laid down by this driver, and begun by nobody yet
        # A rung's trials come before new ones, so with rungs none is drawn before its turn.
        self.ahead = 0 if job.sweep.pruner == "halving" else asked_ahead(job.sweep)
        self.exhausted = False
        self.flights: list[Flight] = []
        self.starts: dict[int, int] = {}
        self.attempts = Attempts(folder, job, {spec.number for spec in self.again})
        self.alike = Alike(trials)
        self.budget = Budget(folder, job.sweep)
        self.halving = Halving(job.sweep, job.evaluations)
        self._recall(trials)
        self.ended: str | None = None
        self.ran = 0
        self.submit: Submit | None = None
        self.open: Callable[[], Submit]

    # -- the loop -------------------------------------------------------------------------------------
    def run(
        self, stack: ExitStack, workers: Callable[[], AbstractContextManager[Submit]], note: str
    ) -> StudyResult:
        self.open = lambda: stack.enter_context(workers())
        unfinished = f"{len(self.again)} unfinished" if self.again else ""
        self._say("opened", None, message="; ".join(filter(None, (unfinished, note))))
        self._attach()
        while not self.interruption.signal:
            self.ended = self.budget.over(nodes_of(self.submit))
            if self.ended is None:
                self._fill()
            if self.ended is not None or self.interruption.signal:
                break  # A driver that is told to end has not run out of trials: those at a rung stay there.
            if not self.flights and not self.budget.over(nodes_of(self.submit)) and not self._go_on():
                break
            if self.flights:
                self._pass_on()
        if not self.interruption.signal:
            self.ended = self.ended or f"all {len(self.outcomes)} trials are counted"
            self._say("ended", None, message=self.ended)
        self.budget.save(self.ended)
        signal = self.interruption.signal
        return result_of(
            self.folder, self.sweep, self.log.trials, signal=signal, ran=self.ran, ended=self.ended
        )

    def _pass_on(self) -> None:
        """Look at what runs; whoever is free has the next trial before what has ended is counted."""
        self._look_ahead()
        ended = self._watch()
        if (
            not self.halving.on
            and self.sweep.budget.value is None
            and not self.budget.over(nodes_of(self.submit))
        ):
            self._fill(draws=False)
        for flight, verdict in ended:
            self._settle(flight, verdict)

    def _attach(self) -> None:
        """Take up what earlier drivers began and what still runs, before anything else is begun."""
        waiting, self.again = self.again, []
        for spec in waiting:
            held = self.held(spec)
            if not held and not is_running(spec.run):
                self.again.append(spec)
                continue
            flight = self._flight(spec)
            flight.held = held
            self.flights.append(flight)
            self._say("attached", flight)
        # Whoever runs trials knows how to wait for the blocks of these, and ends them.
        if any(flight.held for flight in self.flights):
            self.submit = self.open()

    def _flight(self, spec: TrialSpec) -> Flight:
        values = Values(spec.run, self.job)
        return Flight(spec, values, said=len(values.read()))

    def settle(self) -> None:
        """Write down what was used, as it is known once the workers are gone."""
        if not self.lease.lost:
            self.budget.finish(nodes_of(self.submit), self.ended)

    def _recall(self, trials: Trials) -> None:
        """What a budget's value and the rungs have to know of the trials so far."""
        if self.sweep.budget.value is None and not self.halving.on:
            return
        for spec, outcome in trials.pairs():
            if outcome is not None:
                self._note_value(spec.number, outcome)
            self.halving.recall(spec, outcome, Values(spec.run, self.job).read)

    def _fill(self, *, draws: bool = True) -> None:
        while len(self.flights) < self.sweep.parallel and not self.interruption.signal:
            self._check_lease()
            spec = self._next(draws)
            if spec is None:
                return
            fresh = spec.number in self.fresh
            flight = Flight(spec, Values(spec.run, self.job)) if fresh else self._flight(spec)
            verdict = None if fresh else self._standing(flight)
            fresh = spec.number in self.fresh
            self.fresh.discard(spec.number)
            if verdict is not None and not (verdict.kind == "failed" and self.attempts.to_begin(spec.number)):
                self._settle(flight, verdict)
                if self.budget.over(nodes_of(self.submit)):
                    return
                continue
            if not fresh and is_running(spec.run):
                self._say("attached", flight)
            else:
                if self.submit is None:
                    self.submit = self.open()
                self.halving.send(spec)
                expect(self.submit, self._planned() - len(self.specs) + len(self.again) + len(self.ready))
                flight.future = self.submit.submit(self.attempts.begin(spec, 0 if fresh else reached(flight)))
                self.starts[spec.number] = self.starts.get(spec.number, 0) + 1
                twin = "" if spec.twin is None else f"the same point as trial {spec.twin}: no other was found"
                self._say("started", flight, message=twin)
            self.flights.append(flight)

    def _next(self, draws: bool) -> TrialSpec | None:
        """The trial whose turn it is: one that begins again, one of a rung, one drawn ahead, a new one."""
        if self.again:
            return self.again.pop(0)
        if (spec := self.halving.promote(drained=False)) is not None:
            return spec
        if self.ready:
            return self.ready.pop(0)
        return self._draw() if draws else None

    def _go_on(self) -> bool:
        """With nothing under way any more: whether a paused trial goes on; else those that wait are counted."""
        spec = self.halving.promote(drained=True)
        if spec is not None:
            self.again.append(spec)
            return True
        for left, reason in self.halving.left():
            self._count(Flight(left, Values(left.run, self.job)), Verdict("pruned", f"{PRUNED}{reason}"))
        return False

    def _standing(self, flight: Flight) -> Verdict | None:
        """What is known of a trial before it is started: it may have ended uncounted, or be impossible."""
        run = flight.spec.run
        if not run.exists():
            try:
                self.prepare(flight.spec)
                self.fresh.add(flight.spec.number)
            except ConfigError as error:
                return Verdict("failed", f"ConfigError: {error.message}")
            return None
        if is_running(run):
            return None
        verdict = judge(run, flight.values)
        return None if verdict.kind == "lost" else verdict

    def _look_ahead(self) -> None:
        """Draw and lay down the next trials while those that run leave time for it."""
        while len(self.ready) < self.ahead and not self.again and not self.interruption.signal:
            if any(flight.future is not None and flight.future.done() for flight in self.flights):
                return
            self._check_lease()
            if (spec := self._draw()) is None:
                return
            self.ready.append(spec)
            with contextlib.suppress(ConfigError):  # it is said when its turn comes
                self.prepare(spec)
                self.fresh.add(spec.number)

    def _draw(self) -> TrialSpec | None:
        number = len(self.specs)
        if number >= self.sweep.trials or self.exhausted:
            return None
        params = self.study.ask(number)
        if params is None:
            self.exhausted = True
            return None
        spec = TrialSpec(
            number,
            params,
            self.study.space.overrides(params),
            len(self.outcomes),
            trial_path(self.folder, number),
            self.study.twins.get(number),
        )
        spec.publish()
        self.log.drawn(spec)
        return spec

    def _watch(self) -> list[tuple[Flight, Verdict]]:
        """Wait for something to happen, at most half a second, and look at every running trial.

        Returns:
            Those that are no longer run, and what that means.
        """
        futures = [flight.future for flight in self.flights if flight.future is not None]
        if futures:
            wait(futures, timeout=_POLL_S, return_when=FIRST_COMPLETED)
        else:
            time.sleep(_POLL_S)
        found = []
        for flight in list(self.flights):
            self._check_lease()
            self._report(flight)
            ended = ended_of(flight, self.folder, self.held)
            if ended is not None and not self.interruption.signal:
                self.flights.remove(flight)
                found.append((flight, ended))
        return found

    def _check_lease(self) -> None:
        if self.lease.lost:
            raise self._taken_over()

    def _taken_over(self) -> LeaseHeld:
        return LeaseHeld(
            "another process has taken this study over",
            where=self.folder,
            hint="this one was stopped for longer than its lease lasts; it has written nothing since",
            transient=True,
        )

    # -- one trial ------------------------------------------------------------------------------------
    def _report(self, flight: Flight) -> None:
        """Hand new values to the pruner; ask a trial that it gives up to stop."""
        values = flight.values.read()
        for evaluation in range(flight.reported + 1, len(values) + 1):
            step, value = values[evaluation - 1]
            flight.reported = evaluation
            prune = self.study.report(flight.spec.number, evaluation, value)
            if evaluation > flight.said:
                self._say("value", flight, step=int(step), value=value)
            if prune and not flight.stopping:
                flight.stopping = True
                flight.spec.run.ask_to_stop(
                    f"{PRUNED}{self.sweep.objectives[0].name} {value:.6g} at step {int(step)}"
                )

    def _settle(self, flight: Flight, verdict: Verdict) -> None:
        spec, workers = flight.spec, self.submit
        flight.values.freeze()
        settled = self.attempts.settle(
            spec,
            verdict,
            flight.error,
            step=reached(flight),
            room=lambda: room_for(workers, spec),
            ask=lambda: slurm_state(workers, spec),
            free=flight.free,
        )
        if settled.verdict is not None and settled.verdict.kind == "paused":
            self._report(flight)
            self.halving.pause(spec, flight.values.read())
            self._say("paused", flight, message=settled.message, attempt=settled.fields)
            return
        if settled.verdict is not None:
            self._count(flight, settled.verdict, settled)
            return
        self._say("retried", flight, message=settled.message, attempt=settled.fields)
        self.again.insert(0, spec)

    def _count(self, flight: Flight, verdict: Verdict, settled: Settled | None = None) -> None:
        """Write the outcome down once, tell the sampler, stop early when everything fails alike."""
        number = flight.spec.number
        flight.stopping = True
        flight.values.freeze()
        self._report(flight)
        outcome = outcome_from(
            flight,
            verdict,
            order=len(self.outcomes),
            starts=self.starts.get(number, 0),
            cause=None if settled is None else settled.cause,
        )
        if not outcome.publish(flight.spec.path):
            raise self._taken_over()  # It was counted meanwhile, and that is what counts.
        self.log.ended(number, outcome)
        self._note_value(number, outcome)
        self.ran += 1
        self.study.tell(
            number,
            outcome.state,  # type: ignore[arg-type]
            objective_values(self.sweep, outcome),
            outcome.values,
            violations(self.sweep, outcome.measured),
        )
        self._say(
            outcome.state,
            flight,
            value=outcome.value,
            message=outcome.reason or "",
            attempt={} if settled is None else settled.fields,
        )
        self.alike.note(flight.spec, outcome)

    # -- words ----------------------------------------------------------------------------------------
    def _note_value(self, number: int, outcome: Outcome) -> None:
        if outcome.state == "complete" and not any(violations(self.sweep, outcome.measured)):
            self.budget.note(number, outcome.value)

    def _say(self, kind: str, flight: Flight | None, **more: Any) -> None:
        number = flight.spec.number if flight else None
        params = flight.spec.params if flight else {}
        self.on_event(Event(kind, number, len(self.outcomes), self._planned(), params=params, **more))

    def _planned(self) -> int:
        return self.sweep.trials if self.study.grid_size is None else self.study.grid_size


__all__ = ["Event", "StudyResult", "Submit", "run_study"]
