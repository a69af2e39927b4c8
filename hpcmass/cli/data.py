"""`hpcmass data show|verify|explain`, and what writes (`data_writing.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hpcmass.cli import data_writing
from hpcmass.cli.console import day, dump, facts, size, table

if TYPE_CHECKING:
    from hpcmass.data import Field, Manifest


@click.group("data")
def command() -> None:
    """Show, verify or explain a dataset, add to it, or cut it anew."""


@command.command("show")
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="The manifest as JSON.")
def show(dataset: str, as_json: bool) -> None:
    """Show the fields, statistics, shards and origin of a dataset."""
    from hpcmass.workflow.sharding import datasets_below
    from hpcmass.workflow.writing import earlier_states

    for path, manifest in datasets_below(dataset):
        if as_json:
            dump(manifest.to_json())
            continue
        facts(
            {
                "dataset": path,
                "id": manifest.id,
                "split": manifest.split,
                "samples": manifest.samples,
                "shards": f"{len(manifest.shards)}, {size(sum(s.bytes for s in manifest.shards))}",
                "created": day(manifest.created),
                "cut": {key: said for key, said in manifest.cut.items() if key != "rank_samples"},
                "before": earlier_states(manifest),
            }
        )
        stored = {f.name: _stored(manifest, f) for f in manifest.fields} if manifest.compressed else {}
        table(
            [
                (
                    *(f.name, f.role, f.dtype, _shape(f), *_statistics(f)),
                    *([stored[f.name]] if stored else []),
                )
                for f in manifest.fields
            ],
            [
                *["field", "role", "dtype", "shape", "min", "max", "mean", "std", "classes"],
                *(["stored"] if stored else []),
            ],
        )


def _stored(manifest: Manifest, field: Field) -> str:
    """How a field is compressed, such as `gzip-4, 10 a chunk, 3.1 to 1`."""
    chunks = [shard.chunks[field.name] for shard in manifest.shards if field.name in shard.chunks]
    if not chunks:
        return "plain"
    ratio = (
        field.row_bytes
        * sum(one.rows(field) for one in manifest.shards)
        / max(1, sum(one.bytes for one in chunks))
    )
    return f"{chunks[0].compression}, {chunks[0].samples} a chunk, {ratio:.1f} to 1"


def _shape(field: Field) -> str:
    """Shape of a sample; of a ragged field with its lengths, such as `2…512 (37 in the mean)`."""
    if not field.ragged:
        return "x".join(map(str, field.shape)) or "scalar"
    lengths = field.stats["lengths"]
    said = f"{lengths['min']}…{lengths['max']} (mean {lengths['mean']:.4g})"
    return " x ".join([said, *map(str, field.shape)])


def _statistics(field: object) -> tuple[object, ...]:
    stats = getattr(field, "stats", None) or {}
    classes = getattr(field, "classes", None)
    return (*(stats.get(name) for name in ("min", "max", "mean", "std")), len(classes) if classes else None)


@command.command("verify")
@click.argument("dataset")
def verify(dataset: str) -> None:
    """Check every shard against its size, checksum and structure."""
    from hpcmass.workflow.sharding import datasets_below, verify_or_raise

    for path, _ in datasets_below(dataset):
        shards, read_bytes = verify_or_raise(path)
        click.echo(f"{path}: {shards} shards, {size(read_bytes)}, all fit their checksums")


@command.command("explain")
@click.argument("dataset")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Samples a batch."
)
@click.option(
    "--order", type=click.Choice(["global", "block", "sequential"]), default="global", show_default=True,
    help="The order to read in.",
)  # fmt: skip
@click.option(
    "--read", type=click.Choice(["auto", "map", "pread", "block", "direct", "memory"]), default="auto",
    show_default=True,
    help="A way of reading to try instead of the one that fits.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def explain(dataset: str, batch_size: int, order: str, read: str, as_json: bool) -> None:
    """Say how a dataset is read from this node, why, and how quickly: what is expected and what is measured.

    Reads for two seconds.
    """
    from hpcmass.workflow.sharding import explained

    for path, sentences, values in explained(dataset, batch_size, order, read):
        if as_json:
            dump({"dataset": str(path), **values})
        else:
            facts({"dataset": path, **sentences})


for writes in (data_writing.append, data_writing.reshard, data_writing.commit):
    command.add_command(writes)
