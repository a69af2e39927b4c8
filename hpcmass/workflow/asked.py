"""What a submit asks for, resolved and held against the target before anything is written."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcmass.config import Job, Layout, Project, Site, Target, as_job, job_with, layout_of, load_site
from hpcmass.errors import ConfigError, NotFound
from hpcmass.runs import RunFolder
from hpcmass.train.script import fill_command
from hpcmass.workflow.targets import target_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Asked:
    """Runs to submit as one Slurm job (or job array) to one target.

    Attributes:
        name: The job's name: that of the run, or of the array's runs without their number.
        jobs, runs: One each, or one an element.
        indices: The elements' numbers.
        array: Whether it is an array.
    """

    name: str
    site: Site
    target_name: str
    target: Target
    layout: Layout
    jobs: tuple[Job, ...]
    runs: tuple[RunFolder, ...]
    indices: tuple[int, ...]
    array: bool

    def only(self, numbers: Sequence[int]) -> Asked:
        """The same with some of the runs."""
        return dataclasses.replace(
            self,
            jobs=tuple(self.jobs[n] for n in numbers),
            runs=tuple(self.runs[n] for n in numbers),
            indices=tuple(self.indices[n] for n in numbers),
        )

    def check_data(self, project: Project) -> None:
        """Refuse a dataset that is not there, rather than after hours in the queue.

        Raises:
            NotFound: There is no such folder.
        """
        for job in self.jobs:
            for role in ("train", "valid", "test"):
                value = getattr(job.data, role)
                for path in [value] if isinstance(value, str) else value or []:
                    if not project.data_path(path).is_dir():
                        raise NotFound(
                            f"there is no dataset '{path}'",
                            where=f"data.{role}",
                            hint="paths are relative to the project folder; make one with: hpcmass shard",
                        )


def ask(
    job: Job | Path | str,
    project: Project,
    *,
    site_file: str | Path | None,
    target: str | None,
    run_name: str | None,
    sets: Sequence[str],
    array: str | None,
) -> Asked:
    """Resolve job, site, target, layout and runs.

    Raises:
        ConfigError: The target is no Slurm target, or cannot give what is asked for.
        NotFound: A file does not exist.
    """
    job = as_job(job, sets)
    site = load_site(site_file, project.site_file)
    if target is not None:
        job = job.model_copy(update={"resources": job.resources.model_copy(update={"target": target})})
    chosen = target_of(job, site)
    name = job.resources.target or site.default_target
    if chosen.kind != "slurm":
        raise ConfigError(
            f"target '{name}' of site '{site.name}' is not run by Slurm",
            where="--site" if site_file is None else site_file,
            hint="name a site file with Slurm targets (--site FILE, or 'site' in hpcmass.toml); "
            "without Slurm: hpcmass train JOB",
        )
    job = job.model_copy(update={"resources": job.resources.model_copy(update={"target": name})})
    run_name = run_name or job.name
    values = [] if array is None else array_values(array)
    jobs = [_element(job, array.partition("=")[0].strip(), value) for value in values] if array else [job]
    layouts = {layout_of(each.resources, chosen, name=name) for each in jobs}
    if len(layouts) > 1:
        raise ConfigError(
            "the elements of an array ask for different resources",
            where="--array",
            hint="submit them one by one",
        )
    layout = layouts.pop()
    if site.max_array_size is not None and len(jobs) > site.max_array_size:
        raise ConfigError(
            f"{len(jobs)} elements are asked for, but site '{site.name}' allows {site.max_array_size}",
            where="--array",
            hint="submit several arrays, or search with: hpcmass sweep JOB",
        )
    for each in jobs:
        _check(each, layout)
    names = [f"{run_name}-{n}" for n in range(len(jobs))] if array else [run_name]
    return Asked(
        name=run_name,
        site=site,
        target_name=name,
        target=chosen,
        layout=layout,
        jobs=tuple(jobs),
        runs=tuple(RunFolder(project.run_path(each).absolute()) for each in names),
        indices=tuple(range(len(jobs))),
        array=array is not None,
    )


def array_values(text: str) -> list[Any]:
    """The values of `KEY=V1,V2,V3`, each as `--set` would read it; `KEY=[…]` is a TOML list of them.

    Raises:
        ConfigError: There is no key or no value.
    """
    key, equals, listed = text.partition("=")
    if not equals or not key.strip() or not listed.strip():
        raise ConfigError(
            f"'{text}' is no array", where="--array", hint="write --array train.lr=0.1,0.01,0.001"
        )
    inner = listed.strip()
    for whole in (inner, f"[{inner}]"):
        try:
            values = tomllib.loads(f"value = {whole}")["value"]
        except tomllib.TOMLDecodeError:
            continue
        if isinstance(values, list) and values:
            return values
    return [_value(part.strip()) for part in inner.split(",")]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _element(job: Job, key: str, value: Any) -> Job:
    try:
        return job_with(job, {key: value})
    except ConfigError as error:
        error.where = f"--array {key}={value}"
        raise


def _check(job: Job, layout: Layout) -> None:
    """What `train` would refuse at once is refused before it has waited in the queue.

    Raises:
        ConfigError: It would be.
    """
    if job.command is not None:
        fill_command(job.command, job.params)
        return
    if job.train.mode == "per-shard" and layout.nodes > 1:
        raise ConfigError(
            f"a per-shard job runs on one node, and {layout.nodes} are asked for",
            where="resources.nodes",
            hint="fewer ranks, or nodes = 1",
        )
    if job.train.mode != "per-shard" and layout.ranks > job.train.global_batch:
        raise ConfigError(
            f"{layout.ranks} ranks cannot share a global batch of {job.train.global_batch}",
            where="resources.ranks",
            hint="fewer ranks, or a larger train.global_batch",
        )
