"""Stages with gates: a version is evaluated, and its alias moves only where every requirement held.

The order is what keeps a promotion from being half: evaluations are records of their own, published as they
are made; the alias moves last, by comparing and setting, in one claim that carries requirements and findings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hpcmass.catalogue import (
    ANY,
    Catalogue,
    EvaluationRecord,
    Evaluations,
    GateResult,
    Requirement,
    Version,
    check_alias,
    parse_requirement,
)
from hpcmass.catalogue.aliases import AliasMove, Anything
from hpcmass.catalogue.gates import judge, refusal
from hpcmass.config import Project
from hpcmass.data import Dataset, open_dataset
from hpcmass.errors import CatalogueError, NotFound
from hpcmass.evaluate import Asked, Evaluation, evaluate_whole
from hpcmass.evaluate.models import cached
from hpcmass.evaluate.scores import Ranks, on_all
from hpcmass.train.model import load_bundle
from hpcmass.workflow.models import dataset_path
from hpcmass.workflow.projects import ProjectRef, project_of
from hpcmass.workflow.registry import open_catalogue

_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Promotion:
    """What became of a promotion.

    Attributes:
        version: The version.
        alias: The stage.
        move: The alias's move; None where it was there already.
        gates: What was required and found; all of it held.
    """

    version: Version
    alias: str
    move: AliasMove | None
    gates: tuple[GateResult, ...]


def promote(
    model: str,
    to: str,
    project: ProjectRef = None,
    *,
    require: Sequence[str] = (),
    why: str = "",
    expect: int | Anything | None = ANY,
) -> Promotion:
    """Evaluate a version on what the requirements name, and move an alias to it if all of them hold.

    Requirements are those of `[stages.ALIAS]` of the project file, and those given. Every version and data set
    is evaluated once, and the result kept as an evaluation of the version, whether it is promoted or not.

    Args:
        model: `NAME@VERSION`, or any other reference.
        to: The alias, such as `production`.
        project: The project.
        require: Such as `accuracy >= 0.97 on test` or `accuracy >= production - 0.005 on test`; see
            `hpcmass.catalogue.gates`.
        why: The reason, kept in the history.
        expect: The version that the alias must have (None: not there yet); left out: the one that it has now,
            so that nobody else's move meanwhile is undone.

    Raises:
        CatalogueError: A requirement did not hold (the message has what was found, `data["gates"]` all of it),
            is none, or the alias was moved meanwhile.
        NotFound: There is no such version or data set.
    """
    found = project_of(project)
    catalogue = open_catalogue(found)
    version = catalogue.get(model)
    asked = [parse_requirement(one) for one in (*found.requirements(check_alias(to)), *require)]
    asked = list({one.text: one for one in asked}.values())
    if not asked:
        raise CatalogueError(
            "nothing is required",
            where=f"{version.name}@{to}",
            hint='say --require "accuracy >= 0.97 on test", or [stages.production] in hpcmass.toml; '
            "to move the alias without a gate: hpcmass catalogue alias",
        )
    aliases = catalogue.aliases(version.name)
    now = aliases.get(to) if expect is ANY else expect
    judged = _Judge(catalogue, found, version, to, aliases)
    results = judged.results(asked)
    if not all(one.held for one in results):
        raise refusal(results, version.ref, to)
    if now == version.version and catalogue.aliases(version.name).get(to) == now:  # it was not moved meanwhile
        return Promotion(version, to, None, tuple(results))
    move = catalogue.alias(
        version.name,
        to,
        version.version,
        why=why or "promote",
        expect=now,
        gates=[one.to_json() for one in results],
    )
    return Promotion(version, to, move, tuple(results))


class _Judge:
    """Evaluates each version once a data set, for all requirements on it."""

    def __init__(
        self, catalogue: Catalogue, project: Project, version: Version, to: str, aliases: dict[str, int]
    ) -> None:
        self._catalogue, self._project, self._version, self._to = catalogue, project, version, to
        self._aliases = aliases
        self._open: dict[str, Dataset] = {}
        self._records: dict[tuple[int, str, int | None], EvaluationRecord] = {}

    def results(self, asked: Sequence[Requirement]) -> list[GateResult]:
        bases = {one.against: self._base(one.against) for one in asked if one.against is not None}
        for one in asked:  # all data sets, before the first hour of evaluation
            self._dataset(one.data)
        made: dict[str, GateResult] = {}
        # A comparison first: what it measures is good for the other requirements too.
        for one in sorted(asked, key=lambda one: not one.significantly):
            same = self._dataset(one.data).id
            together = [other for other in asked if self._dataset(other.data).id == same]
            base = bases.get(one.against) if one.against is not None else None
            record = self._record(self._version, one.data, together, base if one.significantly else None)
            held_against = None if base is None else self._record(base, one.data, together)
            made[one.text] = judge(one, record, held_against)
        return [made[one.text] for one in asked]

    def _base(self, alias: str) -> Version | None:
        """The version that an alias has; None where it is the one promoted to, and has none yet."""
        if alias not in self._aliases and alias != self._to:
            self._catalogue.get(f"{self._version.name}@{alias}")  # says what aliases there are
        number = self._aliases.get(alias)
        return None if number is None else self._catalogue.get(f"{self._version.name}@{number}")

    def _dataset(self, data: str) -> Dataset:
        if data not in self._open:
            self._open[data] = open_dataset(meant_by(data, self._version, self._project))
        return self._open[data]

    def _record(
        self, version: Version, data: str, together: Iterable[Requirement], against: Version | None = None
    ) -> EvaluationRecord:
        dataset = self._dataset(data)
        whole = (version.version, dataset.id, None)
        key = whole if against is None else (version.version, dataset.id, against.version)
        if key not in self._records:
            why = f"promote {self._version.ref} to {self._to}"
            record = evaluated(
                self._catalogue, version, dataset, data, asked_by(together, dataset), why, against=against
            )[1]
            assert record is not None
            self._records[key] = record
            self._records.setdefault(whole, record)
        return self._records[key]


def evaluated(
    catalogue: Catalogue,
    version: Version,
    dataset: Dataset,
    data: str,
    asked: Asked,
    why: str = "",
    *,
    against: Version | None = None,
    ranks: Ranks | None = None,
) -> tuple[Evaluation, EvaluationRecord | None]:
    """Evaluate a version and keep the result beside it.

    Args:
        catalogue: Has the version.
        version: What is evaluated.
        dataset: What it is evaluated on.
        data: As it was named.
        asked: What is measured beside the metrics of all samples.
        why: What it is for.
        against: Another version, to be compared on the same samples.
        ranks: All ranks, where several evaluate together; rank 0 alone keeps the result, and has the record.
    """
    model = on_all(lambda: load_bundle(cached(catalogue, version)), ranks)
    other = None
    if against is not None:
        other = (against.ref, on_all(partial(load_bundle, cached(catalogue, against)), ranks))
    result = evaluate_whole(model, dataset, asked, against=other, ranks=ranks)
    if ranks is not None and ranks.rank:
        return result, None
    evaluations = Evaluations(catalogue.path)
    return result, evaluations.add(version, result.to_json(), dataset=dataset.id, data=data, why=why)


def asked_by(requirements: Iterable[Requirement], dataset: Dataset) -> Asked:
    """What has to be measured for requirements: fields to slice by, `noise == 0.1`, `batch == 1` and the like.

    Raises:
        CatalogueError: An amount is no number.
    """
    slices: list[str] = []
    levels: dict[str, list[float]] = {"noise": [], "missing": []}
    latency = False
    for one in requirements:
        if one.slice is None:
            continue
        field, value = one.slice
        if field in dataset.fields or field not in (*levels, "batch"):
            slices.append(field)
        elif field == "batch":
            latency = True
        else:
            try:
                levels[field].append(float(value))
            except ValueError:
                raise CatalogueError(f"{value!r} is no amount of {field}", where=one.text) from None
    noise, missing = (list(dict.fromkeys(levels[kind])) for kind in ("noise", "missing"))
    return Asked(list(dict.fromkeys(slices)), noise, missing, latency)


def record_evaluation(
    model: str,
    data: str,
    project: ProjectRef = None,
    *,
    asked: Asked | None = None,
    against: str | None = None,
    why: str = "",
    ranks: Ranks | None = None,
) -> tuple[Evaluation, EvaluationRecord | None]:
    """Evaluate a version of the catalogue, and keep the result as an evaluation of it.

    Args:
        model: `NAME@VERSION`, or any other reference of the catalogue.
        data: A data set's folder, or `train`, `valid` or `test` of the version's job.
        project: The project.
        asked: What is measured beside the metrics of all samples.
        against: Another version, to be compared on the same samples.
        why: What it is for.
        ranks: As for `evaluated`.
    """

    def opened() -> tuple[Catalogue, Version, Version | None, Dataset]:
        found = project_of(project)
        catalogue = open_catalogue(found)
        version = catalogue.get(model)
        other = None if against is None else catalogue.get(against)
        return catalogue, version, other, open_dataset(meant_by(data, version, found))

    catalogue, version, other, dataset = on_all(opened, ranks)
    return evaluated(catalogue, version, dataset, data, asked or Asked(), why, against=other, ranks=ranks)


def meant_by(data: str, version: Version, project: Project) -> Path:
    """The folder of a data set: `train`, `valid` and `test` are what the version's job means by them.

    Where its job names none for that split, it is the split beside its training data; any other word is a
    folder, from the working folder or from the project folder.

    Raises:
        NotFound: There is no such folder.
        CatalogueError: The job names several.
    """
    path = None
    job = version.lineage.get("job")
    named = job.get("data") if isinstance(job, dict) else None
    if data in _SPLITS and isinstance(named, dict):
        of_split, train = named.get(data), named.get("train")
        if isinstance(of_split, list) and len(of_split) > 1:
            raise CatalogueError(
                f"the job of {version.ref} names several data sets for {data}",
                where=data,
                hint=f"name one: {', '.join(map(str, of_split))}",
            )
        if isinstance(of_split, list):
            of_split = of_split[0] if of_split else None
        if isinstance(of_split, str):
            path = project.data_path(of_split)
        elif isinstance(train, str) and Path(train).name == "train":
            beside = project.data_path(train).with_name(data)
            path = beside if beside.is_dir() else None
    if path is None:
        path = dataset_path(data, project)
    if not path.is_dir():
        raise NotFound(
            f"there is no data set {data!r}",
            where=path,
            hint="name a data set's folder, or train, valid or test where the version's job has such",
        )
    return path
