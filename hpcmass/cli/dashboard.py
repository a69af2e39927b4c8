"""`hpcmass dashboard`."""

from __future__ import annotations

from pathlib import Path
from tempfile import NamedTemporaryFile

import click

from hpcmass.cli.options import project_option


@click.command("dashboard")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--open", "open_it", is_flag=True, help="Open it in the browser.")
@project_option
def command(host: str, port: int, open_it: bool, project_root: str | None) -> None:
    """Show the project on one web page, live: runs, sweeps, catalogue, deployments.

    It only reads. The address that is printed holds the token that opens it; it ends with Ctrl-C. On a login
    node, forward the port: ssh -L PORT:127.0.0.1:PORT NODE, and open the same address.
    """
    from hpcmass.dashboard.access import is_loopback
    from hpcmass.dashboard.app import serve
    from hpcmass.workflow.projects import open_project

    project = open_project(project_root)

    def ready(url: str) -> None:
        click.echo(f"dashboard of '{project.name}': {url}")
        click.echo("it only reads; Ctrl-C ends it")
        if not is_loopback(host):
            click.echo("other machines can reach it, and nothing is encrypted: ssh -L is safer", err=True)
        if open_it:
            import webbrowser

            # By way of a file that only this user can read: the words of a command are seen by everybody.
            way.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={url}">')
            way.flush()
            webbrowser.open(Path(way.name).as_uri())

    with NamedTemporaryFile("w", suffix=".html") as way:
        serve(project, host, port, ready)
