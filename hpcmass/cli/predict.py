"""`hpcmass predict`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.console import table
from hpcmass.cli.options import project_option

_FILES = (".json", ".csv", ".npz")


@click.command("predict")
@click.argument("model")
@click.argument("inputs", metavar="INPUT")
@click.option(
    "--out",
    metavar="PATH",
    help="Write all: a .json, .csv or .npz file; of a dataset also a folder.",
)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(0), help="Rows shown.")
@click.option(
    "--format", "kind", type=click.Choice(["hdf5", "parquet"]), help="Of a folder [default: hdf5, a dataset]."
)
@click.option(
    "--keep",
    multiple=True,
    metavar="FIELD",
    help="Of a folder: a field that goes along (repeatable) [default: those of role meta].",
)
@click.option("--workers", type=click.IntRange(1), help="Of a folder: processes a rank [default: the cores].")
@click.option(
    "--part-samples",
    type=click.IntRange(1),
    help="Of a folder: samples that are finished at once [default: by their size].",
)
@project_option
def command(
    model: str,
    inputs: str,
    out: str | None,
    limit: int,
    kind: str | None,
    keep: tuple[str, ...],
    workers: int | None,
    part_samples: int | None,
    project_root: str | None,
) -> None:
    """Predict for the samples of a file or a dataset.

    MODEL is a version in the catalogue (NAME, NAME@3, NAME@production), a run's name, or a folder. INPUT is
    a .npy, .npz, .csv, .parquet, .json or image file, or a dataset's folder.

    With --out FOLDER a dataset of any size is predicted for by several processes, shard by shard; interrupted,
    the same command goes on. `mpiexec -n 4 hpcmass predict ...`, or srun in a Slurm job, shares the work.
    """  # fmt: skip
    if out is not None and Path(out).suffix.lower() not in _FILES:
        _into_folder(model, inputs, out, kind or "hdf5", keep, workers, part_samples, project_root)
        return
    if kind or keep or workers or part_samples:
        raise click.UsageError("--format, --keep, --workers and --part-samples need --out FOLDER")
    from hpcmass.workflow.models import predict

    predictions = predict(model, inputs, project_root)
    header, rows = predictions.table(limit)
    table(rows, header)
    if predictions.n > limit:
        click.echo(f"{predictions.n - limit} more; --out FILE.csv writes all")
    if out:
        predictions.write(Path(out))
        click.echo(f"{predictions.n} predictions in {out}")


def _into_folder(
    model: str,
    dataset: str,
    out: str,
    kind: str,
    keep: tuple[str, ...],
    workers: int | None,
    part_samples: int | None,
    project_root: str | None,
) -> None:
    from hpcmass.cli.progress import Bar
    from hpcmass.workflow.predicting import predict_into
    from hpcmass.workflow.sharding import speaks_here

    options = {"kind": kind, "keep": keep or None, "workers": workers, "part_samples": part_samples}
    if not speaks_here():
        predict_into(model, dataset, Path(out), project_root, **options)  # type: ignore[arg-type]
        return
    with Bar("predicting", 0, "samples") as bar:
        plan, _ = predict_into(model, dataset, Path(out), project_root, progress=bar.to, **options)  # type: ignore[arg-type]
    click.echo(f"{plan.samples} predictions in {out} ({plan.parts} {'shards' if kind == 'hdf5' else 'files'})")
