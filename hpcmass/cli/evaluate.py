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
@click.option("--record", is_flag=True, help="Keep the result beside the version in the catalogue.")
@project_option
def command(
    model: str,
    dataset: str,
    picture: str | None,
    as_json: bool,
    slices: tuple[str, ...],
    record: bool,
    project_root: str | None,
) -> None:
    """Evaluate a model on a dataset, with 95 % intervals.

    MODEL is a version in the catalogue (NAME, NAME@3, NAME@production), a run's name, or a folder.
    """
    if record and picture:
        raise click.UsageError("--picture shows a run's curves, --record keeps a version's result: use one")
    kept = None
    if record:
        from hpcmass.workflow.promote import record_evaluation

        evaluation, kept = record_evaluation(model, dataset, project_root, slices=slices, why="evaluate")
    else:
        from hpcmass.workflow.models import evaluate_model

        drawn = Path(picture) if picture else None
        evaluation = evaluate_model(model, dataset, project_root, picture=drawn, slices=slices)
    if as_json:
        dump(evaluation.to_json())
        return
    for title, header, rows in evaluation.tables():
        table(rows, header, title)
    click.echo(evaluation.headline(Path(dataset).name))
    if kept is not None:
        click.echo(f"kept as evaluation {kept.number} of {kept.name}@{kept.version}")
