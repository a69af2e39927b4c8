"""`hpcmass deploy`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.options import project_option

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("deploy")
@click.argument("model")
@click.option("--name", help="Name of the deployment [default: the model's].")
@click.option("--replicas", metavar="MIN:MAX", help="At least and at most; 0: none while nobody asks. [1]")
@click.option("--slo-p99-ms", type=click.FloatRange(0, min_open=True), help="Latency to hold. [10]")
@click.option("--idle-s", type=click.FloatRange(0), help="With 0 replicas allowed: the last goes after. [300]")
@click.option("--budget-hours", type=click.FloatRange(0), help="Replica hours; then no more than MIN.")
@click.option("--follow", metavar="ALIAS", help="Serve whatever version has this alias.")
@click.option("--canary", metavar="SHARE", help="Try MODEL with this share of the requests, such as 10%.")
@click.option("--canary-for", "canary_for_s", metavar="SECONDS", type=click.FloatRange(0),
              help="Take it over after so long, unless it is worse [default: when told].")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Cores of a replica's computation. [1]")
@click.option("--runtime", type=click.Choice(["auto", "torch", "onnxruntime"]), help="What computes. [auto]")
@click.option("--window", "window_s", type=click.FloatRange(0.1),
              help="Seconds of a window of the monitor. [60]")  # fmt: skip
@click.option(
    "--command", "program", metavar="'WORDS… {port}'", help="Replicas are this program; see hpcmass serve."
)
@click.option("--health", metavar="PATH", help="Where that says that it is ready. [/v2/health/ready]")
@click.option("--keep-samples", type=click.IntRange(0), help="Raw samples an hour to keep, for retrain. [0]")
@click.option("--training-data", metavar="FOLDER", help="What drift is measured against [the version's own].")
@click.option(
    "--site", "site_file", metavar="FILE", type=FILE, help="Replicas are jobs on this site's targets."
)
@click.option("--target", "targets", multiple=True, metavar="NAME", help="On this one alone (repeatable).")
@click.option("--time", metavar="TIME", help="Wall time of a replica's job [default: the target's].")
@click.option(
    "--local", is_flag=True, help="Replicas are processes of this machine, whatever the project's site."
)
@click.option("--gateway-target", metavar="NAME", help="The gateway is a job on this target, too.")
@click.option(
    "--gateway-time", metavar="TIME", help="Its wall time; another one follows it [default: the target's]."
)
@click.option("--host", help="Address that the gateway listens at. [127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Its port; 0: any free one. [0]")
@click.option(
    "--tokens", metavar="FILE", type=FILE, help="Let in who has a token of this file (hpcmass token)."
)
@click.option("--rate", type=click.FloatRange(0, min_open=True),
              help="Requests a second of one client (token, else address), before it gets 429.")  # fmt: skip
@click.option("--anybody", is_flag=True, help="Ask for no token although other machines can reach it.")
@click.option("--tls-cert", metavar="FILE.pem", type=FILE, help="Certificate, and those above it.")
@click.option("--tls-key", metavar="FILE.pem", type=FILE, help="Its key.")
@click.option("--wait", "wait_s", default=120.0, show_default=True, type=click.FloatRange(0),
              help="Seconds to wait until it is ready.")  # fmt: skip
@project_option
def command(
    model: str,
    name: str | None,
    replicas: str | None,
    slo_p99_ms: float | None,
    idle_s: float | None,
    budget_hours: float | None,
    follow: str | None,
    canary: str | None,
    canary_for_s: float | None,
    threads: int | None,
    runtime: str | None,
    window_s: float | None,
    program: str | None,
    health: str | None,
    keep_samples: int | None,
    training_data: str | None,
    site_file: Path | None,
    targets: tuple[str, ...],
    time: str | None,
    local: bool,
    gateway_target: str | None,
    gateway_time: str | None,
    host: str | None,
    port: int | None,
    tokens: Path | None,
    rate: float | None,
    anybody: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    wait_s: float,
    project_root: str | None,
) -> None:
    """Put MODEL behind an address, with replicas that come and go with the load.

    MODEL is a version in the catalogue (NAME, NAME@3, NAME@production), a run, or a folder. Called again with
    another version, replicas of that one are ready before the others go.
    """
    from hpcmass.workflow.deploying import (
        DeployOptions,
        deploy,
        parse_replicas,
        parse_share,
        wait_ready,
        words_of,
    )

    if training_data is not None and Path(training_data).exists():  # replicas start in the project's folder
        training_data = str(Path(training_data).absolute())
    gateway = {
        "target": gateway_target,
        "time": gateway_time,
        "host": host,
        "port": port,
        "tokens": None if tokens is None else str(tokens.absolute()),
        "rate": rate,
        "anybody": anybody or None,
        "certificate": None if tls_cert is None else str(tls_cert.absolute()),
        "key": None if tls_key is None else str(tls_key.absolute()),
    }
    words = {
        "--threads": threads,
        "--runtime": runtime,
        "--window": window_s,
        "--keep-samples": keep_samples,
        "--training-data": training_data,
        "--command": program,
        "--health": health,
    }
    options = DeployOptions(
        name=name,
        replicas=None if replicas is None else parse_replicas(replicas),
        slo_p99_ms=slo_p99_ms,
        idle_s=idle_s,
        budget_hours=budget_hours,
        follow=follow,
        site="" if local else None if site_file is None else str(site_file.absolute()),
        targets=targets,
        time=time,
        canary=None if canary is None else parse_share(canary),
        canary_for_s=canary_for_s,
        serve=words_of(list(words.items())),
        gateway={key: value for key, value in gateway.items() if value is not None},
    )
    deployment = deploy(model, project_root, options)
    if wait_s:
        endpoint = wait_ready(deployment, wait_s=wait_s)
        click.echo(f"{endpoint['url']}/v2/models/{endpoint['model']}")
