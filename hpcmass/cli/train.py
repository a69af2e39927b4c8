"""`hpcmass train`."""

from __future__ import annotations

import click

from hpcmass.cli.options import container_option, project_option, run_option, set_option, site_option


@click.command("train")
@click.argument("job_file", metavar="JOB")
@click.option(
    "--ranks", type=click.IntRange(1), help="Start this many ranks [default: resources.ranks of the job]."
)
@run_option
@click.option(
    "--backend",
    type=click.Choice(["auto", "horovod", "mpi", "torch", "single"]),
    help="Overrides train.backend.",
)
@click.option("--run-folder", hidden=True, help="The run's folder itself, as for a trial of a study.")
@click.option("--fresh", is_flag=True, help="Begin anew; a run of that name is kept under another name.")
@click.option("--profile", is_flag=True, help="Trace ten steps: torch's profiler, and Horovod's timeline.")
@set_option
@project_option
@site_option
@container_option
def command(
    job_file: str,
    ranks: int | None,
    run_name: str | None,
    backend: str | None,
    run_folder: str | None,
    fresh: bool,
    profile: bool,
    sets: tuple[str, ...],
    project_root: str | None,
    site_file: str | None,
    container: str | None,
) -> int:
    """Train the model of a job file, alone or on several ranks.

    Started again, a run that was stopped or broken goes on from its last checkpoint, on any number of
    ranks. In an sbatch script all nodes of the job are used. Under your own `mpiexec -n N hpcmass train JOB`
    the ranks are those of mpiexec.
    """
    from hpcmass.cli.outcome import tell_run
    from hpcmass.workflow.projects import open_project
    from hpcmass.workflow.training import train

    run, status = train(
        job_file,
        open_project(project_root, beside=job_file),
        sets=(*sets, "train.profile_steps=10") if profile else sets,
        run_name=run_name,
        run_folder=run_folder,
        ranks=ranks,
        backend=backend,
        fresh=fresh,
        site_file=site_file,
        container=container,
    )
    return tell_run(run, status)
