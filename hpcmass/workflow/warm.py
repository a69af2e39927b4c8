"""What a study may know before its first trial: earlier studies' trials, and the catalogue's versions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcmass.catalogue import Catalogue, Version
from hpcmass.config import Job, Project, job_with, load_job
from hpcmass.errors import HpcmassError, NotFound
from hpcmass.sweep.facts import FACTS
from hpcmass.sweep.log import study_trials
from hpcmass.sweep.warm import WarmStart, as_known
from hpcmass.workflow.projects import find_study

_CATALOGUE = "catalogue:"
Found = tuple[str, Mapping[str, Any], Mapping[str, Any]]  # source, the run's job, what is known of the run


def gather(job: Job, project: Project, study: Path) -> WarmStart:
    """What `sweep.warm_start` names, as far as this study can learn from it.

    Args:
        job: The study's job.
        project: Where studies and the catalogue lie.
        study: The study's folder, whose own trials are not taken.

    Raises:
        NotFound: There is no such study or model.
    """
    assert job.sweep is not None
    warm = WarmStart()
    for source in job.sweep.warm_start:
        try:
            if source.startswith(_CATALOGUE):
                found = _versions(Catalogue(project.catalogue), source.removeprefix(_CATALOGUE))
            else:
                found = _trials(_study(source, project), source, job, study)
            for where, values, measured in found:
                known = as_known(job.sweep, where, values, measured)
                if known is None:
                    warm.left_out[source] = warm.left_out.get(source, 0) + 1
                else:
                    warm.taken.append(known)
        except NotFound as error:
            raise NotFound(f"'{source}': {error.message}", where="sweep.warm_start", hint=error.hint) from error
    return warm


def _study(name: str, project: Project) -> Path:
    beside = project.root / name
    return beside if (beside / "trials").is_dir() else find_study(name, project)


def _trials(folder: Path, source: str, job: Job, study: Path) -> Iterator[Found]:
    if folder.resolve() == study.resolve():
        raise NotFound("is this study itself", hint="name an earlier one")
    begun = load_job(folder / "job.toml")
    assert begun.sweep is not None
    assert job.sweep is not None
    for spec, outcome in study_trials(folder).pairs():
        if outcome is None or outcome.state != "complete":
            continue
        measured: dict[str, Any] = dict(outcome.measured)
        if outcome.value is not None:
            measured.setdefault(begun.sweep.objectives[0].name, outcome.value)
        for name in job.sweep.names:
            if name not in measured:
                measured[name] = _of_run(spec.run, name)
        yield f"{source} trial {spec.number}", job_with(begun, spec.overrides).model_dump(), measured


def _of_run(run: Any, name: str) -> float | None:
    """What an earlier study did not look at, but its trial's run folder still tells."""
    try:
        value = run.status().metrics.get(name)
        return FACTS[name](run) if value is None and name in FACTS else value
    except HpcmassError:
        return None


def _versions(catalogue: Catalogue, ref: str) -> Iterator[Found]:
    for version in [catalogue.get(ref)] if "@" in ref else catalogue.list(ref):
        job = version.lineage.get("job")
        yield f"{_CATALOGUE}{version.ref}", job if isinstance(job, Mapping) else {}, _measured(version)


def _measured(version: Version) -> dict[str, Any]:
    """By the names that a trial's validation has: those of the run come before those measured later."""
    measured: dict[str, Any] = {"bytes": float(version.bytes), "model_mb": version.bytes / 1e6}
    measured |= {n.removeprefix("valid_"): v for n, v in version.metrics.items() if n.startswith("valid_")}
    own = version.lineage.get("metrics")
    measured |= own if isinstance(own, Mapping) else {}
    return {n: v for n, v in measured.items() if isinstance(v, (int, float)) and math.isfinite(v)}
