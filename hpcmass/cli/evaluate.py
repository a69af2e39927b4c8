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
@project_option
def command(model: str, dataset: str, picture: str | None, as_json: bool, project_root: str | None) -> None:
    """Evaluate a model on a dataset, with 95 % intervals.

    MODEL is a version in the catalogue (NAME, NAME@3, NAME@production), a run's name, or a folder.
    """
    from hpcmass.workflow.models import evaluate_model

    evaluation = evaluate_model(model, dataset, project_root, picture=Path(picture) if picture else None)
    if as_json:
        dump(evaluation.to_json())
        return
    for title, header, rows in evaluation.tables():
        table(rows, header, title)
    click.echo(evaluation.headline(Path(dataset).name))
