"""`hpcmass init`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.console import relative


@click.command("init")
@click.argument("folder", default=".")
@click.option("--name", help="Name of the project [default: the folder's name].")
@click.option("--bare", is_flag=True, help="Without the recipe and job file to start from.")
def command(folder: str, name: str | None, bare: bool) -> None:
    """Make a project folder, with a recipe and a job file to start from."""
    from hpcmass.workflow.starter import create_project

    project = create_project(Path(folder), name, bare=bare)
    click.echo(f"project '{project.name}' in {project.root}")
    if not bare:
        click.echo("next:")
        if Path(folder).resolve() != Path.cwd():
            click.echo(f"  cd {relative(project.root)}")
        click.echo("  hpcmass shard YOUR.npz --out data/mine --split train=0.8,valid=0.1,test=0.1")
        click.echo("  hpcmass train job.toml --ranks 2")
