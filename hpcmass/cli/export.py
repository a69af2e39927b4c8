"""`hpcmass export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcmass.cli.console import dump, size, table
from hpcmass.cli.options import project_option

if TYPE_CHECKING:
    from hpcmass.workflow.export import ExportReport

FORMS = ("onnx", "torch-export", "int8", "int8-dynamic")  # those of hpcmass.export, which imports torch


@click.command("export")
@click.argument("model")
@click.option("--format", "form", type=click.Choice(FORMS), default="onnx", show_default=True)
@click.option("--to", "target", metavar="FOLDER", help="A new or empty folder.")
@click.option("--register", is_flag=True, help="Make it a version made from MODEL.")
@click.option("--name", metavar="NAME", help="The version's model [default: MODEL's name and the format].")
@click.option("--on", "data", metavar="DATASET", help="Measure both on it [default: the test split, or valid].")
@click.option("--calibrate", metavar="DATASET", help="Take int8's scales from it [default: the training data].")
@click.option("--samples", default=512, show_default=True, type=click.IntRange(1), help="To calibrate with.")
@click.option("--json", "as_json", is_flag=True, help="What was measured, as JSON.")
@project_option
def command(
    model: str,
    form: str,
    target: str | None,
    register: bool,
    name: str | None,
    data: str | None,
    calibrate: str | None,
    samples: int,
    as_json: bool,
    project_root: str | None,
) -> None:
    """Export a model as a program that runs without hpcmass, and measure what that changes.

    MODEL is a version in the catalogue (NAME, NAME@3, NAME@production), a run's name, or a folder. The program
    takes the fields as they are stored: the recipe's transform is part of it. Formats: onnx; torch-export; int8
    with scales calibrated once; int8-dynamic with scales found for every batch.
    """
    from hpcmass.workflow.export import export_model

    report = export_model(
        model,
        form,
        project_root,
        to=None if target is None else Path(target),
        register=register,
        name=name,
        on=data,
        calibrate=calibrate,
        calibration_samples=samples,
    )
    if as_json:
        folder, version = report.folder, report.version
        kept = {"folder": None if folder is None else str(folder), "version": version and version.ref}
        dump({**kept, "metrics": report.metrics(), **report.to_json()})
        return
    told(report)


def told(report: ExportReport) -> None:
    """Print what was exported and how it compares."""
    rows: list[tuple[str, str, str]] = []
    if report.evaluations is not None:
        before, after = report.evaluations
        rows = [
            (key, metric.fixed(), after.metrics[key].fixed())
            for key, metric in before.metrics.items()
            if key in after.metrics
        ]
    for batch, (first, second) in report.latency.by_batch.items():
        rows.append((f"ms, {batch} at once", f"{first:.3g}", f"{second:.3g}"))
    rows.append(("size", size(report.bytes[0]), size(report.bytes[1])))
    table(rows, [report.data, report.made_from, report.form])
    agreement = report.exported.agreement
    same = "" if agreement.same_class is None else f", the same class for {agreement.same_class:.1%}"
    click.echo(f"outputs differ by up to {agreement.largest:.2g} on {agreement.samples} samples{same}")
    if report.exported.portability is not None:
        click.echo("all operators are ONNX's own and have CPU kernels: x86-64 and arm64")
    if report.version is not None:
        click.echo(f"{report.version.ref}, made from {report.made_from}")
    if report.folder is not None:
        click.echo(f"{report.folder}")
