"""Options that several verbs share."""

from __future__ import annotations

from typing import Any

import click


def project_option(function: Any) -> Any:
    """`--project FOLDER` on a verb."""
    return click.option(
        "--project",
        "project_root",
        metavar="FOLDER",
        help="Project folder [default: HPCMASS_PROJECT, or the nearest parent with hpcmass.toml].",
    )(function)


def set_option(function: Any) -> Any:
    """`--set key=value` on a verb."""
    return click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a key of the job file (repeatable)."
    )(function)


def container_option(function: Any) -> Any:
    """`--container IMAGE` on a verb."""
    return click.option(
        "--container", metavar="IMAGE", help="Run every rank in this Apptainer image [default: the target's]."
    )(function)


def site_option(function: Any) -> Any:
    """`--site FILE` on a verb."""
    return click.option(
        "--site",
        "site_file",
        metavar="FILE",
        help="Site file [default: HPCMASS_SITE, or 'site' of hpcmass.toml, or this machine].",
    )(function)


def run_option(function: Any) -> Any:
    """`--run NAME` on a verb that starts a run."""
    return click.option(
        "--run", "run_name", metavar="NAME", callback=_named, help="Name of the run [default: the job's name]."
    )(function)


def _named(_context: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    if name is not None and not name.strip():
        raise click.BadParameter("a run needs a name; leave the option out for the job's own")
    return name
