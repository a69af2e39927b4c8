"""`hpcmass run -- COMMAND`."""

from __future__ import annotations

import click

from hpcmass.cli.options import container_option, project_option, site_option


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "--ranks", type=click.IntRange(1), help="Processes to start [default: 1; in a Slurm job those of sbatch]."
)
@click.option("--name", "run_name", metavar="NAME", help="Name of the run [default: the script's name].")
@click.option("--threads", type=click.IntRange(1), help="CPU threads a rank [default: the cores shared out].")
@click.option("--quiet", is_flag=True, help="Do not show rank 0's output; it is in the run folder in any case.")
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@project_option
@site_option
@container_option
def command(
    ranks: int | None,
    run_name: str | None,
    threads: int | None,
    quiet: bool,
    script: tuple[str, ...],
    project_root: str | None,
    site_file: str | None,
    container: str | None,
) -> int:
    """Start a training script of your own on several ranks.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as torchrun sets them;
    hpcmass.report(step=..., loss=...) is recorded; each rank's output has a file of its own. In an sbatch
    script all nodes of the job are used.
    """
    from hpcmass.cli.outcome import tell_run
    from hpcmass.workflow.projects import open_project
    from hpcmass.workflow.training import run_command

    run, status = run_command(
        list(script),
        open_project(project_root),
        ranks=ranks,
        run_name=run_name,
        threads_per_rank=threads,
        quiet=quiet,
        site_file=site_file,
        container=container,
    )
    return tell_run(run, status)
