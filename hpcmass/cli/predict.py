"""`hpcmass predict`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.console import table
from hpcmass.cli.options import project_option


@click.command("predict")
@click.argument("model")
@click.argument("inputs", metavar="INPUT")
@click.option("--out", metavar="FILE", help="Write all predictions: .json, .csv or .npz.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(0), help="Rows shown.")
@project_option
def command(model: str, inputs: str, out: str | None, limit: int, project_root: str | None) -> None:
    """Predict for the samples of a file.

    MODEL is a version in the catalogue (NAME, NAME@3, NAME@production), a run's name, or a folder. INPUT is
    a .npy, .npz, .csv, .parquet, .json or image file, or a dataset's folder.
    """
    from hpcmass.workflow.models import predict

    predictions = predict(model, inputs, project_root)
    header, rows = predictions.table(limit)
    table(rows, header)
    if predictions.n > limit:
        click.echo(f"{predictions.n - limit} more; --out FILE.csv writes all")
    if out:
        predictions.write(Path(out))
        click.echo(f"{predictions.n} predictions in {out}")
