"""`hpcmass catalogue list` and `search`: many versions, as a table, JSON or comma-separated values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from hpcmass.cli.console import day, size
from hpcmass.cli.options import project_option
from hpcmass.cli.tables import stream_csv, stream_json, stream_table

if TYPE_CHECKING:
    from hpcmass.catalogue.search import Stream

format_option = click.option(
    "--format", "shape", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)


def add_search(group: click.Group) -> None:
    """Add the verbs to the group."""
    group.add_command(list_versions)
    group.add_command(search)


@click.command("list")
@click.argument("name", required=False)
@click.option(
    "--limit", type=click.IntRange(0), default=100, show_default=True, help="The newest so many; 0: all."
)
@format_option
@project_option
def list_versions(name: str | None, limit: int, shape: str, project_root: str | None) -> None:
    """List models, or the versions of one; of many the newest."""
    from hpcmass.workflow.registry import newest

    found, total = newest(name, project_root, limit or None)
    if _written(found, shape):
        return
    stream_table(
        ((v.ref, v.aliases, v.metrics, size(v.bytes), day(v.created), v.description) for v in found),
        ["version", "aliases", "metrics", "size", "created", "description"],
    )
    if found.count < total:
        click.echo(f"the newest {found.count} of {total}; --limit 0 shows all")


@click.command("search")
@click.argument("expression", required=False)
@click.option("--sort", metavar="FACT,…", default="", help="Sort by these; '-' before one: downwards.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="At most so many; 0: all.")
@format_option
@project_option
def search(expression: str | None, sort: str, limit: int, shape: str, project_root: str | None) -> None:
    """Find versions by what is known of them.

    EXPRESSION compares metrics, parameters of the job and other facts:

    \b
    "recipe == 'mnist' and accuracy > 0.95 and params.lr < 0.1"
    "name in ['a', 'b'] and created >= '2026-12-01' and created > '7 days ago'"
    "'production' in aliases or datasets.train == '3f…' or parent == 'mnist@2'"
    "tags.team == 'vision' and 'demo' in tags and 'mnist@2' in ancestors"
    """  # noqa: D301
    from hpcmass.catalogue.query import short
    from hpcmass.workflow.registry import open_catalogue

    by = [one for one in sort.split(",") if one.strip()]
    found = open_catalogue(project_root).stream(expression, sort=by, limit=limit or None)
    if _written(found, shape):
        return
    shown = {"name", "version", "alias", "created", "bytes", "tag", "ancestor"}
    fields = [one for one in found.fields if one not in shown and not one.startswith("dataset")]

    def rows() -> Iterator[Sequence[Any]]:
        for one in found:
            yield (one.ref, one.aliases, *map(one.get, fields), size(one.bytes), day(one.created))

    stream_table(rows(), ["version", "aliases", *map(short, fields), "size", "created"])


def _written(found: Stream, shape: str) -> bool:
    """Print what was found for programs, if it is for them."""
    if shape == "json":
        stream_json(one.to_json() for one in found)
    elif shape == "csv":
        stream_csv(lambda: (one.to_json() for one in found))
    return shape != "table"
