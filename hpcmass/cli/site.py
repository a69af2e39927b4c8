"""`hpcmass site …`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.console import dump


@click.group("site")
def command() -> None:
    """Draft, check and probe a site file: the targets of a supercomputer."""


@command.command("check")
@click.argument("file", required=False)
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def check(file: str | None, as_json: bool) -> int:
    """Validate a site file; on a login node hold it against what Slurm says.

    Ends with 1 when something is wrong. Without FILE: that of HPCMASS_SITE, else this machine.
    """
    from dataclasses import asdict

    from hpcmass.workflow.sites import check_site_file

    report = check_site_file(file)
    if as_json:
        dump(
            {
                "site": report.site.name,
                "wrong": report.wrong,
                "asked": report.asked,
                "unknown": report.unknown,
                "findings": [
                    {**asdict(f), "where": where}
                    for f, where in zip(report.findings, report.where, strict=True)
                ],
            }
        )
        return 1 if report.wrong else 0
    for finding, where in zip(report.findings, report.where, strict=True):
        click.echo(f"{where}: {'wrong' if finding.wrong else 'note'}: {finding.shown}")
        click.echo(
            f"    found: {finding.slurm}" if finding.key == "environment" else f"    Slurm: {finding.slurm}"
        )
        if finding.write:
            click.echo(f"    {'write' if ' = ' in finding.write else 'do'}: {finding.write}")
    for line in report.unknown:
        click.echo(f"not held against anything: {line}")
    name = file or report.site.name
    if report.wrong:
        click.echo(f"{name}: {report.wrong} value{'s' * (report.wrong != 1)} wrong")
        return 1
    said = "; Slurm agrees" if report.asked else "; Slurm was not asked"
    click.echo(f"{name}: valid" + (said if report.has_slurm else ""))
    return 0


@command.command("init")
@click.argument("file", required=False)
def init(file: str | None) -> None:
    """Draft a site file from what Slurm says, on a login node. Without FILE it is printed."""
    from hpcmass.workflow.sites import init_site

    text = init_site(Path(file) if file else None)
    if file is None:
        click.echo(text, nl=False)
        return
    click.echo(f"drafted {file}; look through it, then:")
    click.echo(f"  hpcmass site check {file}")
    click.echo(f"  hpcmass site probe {file}")


@command.command("probe")
@click.argument("file", required=False)
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Only this target (repeatable).")
@click.option(
    "--out", metavar="FOLDER", help="Where reports are kept [default: probes/ in the project, or here]."
)
@click.option("--ranks-per-node", type=click.IntRange(1), help="[default: one a GPU, else two]")
@click.option("--wait", default="30m", show_default=True, help="How long a job may wait for its turn.")
@click.option("--write", is_flag=True, help="Put launcher and pmi as found, and verified, into FILE.")
@click.option("--json", "as_json", is_flag=True, help="The reports as JSON.")
def probe(
    file: str | None,
    targets: tuple[str, ...],
    out: str | None,
    ranks_per_node: int | None,
    wait: str,
    write: bool,
    as_json: bool,
) -> int:
    """Run a short job on each target: what its nodes are, how ranks start, what works and how fast.

    Ends with 1 when a target could not be probed, or no way to start ranks is right on it.
    """
    from hpcmass.cli.probing import show_probe, show_summary
    from hpcmass.config import parse_duration
    from hpcmass.errors import ConfigError
    from hpcmass.workflow.probe import probe_site, write_findings
    from hpcmass.workflow.projects import maybe_project

    if write and file is None:
        raise click.UsageError("--write needs FILE")
    try:
        wait_s = parse_duration(wait)
    except ValueError as error:
        raise ConfigError(str(error), where="--wait") from None
    project = maybe_project(None)
    folder = Path(out) if out else (project.root if project else Path.cwd()) / "probes"
    site, probes = probe_site(
        file,
        folder,
        targets=targets,
        ranks_per_node=ranks_per_node,
        wait_s=wait_s,
        tell=lambda line: click.echo(line, err=as_json),
    )
    if as_json:
        dump([{"target": p.target, "job_id": p.job_id, "why": p.why, "report": p.report} for p in probes])
    else:
        for each in probes:
            show_probe(each)
        show_summary(probes)
    if write and file is not None:
        for line in write_findings(Path(file), site, probes) or ["nothing to change"]:
            click.echo(f"{file}: {line}", err=as_json)
    return 0 if all(p.complete and p.chosen for p in probes) else 1
