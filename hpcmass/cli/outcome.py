"""The last words about a run, said once, by rank 0."""

from __future__ import annotations

import os

import click

from hpcmass.cli.console import relative, text
from hpcmass.launch import detect_ranks
from hpcmass.runs import RunFolder, State, Status


def tell_run(run: RunFolder, status: Status) -> int:
    """Say how a run ended and give the command's exit code: 0, 2, or 130 when it was stopped."""
    code = {State.COMPLETED: 0, State.STOPPED: 130}.get(status.state, 2)
    if "HPCMASS_KEEPER" in os.environ:
        # The command that started the ranks says it, and takes any other code than 0 for a rank that failed.
        return 0 if status.state is State.STOPPED else code
    if detect_ranks(os.environ).rank != 0:
        return code
    where = relative(run.path)
    if status.state is State.COMPLETED:
        facts = [f"{status.step} steps" if status.step else "", text(status.metrics) if status.metrics else ""]
        told = ", ".join(filter(None, facts))
        click.echo(f"completed{': ' * bool(told)}{told}; everything lies in {where}")
        return code
    # Of a run that failed this is the last step on record, not that of the failure.
    step = f"after step {status.step}" if status.state is State.FAILED else f"at step {status.step}"
    click.echo(f"{status.state.value.lower()} {step}: {status.reason or 'no reason known'}", err=True)
    click.echo(f"  see: hpcmass why {where}; start it again to go on", err=True)
    return code
