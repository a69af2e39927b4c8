"""All that is measured of a model on a dataset, as it was asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from hpcmass.evaluate.interfaces import Model
from hpcmass.evaluate.latency import Latency, latencies
from hpcmass.evaluate.measure import evaluate_scored
from hpcmass.evaluate.paired import Paired, compare_paired
from hpcmass.evaluate.perturb import with_perturbations
from hpcmass.evaluate.results import Evaluation
from hpcmass.evaluate.scores import Ranks, from_root
from hpcmass.evaluate.slices import with_slices
from hpcmass.train.interfaces import DatasetLike


@dataclass(frozen=True)
class Asked:
    """What is measured beside the metrics of all samples.

    Attributes:
        slices: Fields to slice by.
        noise: Amounts of noise, in standard deviations.
        missing: Probabilities of a value to be missing.
        latency: Whether time and memory by batch size.
    """

    slices: Sequence[str] = ()
    noise: Sequence[float] = ()
    missing: Sequence[float] = ()
    latency: bool = False


def evaluate_whole(
    model: Model,
    dataset: DatasetLike,
    asked: Asked = Asked(),
    *,
    against: tuple[str, Model] | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Measure a model on a dataset.

    Args:
        model: A loaded model.
        dataset: What it is measured on.
        asked: What more is to be measured.
        against: Another model, and what it is called, to be compared on the same samples.
        ranks: All ranks; None: this process alone. Latency is measured by rank 0.
    """
    found, scores = evaluate_scored(model, dataset, ranks=ranks)
    if asked.slices:
        found = with_slices(found, model, dataset, asked.slices, ranks=ranks)
    levels = [("noise", one) for one in asked.noise] + [("missing", one) for one in asked.missing]
    if levels:
        found = with_perturbations(found, model, dataset, levels, ranks=ranks)
    if asked.latency:
        timed = from_root(lambda: {"l": [one.to_json() for one in latencies(model, dataset)]}, ranks)
        found = dataclasses.replace(found, latency=tuple(Latency.from_json(one) for one in timed["l"]))
    if against is not None:
        name, other = against
        _, others = evaluate_scored(other, dataset, ranks=ranks)

        def made() -> dict[str, object]:
            assert scores is not None
            assert others is not None
            return compare_paired(scores, others, name).to_json()

        found = dataclasses.replace(found, paired=Paired.from_json(dict(from_root(made, ranks))))
    return found
