"""`hpcmass catalogue promote`, `history`, `lineage`, `compare`, `card`, `export`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.console import csv_table, day, dump, table, visible
from hpcmass.cli.export import FORMS, told
from hpcmass.cli.options import project_option
from hpcmass.errors import ConfigError
from hpcmass.files import replace


def add_life(group: click.Group) -> None:
    """Add these commands to `hpcmass catalogue`."""
    for each in (promote, history, lineage, compare, card, export):
        group.add_command(each)


@click.command("promote")
@click.argument("model", metavar="NAME@VERSION")
@click.option("--to", required=True, metavar="ALIAS", help="The stage, such as production.")
@click.option("--require", multiple=True, metavar="TEXT", help="What has to hold (repeatable); see below.")
@click.option("--why", default="", help="The reason, kept in the history.")
@click.option(
    "--expect", metavar="VERSION", help="The alias must be there now ('none': absent) [default: as it is]."
)
@click.option("--json", "as_json", is_flag=True, help="Requirements and findings as JSON.")
@project_option
def promote(
    model: str,
    to: str,
    require: tuple[str, ...],
    why: str,
    expect: str | None,
    as_json: bool,
    project_root: str | None,
) -> None:
    """Evaluate a version, and point an alias at it if all that is required holds.

    \b
    --require "accuracy >= 0.97 on test"                 test: the split of the version's job
    --require "low(accuracy) > 0.96 on data/mnist/test"  the lower end of the 95 % interval; a folder
    --require "accuracy >= production - 0.005 on test"   against the version in production
    --require "recall['cat'] >= 0.9 on test"             a class
    --require "accuracy['site == berlin'] >= 0.9 on test"    a slice

    [stages.production] in hpcmass.toml (require = ["..."]) always counts too.
    """  # noqa: D301
    from hpcmass.workflow.promote import promote as run_promote
    from hpcmass.workflow.registry import expected

    done = run_promote(model, to, project_root, require=require, why=why, expect=expected(expect))
    if as_json:
        number = None if done.move is None else done.move.number
        dump(
            {
                "version": done.version.ref,
                "alias": to,
                "move": number,
                "gates": [g.to_json() for g in done.gates],
            }
        )
        return
    for gate in done.gates:
        click.echo(f"holds: {visible(gate.told())}")
    if done.move is None:
        click.echo(f"{done.version.name}@{to} is {done.version.ref} already")
        return
    before = f" (was {done.version.name}@{done.move.previous})" if done.move.previous else ""
    click.echo(f"{done.version.name}@{to} → {done.version.ref}{before}")


@click.command("lineage")
@click.argument("model", metavar="NAME@VERSION")
@click.option(
    "--format",
    "shape",
    type=click.Choice(["text", "json", "dot", "mermaid"]),
    default="text",
    show_default=True,
    help="dot: for Graphviz; mermaid: for Markdown.",
)
@click.option(
    "--deployment",
    "deployed",
    multiple=True,
    metavar="NAME=REFERENCE",
    help="Where one is served (repeatable).",
)
@project_option
def lineage(model: str, shape: str, deployed: tuple[str, ...], project_root: str | None) -> None:
    """Show what a version was made of, and what was made of it.

    --deployment web=mnist@production shows that what is called web serves that version or alias.
    """
    from hpcmass.catalogue import graph_text
    from hpcmass.catalogue.graph import lineage_graph
    from hpcmass.workflow.registry import open_catalogue

    if wrong := [one for one in deployed if not all(one.partition("="))]:
        raise ConfigError(
            f"'{wrong[0]}' is no deployment", where="--deployment", hint="such as web=mnist@production"
        )
    served = {name: ref for name, _, ref in (one.partition("=") for one in deployed)}
    graph = lineage_graph(open_catalogue(project_root), model, deployments=served)
    if shape == "json":
        dump(graph.to_json())
        return
    write = {"text": graph_text.to_text, "dot": graph_text.to_dot, "mermaid": graph_text.to_mermaid}[shape]
    click.echo(write(graph))


@click.command("compare")
@click.argument("models", nargs=-1, required=True, metavar="NAME@VERSION NAME@VERSION …")
@click.option("--all", "everything", is_flag=True, help="Also the parameters that are the same in all.")
@click.option(
    "--format", "shape", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)
@project_option
def compare(models: tuple[str, ...], everything: bool, shape: str, project_root: str | None) -> None:
    """Put versions side by side: metrics, parameters that differ, data, learning curves."""
    from hpcmass.catalogue.graph_text import plain_text
    from hpcmass.workflow.compare import compare as compare_versions

    found = compare_versions(models, project_root, everything=everything)
    if shape == "json":
        dump(found.to_json())
        return
    if shape == "csv":
        csv_table(found.rows())
        return
    for title, header, rows in found.tables():
        shown = [[row[0], *map(day, row[1:])] if row[0] == "created" else row for row in rows]
        table(
            [[plain_text(one) if isinstance(one, str) else one for one in row] for row in shown], header, title
        )
    for note in found.notes:
        click.echo(visible(note))


@click.command("card")
@click.argument("model", metavar="NAME@VERSION")
@click.option("--out", metavar="FILE.md", help="Write it there [default: print it].")
@project_option
def card(model: str, out: str | None, project_root: str | None) -> None:
    """Write a model card of what is known: data, metrics with intervals, cost, lineage."""
    from hpcmass.workflow.cards import card as card_text

    text = card_text(model, project_root)
    if out is None:
        click.echo(text, nl=False)
        return
    replace(Path(out), text)
    click.echo(f"{out}: fill in what only a person can say")


@click.command("export")
@click.argument("model", metavar="NAME@VERSION")
@click.option("--to", "target", required=True, metavar="FOLDER", help="A new or empty folder.")
@click.option("--layout", type=click.Choice(["huggingface", *FORMS]), default="huggingface", show_default=True)
@project_option
def export(model: str, target: str, layout: str, project_root: str | None) -> None:
    """Lay a version out for others: its files, config.json, and the card as README.md.

    The other layouts are the formats of `hpcmass export`, which has more options.
    """
    if layout in FORMS:
        from hpcmass.workflow.export import export_model

        told(export_model(model, layout, project_root, to=Path(target)))
        return
    from hpcmass.workflow.cards import export as export_version

    folder = export_version(model, Path(target), project_root)
    click.echo(f"{folder} ({layout}): fill in what README.md leaves to a person")


@click.command("history")
@click.argument("name")
@click.argument("alias", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON, with all that was found at the gates.")
@project_option
def history(name: str, alias: str | None, as_json: bool, project_root: str | None) -> None:
    """Show who pointed an alias (or any of them) where, when and why, and through which gates."""
    from hpcmass.workflow.registry import history_of

    moves = history_of(name, alias, project_root)
    if as_json:
        dump([{"alias": called, "number": move.number, **move.to_json()} for called, move in moves])
        return
    rows = [
        (called, m.version, m.previous, m.by, day(m.created), m.why, "; ".join(map(_gate, m.gates)) or None)
        for called, m in moves
    ]
    table(rows, ["alias", "version", "from", "by", "when", "why", "gates"], name)


def _gate(gate: dict[str, object]) -> str:
    found = gate.get("found")
    value = found.get("value") if isinstance(found, dict) else None
    shown = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{gate.get('require')}: {shown}"
