"""`hpcmass submit JOB`."""

from __future__ import annotations

import gc
import json

import click

from hpcmass.cli.options import project_option, run_option, set_option, site_option


@click.command("submit")
@click.argument("job_file", metavar="JOB")
@click.option("--target", metavar="NAME", help="Target of the site [default: the job's, else the site's].")
@click.option("--time", "wall_time", metavar="TIME", help="Wall time of a hop, such as 90m or 1-12:00:00.")
@click.option("--nodes", type=click.IntRange(1), help="Nodes [default: as few as it takes].")
@click.option("--ranks", type=click.IntRange(1), help="Ranks over all nodes [default: the job's].")
@click.option(
    "--after",
    multiple=True,
    metavar="RUN|JOBID",
    help="Start when this has completed (repeatable); afterany:X: when it has ended, whatever came of it.",
)
@click.option(
    "--array", metavar="KEY=V1,V2,…", help="One job array: run NAME-0 with the first value of KEY, and so on."
)
@run_option
@click.option("--fresh", is_flag=True, help="Begin anew; a run of that name is kept under another name.")
@click.option("--dry-run", is_flag=True, help="Print the script, and touch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON.")
@set_option
@project_option
@site_option
def command(
    job_file: str,
    target: str | None,
    wall_time: str | None,
    nodes: int | None,
    ranks: int | None,
    after: tuple[str, ...],
    array: str | None,
    run_name: str | None,
    fresh: bool,
    dry_run: bool,
    as_json: bool,
    sets: tuple[str, ...],
    project_root: str | None,
    site_file: str | None,
) -> int:
    """Submit a job file to Slurm.

    The run is cut into hops by the wall time and goes on by itself; submitted again after it was stopped, it
    goes on from its last checkpoint.
    """
    gc.disable()  # A short command: looking for garbage while its modules load takes a tenth of its time.
    from hpcmass.cli.submitted import patient_slurm, tell_submission
    from hpcmass.workflow.projects import open_project
    from hpcmass.workflow.submit import submit

    asked = {"resources.time": wall_time, "resources.nodes": nodes, "resources.ranks": ranks}
    more = [f"{key}={json.dumps(value)}" for key, value in asked.items() if value is not None]
    done = submit(
        job_file,
        open_project(project_root, beside=job_file),
        site_file=site_file,
        target=target,
        run_name=run_name,
        sets=[*sets, *more],
        after=after,
        array=array,
        dry_run=dry_run,
        fresh=fresh,
        slurm=patient_slurm(),
    )
    return tell_submission(done, as_json=as_json)
