"""`hpcmass data append|reshard|commit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hpcmass.cli.console import relative, size, table
from hpcmass.cli.shard import _names, _size


def _show(folder: str, manifest: object) -> None:
    from hpcmass.data import Manifest

    assert isinstance(manifest, Manifest)
    total = size(sum(one.bytes for one in manifest.shards))
    table(
        [(manifest.samples, len(manifest.shards), total, manifest.id[:12], relative(Path(folder)))],
        ["samples", "shards", "size", "id", "folder"],
    )


def _packing(command: Any) -> Any:
    """The options that say how new shards are compressed."""
    command = click.option(
        "--chunk-samples", type=click.IntRange(1), help="Samples a compressed chunk [default: as now]."
    )(command)
    return click.option(
        "--compression", metavar="NAME", default="keep",
        help="bitshuffle-lz4, gzip-4, lzf, zstd-3 or none [default: as DATASET has it].",
    )(command)  # fmt: skip


@click.command("append")
@click.argument("dataset")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--name", metavar="NAME", help="Name of the addition [default: a digest of the files].")
@click.option("--shards", type=click.IntRange(1), help="New shards [default: one for each 256 MiB].")
@click.option(
    "--input", "input_fields", callback=_names, metavar="COLUMN,...",
    help="Tables: the columns that are the field x.",
)  # fmt: skip
@click.option("--resize", callback=_size, metavar="HxW", help="Images: the size to bring all to.")
@_packing
def append(
    dataset: str, inputs: tuple[str, ...], name: str | None, shards: int | None, input_fields: list[str] | None,
    resize: tuple[int, int] | None, compression: str, chunk_samples: int | None,
) -> None:  # fmt: skip
    """Add files to a dataset, behind the samples that it has.

    INPUT is what `hpcmass shard` takes, with the dataset's fields, types and classes. Runs that have begun keep
    what they began with; new ones see all. Interrupted, the same command goes on.
    """
    from hpcmass.cli.progress import Bar
    from hpcmass.workflow.writing import append_files

    with Bar("appending", 0, "samples") as bar:
        manifest = append_files(
            dataset, inputs, name=name, shards=shards, input_fields=input_fields, resize=resize,
            compression=compression, chunk_samples=chunk_samples, progress=bar.to, note=_note,
        )  # fmt: skip
    _show(dataset, manifest)


@click.command("reshard")
@click.argument("dataset")
@click.argument("out")
@click.option("--shards", type=click.IntRange(1), help="Shards [default: one for each 256 MiB].")
@click.option("--shard-samples", type=click.IntRange(1), help="Samples a shard instead.")
@_packing
def reshard(
    dataset: str, out: str, shards: int | None, shard_samples: int | None, compression: str,
    chunk_samples: int | None,
) -> None:  # fmt: skip
    """Write a dataset anew into OUT, with shards of another size and its samples in the same order.

    Interrupted, the same command goes on; with other sizes it begins anew.
    """
    from hpcmass.cli.progress import Bar
    from hpcmass.workflow.writing import reshard_files

    with Bar("resharding", 0, "samples") as bar:
        manifest = reshard_files(
            dataset, out, shards=shards, shard_samples=shard_samples, compression=compression,
            chunk_samples=chunk_samples, progress=bar.to, note=_note,
        )  # fmt: skip
    _show(out, manifest)


@click.command("commit")
@click.argument("dataset")
@click.option("--name", metavar="NAME", help="The addition that is meant [default: the only one].")
def commit(dataset: str, name: str | None) -> None:
    """Publish what the ranks of a ShardWriter have written, where none of them could.

    A rank that never came, or has not finished, is named.
    """
    from hpcmass.workflow.writing import commit_ranks

    _show(dataset, commit_ranks(dataset, name))


def _note(sentence: str) -> None:
    click.echo(sentence, err=True)
