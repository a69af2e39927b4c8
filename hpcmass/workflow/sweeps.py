"""A study from a job: its folder, its workers under Parsl, its driver."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpcmass.config import (
    Job,
    Project,
    Site,
    Target,
    job_differences,
    job_to_toml,
    job_with,
    load_job,
    site_to_toml,
)
from hpcmass.errors import AlreadyExists, ConfigError, LeaseHeld, NotFound
from hpcmass.files import claim, make_dir, matching, replace, sha256_bytes, sha256_file
from hpcmass.runs import RunFolder, State
from hpcmass.sweep import Event, StudyResult
from hpcmass.sweep.budget import read_used
from hpcmass.sweep.driver import Submit, run_study
from hpcmass.sweep.log import study_trials
from hpcmass.sweep.records import Outcome, TrialSpec
from hpcmass.sweep.space import Space
from hpcmass.sweep.warm import read_warm_start
from hpcmass.train.pins import read_pins, record_pins, settle
from hpcmass.train.script import fill_command
from hpcmass.workflow.attached import LeftBlocks
from hpcmass.workflow.blocks import JOURNAL
from hpcmass.workflow.pool import open_pool
from hpcmass.workflow.targets import check_item, largest, trial_targets
from hpcmass.workflow.trial_workers import TrialWorkers, item_of, refresh, usual_item
from hpcmass.workflow.trials import run_trial
from hpcmass.workflow.warm import gather

# What may differ between the job of a study and the job with which it goes on.
_MAY_CHANGE = (
    "recipe",
    "sweep.trials",
    "sweep.parallel",
    "sweep.retries",
    "sweep.budget",
    "sweep.targets",
    "resources",
    "per_shard",
    "data.verify",
)


def sweep(
    job: Job,
    project: Project,
    site: Site,
    *,
    folder: Path | None = None,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> StudyResult:
    """Run the study of a job, or go on with it where its folder says it stands.

    Args:
        job: A job with a `[sweep]` table.
        project: Where data and studies lie.
        site: Where trials run.
        folder: The study's folder; by default the project's `studies/` and the job's name.
        resume: Whether the study has to be there already.
        on_event: Told what happens.

    Raises:
        ConfigError: The job has no `[sweep]`, or differs from the job that the study was begun with.
        NotFound: `resume`, and there is no study.
        LeaseHeld: Another driver has the study.
        SweepError: The first trials all failed the same way.
    """
    if job.sweep is None:
        raise ConfigError("the job has no [sweep] table", where=f"job '{job.name}'")
    folder = folder or project.study_path(job.name)
    if resume and not (folder / "job.toml").is_file():
        raise NotFound("there is no study here", where=folder, hint="begin one with: hpcmass sweep JOB")
    targets = check_study(job, site)
    ranks = job.sweep.ranks
    parallel = job.sweep.parallel
    left = functools.cache(lambda: LeftBlocks(folder / "parsl" / JOURNAL))  # read once the study is ours

    @contextlib.contextmanager
    def workers() -> Iterator[Submit]:
        threads, item = worker_threads(job, ranks), usual_item(job)
        hours = None if job.sweep is None else job.sweep.budget.node_hours
        with open_pool(
            targets, parallel=parallel, folder=folder, threads=threads, item=item,
            node_s=None if hours is None else hours * 3600 - read_used(folder).local_node_s, left=left(),
        ) as pool:  # fmt: skip
            yield TrialWorkers(pool, project.root, job, site)

    def begin() -> str:
        warm = read_warm_start(folder) or gather(job, project, folder)  # refused before anything is written
        said = lay_down(job, site, folder)
        if warm.told():
            warm.keep(folder)
            said = "; ".join(filter(None, (said, warm.told())))
        if job.recipe is not None:
            with contextlib.suppress(NotFound):  # data that is not there the trials tell of
                record_pins(folder, settle(job, project, RunFolder(folder)))
        return said

    def prepare(trial: TrialSpec) -> None:
        item = item_of(job, trial.overrides)
        if any(name.startswith("resources.") for name in trial.overrides):
            check_item(item, targets)
        if pins := read_pins(folder):
            record_pins(trial.path, pins)
        lay_down_run(
            job_with(job, trial.overrides).model_copy(update={"name": f"{job.name}-{trial.number:06d}"}),
            site,
            trial.path,
            ranks=item.ranks,
            recipe=folder / "recipe.py" if job.recipe else None,
        )

    return run_study(
        job,
        folder,
        begin=begin,
        workers=workers,
        prepare=prepare,
        held=lambda trial: left().has(trial.run),
        on_event=on_event or (lambda _: None),
    )


def rerun_trial(study: Path, number: int, project: Project) -> tuple[TrialSpec, Outcome | None, RunFolder]:
    """Run a trial again alone, here, from its own job, recipe and datasets; the study does not notice.

    Args:
        study: The study's folder.
        number: The trial.
        project: Where its data lies.

    Returns:
        The trial, what came of it then, and the run folder of this time: `STUDY/reruns/000007-1`, or the
        next number behind the dash.

    Raises:
        NotFound: There is no such trial, or it was never laid down.
        ConfigError: `study` is no study's folder.
    """
    job = load_job(study / "job.toml")
    if job.sweep is None:
        raise ConfigError("the job has no [sweep] table", where=study / "job.toml")
    trials = study_trials(study).pairs()
    if not 0 <= number < len(trials):
        raise NotFound(
            f"there is no trial {number}",
            where=study,
            hint=f"there are {len(trials)}: 0 to {len(trials) - 1}" if trials else "there is none yet",
        )
    spec, outcome = trials[number]
    if not spec.run.exists():
        raise NotFound(
            f"trial {number} was never laid down", where=spec.path, hint="go on with the study first"
        )
    recipe = spec.path / "recipe.py"
    for count in itertools.count(1):
        run = RunFolder(study / "reruns" / f"{number:06d}-{count}")
        with contextlib.suppress(AlreadyExists):
            site = (spec.path / "site.toml").read_text(encoding="utf-8")
            if run.path.exists():
                continue
            if pins := read_pins(spec.path):
                record_pins(run.path, pins)
            run.create(
                spec.run.job_file.read_text(encoding="utf-8"), site, recipe if recipe.is_file() else None
            )
            break
    run_trial(str(run.path), str(project.root), load_job(run.job_file).resources.ranks)
    return spec, outcome, run


def check_study(job: Job, site: Site) -> dict[str, Target]:
    """Refuse a study that cannot be run, before anything is written; gives the targets of its trials.

    Raises:
        ConfigError: It has no `[sweep]`, a target cannot take a trial, or the space is impossible.
    """
    if job.sweep is None:
        raise ConfigError("the job has no [sweep] table", where=f"job '{job.name}'")
    targets = trial_targets(job, site)
    for overrides in largest(job.sweep.space):
        check_item(item_of(job, overrides), targets)
    if job.command is not None:
        # A name that nothing gives a value would fail every trial.
        searched = (name.removeprefix("params.") for name in job.sweep.space)
        fill_command(job.command, {**job.params, **dict.fromkeys(searched, "")})
    if job.sweep.sampler == "grid":
        Space(job.sweep.space).grid()
    return targets


def worker_threads(job: Job, ranks: int) -> int | None:
    """CPU threads of one worker, with all ranks of its trial; None for its share of the cores."""
    threads = job.resources.threads_per_rank
    return None if threads is None else threads * ranks


def lay_down_run(job: Job, site: Site, path: Path, *, ranks: int, recipe: Path | None) -> None:
    """Lay down the run folder of one trial or part: one model, data-parallel, with its own recipe.py."""
    update: dict[str, Any] = {
        "sweep": None,
        "per_shard": None,
        "train": job.train.model_copy(update={"mode": "data-parallel"}),
        "resources": job.resources.model_copy(update={"ranks": ranks}),
    }
    if recipe is not None:
        update["recipe"] = "recipe.py"
    RunFolder(path).create(job_to_toml(job.model_copy(update=update)), site_to_toml(site), recipe)


def lay_down(job: Job, site: Site, folder: Path) -> str:
    """Lay down a study's folder, or hold the job against the one that the study was begun with.

    The recipe is copied, so that all trials of a study run the same one, whatever is edited meanwhile. While
    nothing but failures have been counted it may be repaired.

    Returns:
        What a repair of the recipe did, or nothing.

    Raises:
        ConfigError: The job or the recipe is not the study's.
    """
    make_dir(folder / "trials")  # by which a folder is known for a study's
    kept = job.model_copy(update={"recipe": "recipe.py"}) if job.recipe is not None else job
    begun = load_job(folder / "job.toml") if (folder / "job.toml").is_file() else None
    differing = {} if begun is None else job_differences(begun, job, ignore=_MAY_CHANGE)
    if differing:
        facts = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in differing.items())
        raise ConfigError(
            f"the job has changed since this study was begun: {facts}",
            where=folder,
            hint="take the change back, or begin a new study under another name",
            keys=sorted(differing),
        )
    note = "" if job.recipe is None else _lay_down_recipe(Path(job.recipe), folder)
    if begun is None:
        claim(folder / "job.toml", job_to_toml(kept))
        claim(folder / "site.toml", site_to_toml(site))
        return note
    if job_differences(begun, job, ignore=("recipe",)):
        replace(folder / "job.toml", job_to_toml(kept))
    with contextlib.suppress(FileNotFoundError):
        refresh(folder / "site.toml", site_to_toml(site))  # `sweep resume` goes on where this one goes on
    return note


def _lay_down_recipe(recipe: Path, folder: Path) -> str:
    copy = folder / "recipe.py"
    text = recipe.read_bytes()
    if claim(copy, text) or sha256_file(copy) == sha256_bytes(text):
        return ""
    trials = study_trials(folder).pairs()
    if any(outcome is not None and outcome.state != "failed" for _, outcome in trials):
        raise ConfigError(
            "the recipe has changed since this study was begun",
            where=recipe,
            hint=f"the study's own copy is {copy}; begin a new study under another name",
        )
    # Nothing has come of the old one yet: this is the repair. The study's own copy comes last, so that a
    # repair that is cut short is done again.
    laid = [spec.run for spec, outcome in trials if outcome is None and spec.run.exists()]
    kept = [run for run in laid if not _lay_down_anew(run, text)]
    replace(copy, text)
    failed = sum(outcome is not None for _, outcome in trials)
    facts = ["the recipe was repaired"]
    if failed:
        facts.append(f"{failed} that failed with the old one still count (raise sweep.trials to have more)")
    if kept:
        facts.append(f"{len(kept)} had begun to train, and go on with the old one")
    return "; ".join(facts)


def _lay_down_anew(run: RunFolder, recipe: bytes) -> bool:
    """Give an uncounted trial the repaired recipe; False where it runs or has something to go on from."""
    with contextlib.suppress(LeaseHeld), run.lease():
        if run.model.exists() or matching(run.checkpoints, "step-*.json"):
            return False
        replace(run.path / "recipe.py", recipe)
        run.stop_file.unlink(missing_ok=True)
        run.update(state=State.CREATED, reason=None, ended=None, step=0, epoch=0, samples_done=0, metrics={})
        return True
    return False
