"""`hpcmass env …`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.console import dump, size, table
from hpcmass.cli.options import site_option


@click.group("env")
def command() -> None:
    """Build, check and pack a Python environment for the compute nodes."""


@command.command("build")
@click.argument("folder", required=False, default="env")
@site_option
@click.option(
    "--target", metavar="NAME", help="Whose modules and setup lines to load [default: the site's default]."
)
@click.option(
    "--python", metavar="PATH", help="The interpreter to build on [default: of the modules, or this one]."
)
@click.option(
    "--extras", default="sweep,sklearn,slurm", show_default=True, help="Extras of hpcmass to install."
)
@click.option(
    "--mpi",
    type=click.Choice(["auto", "site", "wheel"]),
    default="auto",
    show_default=True,
    help="Compile mpi4py against the mpicc of the modules, or take Open MPI from PyPI.",
)
@click.option("--horovod/--no-horovod", default=True, show_default=True, help="Build Horovod (some minutes).")
@click.option("--wheelhouse", metavar="DIR", help="Install from this folder only, without a network.")
@click.option("--download", is_flag=True, help="Only fill the wheelhouse, on a machine with a network.")
@click.option("--dry-run", is_flag=True, help="Only show the commands.")
def build(
    folder: str,
    site_file: str | None,
    target: str | None,
    python: str | None,
    extras: str,
    mpi: str,
    horovod: bool,
    wheelhouse: str | None,
    download: bool,
    dry_run: bool,
) -> None:
    """Make a virtual environment on a login node, with mpi4py and Horovod against the site's own MPI."""
    from hpcmass.workflow.env_build import BuildSpec, build_environment

    if download and not wheelhouse:
        raise click.UsageError("--download needs --wheelhouse DIR")
    spec = BuildSpec(
        folder=Path(folder).absolute(),
        python=python,
        extras=tuple(filter(None, extras.split(","))),
        mpi=mpi,
        horovod=horovod,
        wheelhouse=Path(wheelhouse).absolute() if wheelhouse else None,
    )
    build_environment(spec, site_file, target, download=download, dry_run=dry_run, tell=click.echo)


@command.command("check")
@click.argument("environment", required=False)
@site_option
@click.option("--target", metavar="NAME", help="Check on a compute node of this target, as a job.")
@click.option("--out", metavar="FOLDER", help="Where the job's files are kept [default: env-check/ here].")
@click.option("--wait", default="30m", show_default=True, help="How long the job may wait for its turn.")
@click.option("--json", "as_json", is_flag=True, help="The lines as JSON.")
def check(
    environment: str | None,
    site_file: str | None,
    target: str | None,
    out: str | None,
    wait: str,
    as_json: bool,
) -> int:
    """Check an environment (default: this one): imports, MPI, versions, CPU, paths. Ends with 1 if wrong."""
    from dataclasses import asdict

    from hpcmass.config import parse_duration
    from hpcmass.errors import ConfigError
    from hpcmass.workflow.env_check import check_environment

    try:
        wait_s = parse_duration(wait)
    except ValueError as error:
        raise ConfigError(str(error), where="--wait") from None
    lines = check_environment(
        Path(environment) if environment else None,
        site_file=site_file,
        target=target,
        out=Path(out) if out else None,
        wait_s=wait_s,
        tell=lambda line: click.echo(line, err=True),
    )
    if as_json:
        dump([asdict(line) for line in lines])
    else:
        table([(line.verdict, line.what, line.found) for line in lines], ["", "what", "found"])
        for line in lines:
            if line.hint:
                click.echo(f"{line.what}: {line.hint}")
    return 1 if any(line.verdict == "wrong" for line in lines) else 0


@command.command("pack")
@click.argument("environment", metavar="ENV")
@click.argument("archive", required=False)
@click.option(
    "--with-python/--without-python", default=None, help="Pack the interpreter [default: unless in /usr]."
)
def pack(environment: str, archive: str | None, with_python: bool | None) -> None:
    """Pack a virtual environment into one file (ENV.tar, or ARCHIVE: .tar, .tar.gz, .tar.zst).

    Put its path into a target as `environment`: each job then unpacks it once a node to local disk.
    """
    from hpcmass.workflow.env_pack import pack as pack_environment

    folder = Path(environment)
    file = Path(archive) if archive else Path(f"{environment.rstrip('/')}.tar")
    done = pack_environment(folder, file, with_python=with_python)
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    inside = " with Python" if done.with_python else ""
    click.echo(
        f"{file}: {done.files} files{inside}, {size(done.packed.unpacked_bytes)} in {size(done.packed.bytes)}; "
        "for a target of the site file:"
    )
    click.echo(f'  environment = "{done.packed.archive}"')


@command.command("unpack")
@click.argument("archive")
@click.option("--to", "folder", metavar="FOLDER", help="A node-local folder [default: TMPDIR, or /tmp].")
def unpack(archive: str, folder: str | None) -> None:
    """Unpack an environment here, as jobs do on each node, and print its folder."""
    from hpcmass.workflow.env_pack import unpack as unpack_environment

    where, said = unpack_environment(Path(archive), folder)
    click.echo(said, err=True)
    click.echo(where)
