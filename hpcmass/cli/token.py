"""`hpcmass token`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("token")
@click.argument("name")
@click.option("--file", metavar="FILE", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="Its digest is added to this file.")  # fmt: skip
def command(name: str, file: Path) -> None:
    """Make a token for NAME, and print it, once: only its digest is kept.

    `hpcmass serve --tokens FILE` lets in who sends it as `Authorization: Bearer TOKEN`.
    """
    from hpcmass.serve.tokens import new_token

    click.echo(new_token(name, file))
