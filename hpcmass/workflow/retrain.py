"""From drift to a better model: the new data, a training that begins with the version that serves, the gate.

`retrain/000001/` in the monitor's folder holds `plan.json`, what was decided once, and `done.json`, how it
ended. Every step can be taken again: the samples are gathered once, datasets are published whole, a run goes on
with its checkpoint, a version is registered once a run, and an alias moves only through its gate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.catalogue import Catalogue, Version
from hpcmass.config import Job, Project, job_from_values
from hpcmass.config.load import job_with
from hpcmass.data import open_dataset
from hpcmass.errors import AlreadyExists, CatalogueError, ConfigError, CorruptError, NotFound
from hpcmass.evaluate.models import cached
from hpcmass.files import Lease, publish_json, read_json
from hpcmass.monitor.drift import verdicts
from hpcmass.monitor.facts import model_name
from hpcmass.monitor.windows import read_windows, served
from hpcmass.runs import State
from hpcmass.workflow.drifting import Watched
from hpcmass.workflow.livedata import gather, write_live
from hpcmass.workflow.models import dataset_path, register_run
from hpcmass.workflow.monitoring import training_paths
from hpcmass.workflow.projects import ProjectRef, project_of
from hpcmass.workflow.promote import meant_by, promote
from hpcmass.workflow.training import train

FORMAT = 1
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How a deployment is trained anew.

    Attributes:
        data: A dataset (with `train` and `test` inside, or alone) in place of kept samples with labels.
        model: The model's name, where the deployment does not say.
        alias: What the new version is to be promoted to.
        require: What is required beside the stage's own; default: no worse than the alias on the new data.
        sets: Overrides of the job, `train.epochs` = 3.
        anyway: Also where no drift was found.
        ranks: See `workflow.training.train`.
    """

    data: str | None = None
    model: str | None = None
    alias: str = "production"
    require: Sequence[str] = ()
    sets: dict[str, Any] | None = None
    anyway: bool = False
    ranks: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a retraining ended.

    Attributes:
        folder: Its folder.
        version: The new version.
        promoted: Whether the alias is there now.
        text: Why not, or what held.
    """

    folder: Path
    version: str
    promoted: bool
    text: str


def retrain(
    watched: Watched, asked: Asked, project: ProjectRef = None, *, say: Callable[[str], None] = print
) -> Outcome:
    """Train a deployment's model on new data, and promote it if it passes; or go on with what was begun.

    Raises:
        ConfigError: No drift was found, or the version was not trained by a job.
        DataError: Too few samples have labels.
        LeaseHeld: Another process is at it.
        TrainError: The training failed; the same call goes on with it.
    """
    found = project_of(project)
    home = watched.folder / "retrain"
    with Lease(home / "lease"):
        folder = _open(home)
        if folder is None:
            folder = _plan(home, watched, asked, found)
        else:
            say(f"going on with {folder}")
        return _carry_out(folder, watched, found, say)


def _numbers(home: Path) -> list[int]:
    return sorted(int(one.name) for one in home.glob("[0-9]*") if (one / "plan.json").is_file())


def _open(home: Path) -> Path | None:
    """What was begun and has not ended."""
    numbers = _numbers(home)
    last = home / f"{numbers[-1]:06d}" if numbers else None
    return last if last is not None and not (last / "done.json").exists() else None


def _plan(home: Path, watched: Watched, asked: Asked, project: Project) -> Path:
    last = next((one for one in reversed(verdicts(watched.folder)) if one.get("state") != "too little"), None)
    drifted = last is not None and last.get("state") == "drift"
    if not drifted and not asked.anyway:
        raise ConfigError(
            "no drift was found",
            where=watched.folder,
            hint="look with: hpcmass drift; or train all the same with --anyway",
        )
    catalogue = Catalogue(project.catalogue)
    windows = read_windows(watched.folder) if last is None else []
    said = str(last["version"]) if last is not None else served(windows) if windows else ""
    name = asked.model or (model_name(watched.folder, said) if said else "")
    if not name:
        raise ConfigError("the model is not known", where=watched.folder, hint="name it: --model NAME")
    bare = name.partition("@")[0]
    now = catalogue.aliases(bare).get(asked.alias)
    if drifted and not asked.anyway and now is not None and said.isdigit() and now > int(said):
        raise ConfigError(
            f"version {said} has drifted, and {asked.alias} is version {now} already",
            where=bare,
            hint="look at what is served now with: hpcmass drift; or train all the same with --anyway",
        )
    current = str(now) if now is not None else said
    version = catalogue.get(name if "@" in name or not current else f"{bare}@{current}")
    _job_of(version)
    training_paths(version, project)
    if asked.data is not None and not dataset_path(asked.data, project).is_dir():
        raise NotFound(f"there is no dataset {asked.data!r}", hint="name a dataset's folder")
    number = max(_numbers(home), default=0) + 1
    folder = home / f"{number:06d}"
    label = watched.name or bare
    drift = [one["feature"] for one in (last or {}).get("findings", []) if one.get("drift")] if drifted else []
    publish_json(
        folder / "plan.json",
        {
            "format": FORMAT, "model": bare, "from": version.ref, "version": said or str(version.version),
            "alias": asked.alias, "require": list(asked.require), "sets": asked.sets or {},
            "data": None if asked.data is None else str(dataset_path(asked.data, project).absolute()),
            "since": 0.0 if last is None else float(last["since"]), "drift": list(dict.fromkeys(drift)),
            "run": f"{bare}-retrain-{label}-{number:06d}", "ranks": asked.ranks,
            "dataset": str(project.data / f"live-{label}-{number:06d}"),
        },
    )  # fmt: skip
    return folder


def _carry_out(folder: Path, watched: Watched, project: Project, say: Callable[[str], None]) -> Outcome:
    plan = read_json(folder / "plan.json")
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise CorruptError("is no plan of a retraining", where=folder / "plan.json")
    catalogue = Catalogue(project.catalogue)
    version = catalogue.get(plan["from"])
    old = training_paths(version, project)
    new = _new_data(folder, plan, watched, old[0], say)
    made = _trained(plan, version, old, new, project, catalogue, say)
    require = plan["require"] or _default_gate(catalogue, made, plan["alias"], new)
    why = f"retrain {folder.name} after drift of {', '.join(plan['drift'][:5]) or 'nothing (--anyway)'}"
    try:
        done = promote(made.ref, plan["alias"], project, require=require, why=why)
        outcome = Outcome(folder, made.ref, True, "; ".join(one.told() for one in done.gates))
        gates = [one.to_json() for one in done.gates]
    except CatalogueError as error:
        if "gates" not in error.data:
            raise
        outcome, gates = Outcome(folder, made.ref, False, error.message), error.data["gates"]
    record = {"format": FORMAT, "version": made.ref, "promoted": outcome.promoted, "gates": gates}
    with contextlib.suppress(AlreadyExists):
        publish_json(folder / "done.json", {**record, "text": outcome.text})
    return outcome


def _new_data(
    folder: Path, plan: dict[str, Any], watched: Watched, old: Path, say: Callable[[str], None]
) -> dict[str, Path]:
    """Folders of `train`, and of `test` where there is one."""
    if plan["data"] is not None:
        named = Path(plan["data"])
        inside = {split: named / split for split in ("train", "test") if (named / split).is_dir()}
        return inside if "train" in inside else {"train": named}
    like = open_dataset(old)
    many = gather(watched.folder, plan["version"], like, folder / "samples.h5", plan["since"])
    made = write_live(folder / "samples.h5", Path(plan["dataset"]), like)
    say(f"{many} labelled samples: {plan['dataset']}")
    return made


def _trained(
    plan: dict[str, Any],
    version: Version,
    old: list[Path],
    new: dict[str, Path],
    project: Project,
    catalogue: Catalogue,
    say: Callable[[str], None],
) -> Version:
    """The version of the run, trained and registered once."""
    run = project.run_path(plan["run"])
    for found in catalogue.list(plan["model"]):
        if found.lineage.get("run") == str(run.resolve()):
            return found
    job = _job_of(version)
    recipe = Path(job.recipe) if job.recipe else None
    if recipe is None or not recipe.is_file():  # it went with the project it came from; the version has a copy
        recipe = cached(catalogue, version) / "recipe.py"
    sets: dict[str, Any] = {"data.train": [*map(str, old), str(new["train"])], "data.mix": None}
    for split in ("valid", "test"):  # beside one data set these need not be named; beside several they do
        with contextlib.suppress(NotFound, CatalogueError):
            if getattr(job.data, split) is None:
                sets[f"data.{split}"] = str(meant_by(split, version, project))
    if WEIGHTS in version.files:  # of estimators nothing is left to begin with
        sets["train.init_from"] = version.ref
    job = job.model_copy(update={"sweep": None, "name": plan["model"], "recipe": str(recipe)})
    job = job_with(job, {**sets, **plan["sets"]})
    say(f"training {plan['run']} from {version.ref}")
    folder, status = train(job, project, run_name=plan["run"], ranks=plan["ranks"], console=False)
    if status.state is not State.COMPLETED:
        raise CatalogueError(
            f"the training is {status.state.value}", where=folder.path, hint="the same command goes on with it"
        )
    drift = ", ".join(plan["drift"][:5])
    return register_run(
        folder, project, name=plan["model"], parent=version.ref,
        description=f"trained on from {version.ref}" + (f" after drift of {drift}" if drift else ""),
        tags={"retrain": plan["run"]},
    )  # fmt: skip


def _job_of(version: Version) -> Job:
    job = version.lineage.get("job")
    if not isinstance(job, dict):
        raise ConfigError("was not trained by a job, so it cannot be trained anew", where=version.ref)
    return job_from_values(job, version.ref)


def _default_gate(catalogue: Catalogue, made: Version, alias: str, new: dict[str, Path]) -> list[str]:
    """No worse than what is there now, on new data that neither was trained on."""
    if "test" not in new:
        return []
    task = read_json(cached(catalogue, made) / "model.json")["signature"]["task"]
    metric, sign = ("accuracy", ">=") if task == "classification" else ("mae", "<=")
    return [f"{metric} {sign} {alias} on {new['test']}"]
