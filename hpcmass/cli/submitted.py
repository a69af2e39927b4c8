"""What `submit` and `rerun` say."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from hpcmass.cli.console import dump, relative

if TYPE_CHECKING:
    from hpcmass.slurm.client import Slurm
    from hpcmass.workflow.submit import Submission


def patient_slurm() -> Slurm:
    """The environment's Slurm, waited for while it cannot be reached; the first wait is told."""
    from hpcmass.slurm.client import Slurm
    from hpcmass.workflow.submit import PATIENCE_S

    told: set[str] = set()

    def tell(what: str) -> None:
        if what not in told:
            told.add(what)
            click.echo(f"{what} (for up to {PATIENCE_S:.0f} s)", err=True)

    return Slurm(patience_s=PATIENCE_S, on_wait=tell)


def tell_submission(done: Submission, *, as_json: bool) -> int:
    """Say what was submitted; after a dry run, print the script."""
    if as_json:
        facts = {
            "job_id": done.job_id,
            "runs": [str(path) for path in done.runs],
            "elements": list(done.elements),
            "site": done.site,
            "target": done.target,
            "layout": asdict(done.layout),
            "after": list(done.after),
            "notes": list(done.notes),
            "script": done.script,
        }
        dump(facts)
        return 0
    for note in done.notes:
        click.echo(f"note: {note}", err=True)
    if done.job_id is None:
        click.echo(done.script, nl=False)
        return 0
    layout = done.layout
    what = f"{_count(layout.ranks, 'rank')} on {_count(layout.nodes, 'node')}"
    many = f", {len(done.runs)} elements" if len(done.runs) > 1 else ""
    click.echo(f"submitted: Slurm job {done.job_id} ({what} of target {done.target}{many})")
    click.echo(f"  everything lies in {relative(done.runs[0])}{' …' if len(done.runs) > 1 else ''}")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
