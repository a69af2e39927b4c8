"""`hpcmass serve`."""

from __future__ import annotations

from pathlib import Path

import click

from hpcmass.cli.options import project_option

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("serve")
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--endpoint", metavar="FILE.json", type=FILE, help="Write address and state here.")
@click.option(
    "--tokens", metavar="FILE", type=FILE, help="Let in who has a token of this file (hpcmass token)."
)
@click.option("--anybody", is_flag=True, help="Ask for no token although other machines can reach it.")
@click.option("--tls-cert", metavar="FILE.pem", type=FILE, help="Certificate, and those above it.")
@click.option("--tls-key", metavar="FILE.pem", type=FILE, help="Its key.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Cores of a computation.")
@click.option("--runtime", type=click.Choice(["auto", "torch", "onnxruntime"]), default="auto",
              show_default=True, help="What computes: the quicker; what trained it; ONNX Runtime.")  # fmt: skip
@click.option("--command", "program", metavar="'WORDS… {port}'",
              help="Serve by this program; {port}, {host}, {model} … are filled in, no shell.")  # fmt: skip
@click.option("--health", default="/v2/health/ready", show_default=True, metavar="PATH",
              help="Where the program says that it is ready.")  # fmt: skip
@click.option("--ready", "ready_s", default=600.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Seconds that the program may take to be so.")  # fmt: skip
@click.option("--latency-ms", type=float, help="What a request should take, from which batches are cut. [10]")
@click.option("--queue", type=click.IntRange(1), help="Requests that wait, before others get 429. [1024]")
@click.option("--wait-ms", type=float, help="Longest wait foreseen, before others get 429. [100]")
@click.option("--rows", type=click.IntRange(1), help="Samples in a request. [1024]")
@click.option("--body-mb", type=float, help="Size of a request. [8]")
@click.option("--rate", type=click.FloatRange(0, min_open=True),
              help="Requests a second of one client (token, else address), before it gets 429.")  # fmt: skip
@click.option("--connections", type=click.IntRange(1), help="Open at once. [1024]")
@click.option("--notice", "notice_s", default=1.0, show_default=True, type=click.FloatRange(0),
              help="Seconds after SIGTERM in which new connections are still taken.")  # fmt: skip
@click.option("--drain", "drain_s", default=30.0, show_default=True, type=click.FloatRange(0),
              help="Seconds that requests under way may take then.")  # fmt: skip
@click.option("--monitor", metavar="FOLDER", type=click.Path(file_okay=False, path_type=Path),
              help="Write windows of rates, latencies, inputs and outputs here.")  # fmt: skip
@click.option("--window", "window_s", default=60.0, show_default=True, type=click.FloatRange(0.1),
              help="Seconds of a window.")  # fmt: skip
@click.option("--keep-samples", default=0, show_default=True, type=click.IntRange(0),
              help="Raw samples an hour to keep with them.")  # fmt: skip
@click.option("--keep-answers", default=1_000_000, show_default=True, type=click.IntRange(0),
              help="Answers with an id to keep, for labels.")  # fmt: skip
@click.option("--training-data", metavar="FOLDER", help="What drift is measured against [the version's own].")
@project_option
def command(
    model: str,
    host: str,
    port: int,
    endpoint: Path | None,
    tokens: Path | None,
    anybody: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    threads: int,
    runtime: str,
    program: str | None,
    health: str,
    ready_s: float,
    latency_ms: float | None,
    queue: int | None,
    wait_ms: float | None,
    rows: int | None,
    body_mb: float | None,
    rate: float | None,
    connections: int | None,
    notice_s: float,
    drain_s: float,
    monitor: Path | None,
    window_s: float,
    keep_samples: int,
    keep_answers: int,
    training_data: str | None,
    project_root: str | None,
) -> None:
    """Answer requests to a model, by the Open Inference Protocol over HTTP: one replica.

    MODEL is a version in the catalogue (NAME, NAME@3, NAME@production), a run's name, or a folder. It ends
    with SIGTERM or Ctrl-C, and answers first what it has taken on.
    """
    from hpcmass.workflow.monitoring import MonitorOptions
    from hpcmass.workflow.serving import ServeOptions, serve_model

    asked = {
        "latency_s": None if latency_ms is None else latency_ms / 1e3,
        "wait_s": None if wait_ms is None else wait_ms / 1e3,
        "queue": queue,
        "rows": rows,
        "body_bytes": None if body_mb is None else body_mb * 2**20,
        "connections": connections,
    }
    watched = None
    if monitor is not None:
        watched = MonitorOptions(
            folder=monitor, window_s=window_s, keep_samples=keep_samples, keep_answers=keep_answers,
            reference=training_data,
        )  # fmt: skip
    options = ServeOptions(
        host=host, port=port, threads=threads, runtime=runtime, command=program, health=health,
        ready_s=ready_s, rate=rate, endpoint=endpoint, tokens=tokens,
        anybody=anybody, certificate=tls_cert, key=tls_key, notice_s=notice_s, drain_s=drain_s, monitor=watched,
        limits={name: float(value) for name, value in asked.items() if value is not None},
    )  # fmt: skip
    serve_model(model, project_root, options, say=lambda text: click.echo(text))
