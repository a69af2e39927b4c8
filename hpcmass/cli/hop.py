"""`hpcmass hop`: what the batch script of a run becomes; not for people."""

from __future__ import annotations

import click

from hpcmass.cli.options import project_option


@click.command("hop", hidden=True)
@click.argument("run_folder", metavar="RUN")
@project_option
def command(run_folder: str, project_root: str | None) -> int:
    """Run one hop of RUN inside a Slurm job, and hand it on to the next."""
    from hpcmass.workflow.warden import SignalInbox

    inbox = SignalInbox()
    try:
        from hpcmass.workflow.hop import hop
        from hpcmass.workflow.projects import open_project

        return hop(run_folder, open_project(project_root), inbox=inbox)
    finally:
        inbox.close()
