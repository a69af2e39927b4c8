"""`hpcmass catalogue …`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli import catalogue_care
from hpcmass.cli.catalogue_life import add_life
from hpcmass.cli.console import csv_table, day, dump, facts, size, table
from hpcmass.cli.options import project_option


@click.group("catalogue")
def command() -> None:
    """Register, list, alias, verify and load models."""


@command.command("register")
@click.argument("run")
@click.option("--name", metavar="NAME", help="Name of the model [default: the job's name].")
@click.option("--description", default="", help="One line for the people who find it.")
@click.option("--evaluate", "dataset", metavar="DATASET", help="Evaluate on this dataset and keep the metrics.")
@project_option
def register(
    run: str, name: str | None, description: str, dataset: str | None, project_root: str | None
) -> None:
    """Make the model of a completed run a version in the catalogue."""
    from hpcmass.workflow.models import register_run

    version = register_run(run, project_root, name=name, description=description, evaluate_on=dataset)
    click.echo(f"{version.name}@{version.version}")


@command.command("list")
@click.argument("name", required=False)
@click.option(
    "--limit", type=click.IntRange(0), default=100, show_default=True, help="The newest so many; 0: all."
)
@project_option
def list_versions(name: str | None, limit: int, project_root: str | None) -> None:
    """List models, or the versions of one; of many the newest."""
    from hpcmass.workflow.registry import newest

    found, total = newest(name, project_root, limit or None)
    table(
        [(v.ref, v.aliases, v.metrics, size(v.bytes), day(v.created), v.description) for v in found],
        ["version", "aliases", "metrics", "size", "created", "description"],
    )
    if len(found) < total:
        click.echo(f"the newest {len(found)} of {total}; --limit 0 shows all")


@command.command("search")
@click.argument("expression", required=False)
@click.option("--sort", metavar="FACT,…", default="", help="Sort by these; '-' before one: downwards.")
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True, help="At most so many; 0: all.")
@click.option(
    "--format", "shape", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)
@project_option
def search(expression: str | None, sort: str, limit: int, shape: str, project_root: str | None) -> None:
    """Find versions by what is known of them.

    EXPRESSION compares metrics, parameters of the job and other facts:

    \b
    "recipe == 'mnist' and accuracy > 0.95 and params.lr < 0.1"
    "name in ['a', 'b'] and created >= '2026-12-01'"
    "'production' in aliases or datasets.train == '3f…' or parent == 'mnist@2'"
    """  # noqa: D301
    from hpcmass.catalogue.query import short
    from hpcmass.workflow.registry import open_catalogue

    by = [one for one in sort.split(",") if one.strip()]
    found = open_catalogue(project_root).search(expression, sort=by, limit=limit or None)
    if shape == "json":
        dump([one.to_json() for one in found])
        return
    rows = [one.to_json() for one in found]
    if shape == "csv":
        csv_table(rows)
        return
    shown = {"name", "version", "alias", "created", "bytes"}
    fields = [one for one in found.fields if one not in shown and not one.startswith("dataset")]
    table(
        [
            (one.ref, one.aliases, *(row.get(key) for key in fields), size(one.bytes), day(one.created))
            for one, row in zip(found, rows, strict=True)
        ],
        ["version", "aliases", *map(short, fields), "size", "created"],
    )


@command.command("show")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="The version's record as JSON.")
@project_option
def show(model: str, as_json: bool, project_root: str | None) -> None:
    """Show a version: metrics, files, and where it came from."""
    from hpcmass.workflow.registry import open_catalogue

    catalogue = open_catalogue(project_root)
    version = catalogue.get(model)
    if as_json:
        dump(version.to_json())
        return
    lineage = version.lineage
    facts(
        {
            "version": f"{version.name}@{version.version}",
            "aliases": catalogue.aliases_of(version),
            "created": f"{day(version.created)} by {version.by}",
            "description": version.description or None,
            "metrics": version.metrics,
            "run": lineage.get("run"),
            "datasets": lineage.get("datasets"),
            "parent": lineage.get("parent"),
            "commit": lineage.get("commit"),
            "params": (lineage.get("job") or {}).get("params"),
            "environment": lineage.get("environment"),
        }
    )
    table([(n, size(f.bytes), f.sha256[:16]) for n, f in version.files.items()], ["file", "size", "sha256"])


@command.command("alias")
@click.argument("model", metavar="NAME@VERSION")
@click.argument("alias")
@click.option("--why", default="", help="The reason, kept in the history.")
@click.option("--expect", metavar="VERSION", help="Move it only if it is at this version now ('none': absent).")
@project_option
def alias_version(model: str, alias: str, why: str, expect: str | None, project_root: str | None) -> None:
    """Point an alias at a version."""
    from hpcmass.workflow.registry import set_alias

    moved = set_alias(model, alias, project_root, why=why, expect=expect)
    click.echo(moved)


@command.command("verify")
@click.argument("model", required=False)
@project_option
def verify(model: str | None, project_root: str | None) -> None:
    """Check every file of a version, or of the whole catalogue, against its checksum."""
    from hpcmass.workflow.registry import verify_catalogue

    click.echo(verify_catalogue(model, project_root))


@command.command("reindex")
@project_option
def reindex(project_root: str | None) -> None:
    """Make the index of searches anew from the tree, and list in a journal what none names."""
    from hpcmass.workflow.registry import open_catalogue

    missing = open_catalogue(project_root).reindex()
    click.echo(
        "made anew" + (f"; {len(missing)} were in no journal: {', '.join(missing[:10])}" if missing else "")
    )


@command.command("load")
@click.argument("model")
@click.option("--to", "target", metavar="FOLDER", help="Copy the model's files there, checked.")
@project_option
def load(model: str, target: str | None, project_root: str | None) -> None:
    """Load a model and show its signature; `--to` copies its files into a folder."""
    from hpcmass.workflow.models import load as load_model
    from hpcmass.workflow.registry import open_catalogue

    if target is not None:
        catalogue = open_catalogue(project_root)
        click.echo(f"files in {catalogue.materialise(catalogue.get(model), Path(target))}")
    click.echo(repr(load_model(model, project=project_root)))


command.add_command(catalogue_care.doctor)
command.add_command(catalogue_care.fsck)
command.add_command(catalogue_care.gc)
add_life(command)
