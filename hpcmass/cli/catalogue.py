"""`hpcmass catalogue …`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli import catalogue_care
from hpcmass.cli.catalogue_life import add_life
from hpcmass.cli.catalogue_search import add_search
from hpcmass.cli.console import day, dump, facts, size, table
from hpcmass.cli.options import project_option


@click.group("catalogue")
def command() -> None:
    """Register, list, alias, verify and load models."""


add_search(command)


@command.command("register")
@click.argument("run")
@click.option("--name", metavar="NAME", help="Name of the model [default: the job's name].")
@click.option("--description", default="", help="One line for the people who find it.")
@click.option("--tag", "tags", metavar="WORD[=TEXT]", multiple=True, help="To find it by; may be repeated.")
@click.option("--evaluate", "dataset", metavar="DATASET", help="Evaluate on this dataset and keep the metrics.")
@project_option
def register(
    run: str,
    name: str | None,
    description: str,
    tags: tuple[str, ...],
    dataset: str | None,
    project_root: str | None,
) -> None:
    """Make the model of a completed run a version in the catalogue."""
    from hpcmass.workflow.models import register_run

    said = {word: value if equals else 1 for word, equals, value in (one.partition("=") for one in tags)}
    version = register_run(
        run, project_root, name=name, description=description, evaluate_on=dataset, tags=said
    )
    click.echo(f"{version.name}@{version.version}")


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
            "tags": version.tags or None,
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
