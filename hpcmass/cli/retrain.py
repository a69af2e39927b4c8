"""`hpcmass retrain`."""

from __future__ import annotations

import click

from hpcmass.cli.console import visible
from hpcmass.cli.options import project_option, set_option


@click.command("retrain")
@click.argument("deployment")
@click.option("--data", metavar="DATASET", help="New data [default: kept samples that have labels].")
@click.option("--model", metavar="NAME[@VERSION]", help="The model [default: that which was served].")
@click.option("--to", "alias", default="production", show_default=True, metavar="ALIAS", help="The stage.")
@click.option("--require", multiple=True, metavar="TEXT",
              help="As of promote [default: no worse than the stage's version on the new data].")  # fmt: skip
@click.option("--ranks", type=click.IntRange(1), help="Ranks to train with [default: the job's].")
@click.option("--anyway", is_flag=True, help="Also where no drift was found.")
@set_option
@project_option
def command(
    deployment: str,
    data: str | None,
    model: str | None,
    alias: str,
    require: tuple[str, ...],
    ranks: int | None,
    anyway: bool,
    sets: tuple[str, ...],
    project_root: str | None,
) -> int | None:
    """Train a deployment's model on from what serves, with new data, and promote it through the gate.

    Interrupted, the same command goes on. Ends with 1 where the gate did not let it through.
    """
    from hpcmass.config.overrides import parse_sets
    from hpcmass.workflow.drifting import monitor_of
    from hpcmass.workflow.retrain import Asked, retrain

    asked = Asked(
        data=data, model=model, alias=alias, require=require, sets=parse_sets(sets), anyway=anyway, ranks=ranks
    )
    found = retrain(monitor_of(deployment, project_root), asked, project_root, say=click.echo)
    click.echo(visible(found.text))
    click.echo(f"{alias} → {found.version}" if found.promoted else f"{found.version} is not promoted")
    return None if found.promoted else 1
