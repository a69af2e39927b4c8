"""Load, override and write job and site files."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from hpcmass.config.document import Document, Key, read_document
from hpcmass.config.explain import explain
from hpcmass.config.job import Job
from hpcmass.config.overrides import apply, parse_sets, set_keys
from hpcmass.config.resources import Target
from hpcmass.config.site import Site
from hpcmass.errors import ConfigError, NameNotAllowed, NotFound
from hpcmass.files import check_name


def load_job(file: Path | str, sets: Sequence[str] = ()) -> Job:
    """Load and validate a job file, with overrides `key=value` applied.

    Paths relative to the job file (the recipe, files that the command names) become absolute.

    Raises:
        NotFound: The job file, or the recipe it names, does not exist.
        ConfigError: An unknown key, a wrong type, an impossible value: with file, line, key and what was
            expected.
    """
    file = Path(file)
    document = read_document(file)
    overrides = parse_sets(sets)
    job = _validate(document, apply(document.values, overrides), overrides)
    if job.recipe is not None:
        recipe = (file.parent / job.recipe).resolve()
        if not recipe.is_file():
            raise NotFound(f"the recipe '{job.recipe}' does not exist", where=document.where(("recipe",)))
        job = job.model_copy(update={"recipe": str(recipe)})
    if job.command is not None:
        job = job.model_copy(update={"command": _beside(file.parent, job.command, document)})
    return job


def as_job(job: Job | Path | str, sets: Sequence[str] = ()) -> Job:
    """A job, or the one of a job file, with overrides `key=value` applied.

    Raises:
        NotFound, ConfigError: As for `load_job`.
    """
    if not isinstance(job, Job):
        return load_job(job, sets)
    return job_from_values(apply(job.model_dump(exclude_none=True), parse_sets(sets))) if sets else job


def _beside(folder: Path, command: str | list[str], document: Document) -> list[str]:
    """The words of a command, cut as a shell would; those that name files beside the job file are absolute."""
    try:
        words = shlex.split(command) if isinstance(command, str) else command
    except ValueError as error:
        raise ConfigError(
            f"'command' cannot be cut into words: {error}", where=document.where(("command",))
        ) from None
    if not words:
        raise ConfigError("'command' has no words", where=document.where(("command",)))
    return [str((folder / word).resolve()) if (folder / word).is_file() else word for word in words]


def job_from_values(values: Mapping[str, Any], where: str = "job") -> Job:
    """Validate nested values as a job (as from a run folder's `job.toml`, or from Python)."""
    return _validate(Document(Path(where), dict(values), {}), dict(values), {})


def read_run_job(file: Path) -> Job:
    """The job of a run folder's `job.toml`, as it was resolved: its paths stay as they stand there.

    Raises:
        NotFound: There is no such file.
        ConfigError: It is damaged.
    """
    return job_from_values(read_document(file).values, str(file))


def job_with(job: Job, overrides: Mapping[str, Any]) -> Job:
    """A job with values set; a name without a dot is a name of `[params]`, None brings the default back.

    Raises:
        ConfigError: A key does not exist, or a value does not fit.
    """
    dotted = {key if "." in key else f"params.{key}": value for key, value in overrides.items()}
    values = set_keys(job.model_dump(exclude_none=True), dotted)
    return _validate(Document(Path("job"), values, {}), values, dotted)


def job_to_toml(job: Job) -> str:
    """The job as TOML with every key that has a value."""
    import tomli_w

    return tomli_w.dumps(_without_none(job.model_dump(mode="json")))


def load_site(file: Path | str | None, default: Path | None = None) -> Site:
    """Load and validate a site file: `file`, else that of `HPCMASS_SITE`, else `default`, else this machine.

    Raises:
        NotFound: The file does not exist.
        ConfigError: It is wrong.
    """
    file = file or os.environ.get("HPCMASS_SITE") or default
    if file is None:
        return Site.local()
    document = read_document(Path(file))
    try:
        site = Site.model_validate(document.values)
    except ValidationError as error:
        raise explain(error, Site, document.where) from None
    targets = dict(site.targets)
    for name, target in site.targets.items():
        if target.environment is not None:
            archive = (Path(file).parent / target.environment).resolve()
            targets[name] = target.model_copy(update={"environment": str(archive)})
        targets[name] = _image_beside(targets[name], Path(file).absolute().parent)
    return site.model_copy(update={"targets": targets})


def _image_beside(target: Target, folder: Path) -> Target:
    """The target with a container image that is a relative path made absolute, beside the site file."""
    image = target.container
    if image is None or image.startswith(("/", "$")) or "://" in image:
        return target
    place = Path(image).expanduser() if image.startswith("~") else folder / image
    return target.model_copy(update={"container": os.path.normpath(place)})


def site_to_toml(site: Site) -> str:
    """The site as TOML with every key that has a value and a meaning for the kind of its target."""
    import tomli_w

    values = _without_none(site.model_dump(mode="json"))
    for name, target in site.targets.items():
        values["targets"][name] = {k: v for k, v in values["targets"][name].items() if target.knows(k)}
    return tomli_w.dumps(values)


def job_differences(old: Job, new: Job, *, ignore: Sequence[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two jobs differ, with the old and the new value.

    Args:
        old: One job.
        new: The other.
        ignore: Keys or tables (`resources`, `train.backend`) that may differ.
    """
    first, second = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    keys = sorted(first.keys() | second.keys())
    skip = tuple(ignore)
    return {
        key: (first.get(key), second.get(key))
        for key in keys
        if first.get(key) != second.get(key) and not any(key == s or key.startswith(s + ".") for s in skip)
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {} if value is None or value == {} else {prefix[:-1]: value}


def _validate(document: Document, values: dict[str, Any], overrides: Mapping[str, Any]) -> Job:
    def where(key: Key) -> str:
        dotted = ".".join(map(str, key))
        for name in overrides:
            if dotted == name or dotted.startswith(name + ".") or name.startswith(dotted + "."):
                return f"--set {name}"
        return document.where(key)

    try:
        job = Job.model_validate(values)
    except ValidationError as error:
        raise explain(error, Job, where) from None
    try:
        check_name(job.name, "job name")
    except NameNotAllowed as error:
        raise NameNotAllowed(error.message, where=where(("name",)), hint=error.hint) from None
    _check_space(job, where)
    return job


def _check_space(job: Job, where: Any) -> None:
    """Hold the keys of `sweep.space` against the job's own keys, and `when` against earlier dimensions."""
    from hpcmass.config.explain import nearest, valid_names

    if job.sweep is None:
        return
    seen: list[str] = []
    for name, dimension in job.sweep.space.items():
        key: Key = ("sweep", "space", name)
        *table, last = name.split(".")
        free = (
            not table
            or table[0] == "params"
            or name.startswith(("train.optimizer_args.", "train.schedule.args."))
        )
        model: type[BaseModel] = Job
        if not free:
            known = sorted(valid_names(model, tuple(table))) if table[0] in Job.model_fields else []
            if last not in known or table[0] in ("sweep", "name", "recipe", "data"):
                like = nearest(name, [f"{t}.{f}" for t in ("train",) for f in valid_names(Job, (t,))])
                raise ConfigError(
                    f"'sweep.space.{name}' is no key that a trial can set",
                    where=where(key),
                    hint=f"did you mean '{like}'?"
                    if like
                    else "use train.KEY, or a name of [params] without a dot",
                )
        for other in dimension.when or {}:
            if other not in seen:
                raise ConfigError(
                    f"'sweep.space.{name}.when' names '{other}', which no earlier dimension has",
                    where=where((*key, "when")),
                    hint=f"put '{other}' before '{name}'; before it stand: {', '.join(seen) or 'none'}",
                )
        seen.append(name)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
