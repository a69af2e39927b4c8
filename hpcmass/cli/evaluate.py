"""`hpcmass evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.console import dump, table
from hpcmass.cli.options import project_option


@click.command("evaluate")
@click.argument("model")
@click.argument("dataset")
@click.option(
    "--picture", metavar="FILE.png", help="Write the confusion matrix and learning curves as a picture."
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.option("--slice", "slices", multiple=True, metavar="FIELD", help="Also by the values of this field.")
@click.option(
    "--noise",
    multiple=True,
    type=float,
    metavar="AMOUNT",
    help="Also with noise of so many standard deviations on the inputs (repeatable).",
)
@click.option(
    "--missing",
    multiple=True,
    type=float,
    metavar="SHARE",
    help="Also with this share of the inputs' values missing, filled by their mean (repeatable).",
)
@click.option("--latency", is_flag=True, help="Also time and memory of a call, by batch size.")
@click.option("--against", metavar="MODEL", help="Compare with this model, on the same samples.")
@click.option("--record", is_flag=True, help="Keep the result beside the version in the catalogue.")
@project_option
def command(
    model: str,
    dataset: str,
    picture: str | None,
    as_json: bool,
    slices: tuple[str, ...],
    noise: tuple[float, ...],
    missing: tuple[float, ...],
    latency: bool,
    against: str | None,
    record: bool,
    project_root: str | None,
) -> None:
    """Evaluate a model on a dataset, with 95 % intervals.

    MODEL is a version in the catalogue (NAME, NAME@3, NAME@production), a run's name, or a folder.
    `mpiexec -n 4 hpcmass evaluate ...`, or srun in a Slurm job, shares the samples among the ranks, with the
    same result.
    """
    if record and picture:
        raise click.UsageError("--picture shows a run's curves, --record keeps a version's result: use one")
    from hpcmass.evaluate import Asked
    from hpcmass.workflow.ranked import all_ranks

    asked, kept = Asked(slices, noise, missing, latency), None
    with all_ranks() as ranks:
        if record:
            from hpcmass.workflow.promote import record_evaluation

            evaluation, kept = record_evaluation(
                model, dataset, project_root, asked=asked, against=against, why="evaluate", ranks=ranks
            )
        else:
            from hpcmass.workflow.models import evaluate_model

            drawn = Path(picture) if picture else None
            evaluation = evaluate_model(
                model, dataset, project_root, picture=drawn, asked=asked, against=against, ranks=ranks
            )
        if ranks is not None and ranks.rank:
            return
    if as_json:
        dump(evaluation.to_json())
        return
    for title, header, rows in evaluation.tables():
        table(rows, header, title)
    click.echo(evaluation.headline(Path(dataset).name))
    if kept is not None:
        click.echo(f"kept as evaluation {kept.number} of {kept.name}@{kept.version}")
