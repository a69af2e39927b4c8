"""`hpcmass catalogue promote`, `history`, `lineage`, `compare`, `card`, `export`."""

from __future__ import annotations

import click

from hpcmass.cli.console import day, dump, table
from hpcmass.cli.options import project_option


def add_life(group: click.Group) -> None:
    """Add these commands to `hpcmass catalogue`."""
    for each in (promote, history):
        group.add_command(each)


@click.command("promote")
@click.argument("model", metavar="NAME@VERSION")
@click.option("--to", required=True, metavar="ALIAS", help="The stage, such as production.")
@click.option("--require", multiple=True, metavar="TEXT", help="What has to hold (repeatable); see below.")
@click.option("--why", default="", help="The reason, kept in the history [default: what was required].")
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
        click.echo(f"holds: {gate.told()}")
    if done.move is None:
        click.echo(f"{done.version.name}@{to} is {done.version.ref} already")
        return
    before = f" (was {done.version.name}@{done.move.previous})" if done.move.previous else ""
    click.echo(f"{done.version.name}@{to} → {done.version.ref}{before}")


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
