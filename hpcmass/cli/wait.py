"""`hpcmass wait`."""

from __future__ import annotations

import click

from hpcmass.cli.options import project_option

TIMED_OUT = 124


@click.command("wait")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--timeout", metavar="TIME", help="Wait no longer than this: 90s, 20m, 1-12:00:00.")
@click.option("--quiet", is_flag=True, help="Print nothing.")
@project_option
def command(runs: tuple[str, ...], timeout: str | None, quiet: bool, project_root: str | None) -> int:
    """Wait until runs are over, whatever the number of their hops.

    Ends with 0 if all are COMPLETED, with 1 if one is not, and with 124 if the time is up. While Slurm does not
    answer, it goes on waiting.
    """
    from hpcmass.cli.status import about, slurm_for
    from hpcmass.config import parse_duration
    from hpcmass.errors import ConfigError
    from hpcmass.slurm.judge import Phase
    from hpcmass.workflow.follow import Follower, until_over
    from hpcmass.workflow.projects import maybe_project
    from hpcmass.workflow.select import select_runs
    from hpcmass.workflow.state import RunView, read_run

    try:
        limit_s = None if timeout is None else float(parse_duration(timeout))
    except ValueError as error:
        raise ConfigError(str(error), where="--timeout") from None
    chosen = select_runs(runs, maybe_project(project_root))
    follower = Follower(chosen, slurm_for(any(read_run(run).jobs for run in chosen)))
    told: dict[str, str] = {}
    views: list[RunView] = []
    for views in until_over(follower, timeout_s=limit_s):
        for one in views:
            if told.get(one.name) != one.phase.value and not quiet:
                click.echo(f"{one.name}: {one.phase.value}  {about(one)}".rstrip())
            told[one.name] = one.phase.value
    if all(one.phase is Phase.COMPLETED for one in views):
        return 0
    if not all(one.verdict.final for one in views):
        if not quiet:
            click.echo("the time is up", err=True)
        return TIMED_OUT
    return 1
