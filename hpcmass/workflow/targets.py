"""Which of a site's targets a job is meant for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpcmass.config import Job, Resources, Site, Target, layout_of
from hpcmass.config.sweep import CategoricalDimension, Dimension
from hpcmass.errors import ConfigError

AUTO = "auto"  # to be chosen when a job is submitted


def target_of(job: Job, site: Site) -> Target:
    """The target that a job asks for.

    Raises:
        ConfigError: The site has no target of that name.
    """
    name = job.resources.target or site.default_target
    if name == AUTO and site.targets[site.default_target].kind == "local":
        name = site.default_target  # Without a scheduler there is nothing to choose between.
    if name == AUTO:
        raise ConfigError(
            "a target is chosen when a job is submitted, not when it runs",
            where="resources.target",
            hint="hpcmass submit JOB, or name a target",
        )
    return named_target(name, site, "resources.target")


def target_here(job: Job, site: Site, env: Mapping[str, str]) -> Target:
    """The target that a job runs on by now: in a Slurm job, without a name for it, that of the job's partition.

    Args:
        job: The job.
        site: The targets.
        env: The environment, as `os.environ`.

    Raises:
        ConfigError: The site has no target of the job's name.
    """
    usual = target_of(job, site)
    partition = env.get("SLURM_JOB_PARTITION")
    if job.resources.target is not None or partition is None or usual.kind != "slurm":
        return usual
    if usual.partition is None or partition in usual.partition.split(","):
        return usual
    others = [target for target in site.targets.values() if partition in (target.partition or "").split(",")]
    # Of a partition that the site file does not know, Slurm's own word on the job is all there is.
    return others[0] if others else Target(kind="local", launcher=usual.launcher)


def named_target(name: str, site: Site, where: str) -> Target:
    """The target of a name.

    Raises:
        ConfigError: The site has no target of that name.
    """
    if name not in site.targets:
        raise ConfigError(
            f"site '{site.name}' has no target '{name}'",
            where=where,
            hint=f"its targets: {', '.join(sorted(site.targets))}",
        )
    return site.targets[name]


def trial_targets(job: Job, site: Site) -> dict[str, Target]:
    """The targets on which the trials of a job's study run, by name.

    Raises:
        ConfigError: One does not exist, none is named, or one cannot take a trial.
    """
    assert job.sweep is not None
    item = trial_resources(job)
    drawn = job.sweep.space.get("resources.target")
    if drawn is not None:
        found = {
            str(name): named_target(str(name), site, "sweep.space.resources.target") for name in _choices(drawn)
        }
    elif job.sweep.targets is None:
        name = job.resources.target or site.default_target
        found = {name: target_of(job, site)}
    elif job.sweep.targets == "all":
        found = {name: target for name, target in site.targets.items() if _takes(item, target, name)}
        if not found:
            raise ConfigError(f"no target of site '{site.name}' can take a trial", where="sweep.targets")
    else:
        found = {name: named_target(name, site, "sweep.targets") for name in job.sweep.targets}
        if not found:
            raise ConfigError("names no target", where="sweep.targets", hint='leave it out, or say "all"')
    for name, target in found.items():
        if target.kind == "slurm":
            layout_of(item, target, name=name)
    return found


def trial_resources(job: Job) -> Resources:
    """What one trial of a job's study asks for."""
    assert job.sweep is not None
    nodes = job.resources.nodes if job.resources.nodes and job.resources.nodes <= job.sweep.ranks else None
    return job.resources.model_copy(update={"ranks": job.sweep.ranks, "nodes": nodes})


def check_item(item: Resources, targets: Mapping[str, Target]) -> None:
    """Refuse what no target can give to a trial.

    Raises:
        ConfigError: None can.
    """
    if item.target is not None and item.target not in targets:
        raise ConfigError(f"the study has no target '{item.target}'", where="resources.target")
    chosen = {name: one for name, one in targets.items() if item.target in (None, name)}
    for place, (name, target) in enumerate(chosen.items()):
        if target.kind != "slurm":
            return
        try:
            layout_of(item, target, name=name)
            return
        except ConfigError:
            if place == len(chosen) - 1:
                raise


def largest(space: Mapping[str, Dimension]) -> Iterator[Mapping[str, object]]:
    """The largest that each dimension of a space asks of the targets, one at a time."""
    for name, dimension in space.items():
        if not name.startswith("resources."):
            continue
        if isinstance(dimension, CategoricalDimension):
            yield from ({name: choice} for choice in dimension.choices)
        else:
            yield {name: dimension.high}


def _choices(dimension: Dimension) -> Sequence[object]:
    if not isinstance(dimension, CategoricalDimension):
        raise ConfigError(
            "a target is drawn from names", where="sweep.space.resources.target", hint='type = "categorical"'
        )
    return dimension.choices


def _takes(item: Resources, target: Target, name: str) -> bool:
    if target.kind != "slurm":
        return True
    try:
        layout_of(item, target, name=name)
    except ConfigError:
        return False
    return True
