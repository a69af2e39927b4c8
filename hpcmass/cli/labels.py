"""`hpcmass labels`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.console import dump, table
from hpcmass.cli.options import project_option


@click.command("labels")
@click.argument("deployment")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Live accuracy as JSON.")
@project_option
def command(deployment: str, file: Path | None, as_json: bool, project_root: str | None) -> None:
    """Post labels that came later, and show how well the answers were.

    FILE.csv has the columns id (that of the request) and label (a class's name or number, or a value).
    """
    from hpcmass.workflow.drifting import accuracy, monitor_of, post_labels

    watched = monitor_of(deployment, project_root)
    if file is not None:
        click.echo(f"{post_labels(watched, file)} labels", err=as_json)
    found = [one.to_json() for one in accuracy(watched)]
    if as_json:
        dump(found)
        return
    if not found:
        click.echo("no label has met its answer yet: requests carry an id, labels the same")
        return
    names = ["version", "metric", "value", "low", "high", "n", "unknown"]
    table([[one[name] for name in names] for one in found], names, "live, with 95 % intervals")
