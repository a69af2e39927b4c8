"""`hpcmass shard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hpcmass.cli.console import relative, size, table


def _splits(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, float] | None:
    if value is None:
        return None
    try:
        pairs = [part.split("=") for part in value.split(",")]
        splits = {name.strip(): float(fraction) for name, fraction in pairs}
    except ValueError:
        raise click.BadParameter("write --split train=0.8,valid=0.1,test=0.1") from None
    if len(splits) < len(pairs):
        raise click.BadParameter("a split is named twice")
    return splits


def _names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    return [name.strip() for name in value.split(",")] if value else None


def _size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        height, width = (int(part) for part in value.lower().split("x"))
    except ValueError:
        raise click.BadParameter("write --resize 64x64 (height x width, in pixels)") from None
    return height, width


@click.command("shard")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, metavar="FOLDER", help="The dataset's folder; it must not exist yet.")
@click.option("--shards", type=click.IntRange(1), help="Shards a split [default: one for each 256 MiB].")
@click.option(
    "--strategy",
    default="even",
    show_default=True,
    type=click.Choice(["even", "random-cut", "stratified", "grouped", "contiguous"]),
    help="How samples are dealt to splits and shards.",
)
@click.option("--by", metavar="FIELD", help="The field that 'stratified' and 'grouped' go by.")
@click.option("--split", "splits", callback=_splits, metavar="NAME=SHARE,...", help="Splits and their shares.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--workers", type=click.IntRange(1), help="Processes a rank [default: the cores; 1 for several ranks]."
)
@click.option(
    "--compression", metavar="NAME", help="bitshuffle-lz4, gzip-4, lzf or zstd-3 [default: none, the quickest]."
)
@click.option(
    "--chunk-samples", type=click.IntRange(1),
    help="Samples a compressed chunk [default: by their size].",
)  # fmt: skip
@click.option("--input", "input_fields", callback=_names, metavar="FIELD,...", help="Fields that are inputs.")
@click.option(
    "--target", "target_fields", callback=_names, metavar="FIELD,...", help="Fields that are targets."
)
@click.option(
    "--category",
    "categories",
    callback=_names,
    metavar="FIELD,...",
    help="Inputs of words: each is a field of class numbers.",
)
@click.option("--meta", "meta_fields", callback=_names, metavar="FIELD,...", help="Fields that only go along.")
@click.option(
    "--resize", callback=_size, metavar="HxW", help="Images: bring all to this height and width (pixels)."
)
def command(inputs: tuple[str, ...], out: str, **options: Any) -> None:
    """Cut a data set into HDF5 shards.

    INPUT is a .npz, .npy (several as FIELD=FILE.npy), HDF5, CSV or Parquet file, or a folder of images with
    one folder a class. Every sample lands in exactly one shard; the same seed gives the same shards.

    Interrupted, the same command goes on. `mpiexec -n 4 hpcmass shard ...`, or srun in a Slurm job, shares the
    work among the ranks, over any number of nodes.
    """
    from hpcmass.cli.progress import Bar
    from hpcmass.workflow.sharding import shard, speaks_here

    if not speaks_here():
        shard(inputs, Path(out), **options)
        return
    with Bar("sharding", 0, "samples") as bar:
        manifests = shard(inputs, Path(out), progress=bar.to, note=bar.line, **options)
    table(
        [
            (
                m.split or "-",
                m.samples,
                len(m.shards),
                size(sum(s.bytes for s in m.shards)),
                m.id[:12],
                relative(where),
            )
            for where, m in manifests
        ],
        ["split", "samples", "shards", "size", "id", "folder"],
    )
    for where, m in manifests:
        for field in m.fields:
            if count := field.stats.get("nonfinite"):
                click.echo(
                    f"note: field {field.name} of {relative(where)} has {count} values that are NaN or infinite"
                )
