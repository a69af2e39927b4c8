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
    return click.option("--site", "site_file", metavar="FILE", help="Site file [default: this machine].")(
        function
    )
