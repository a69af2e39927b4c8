"""`hpcmass sweep JOB`, `sweep show STUDY`, `sweep resume STUDY`."""

from __future__ import annotations

import click

from hpcmass.cli.console import dump, facts, table
from hpcmass.cli.root import project_option, set_option, site_option


class SweepGroup(click.Group):
    """A group in which anything that is no subcommand is a job file to run."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Put `run` in front of a job file."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let options stand before the job file too."""
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("sweep", cls=SweepGroup)
def command() -> None:
    """Search hyperparameters: `hpcmass sweep JOB`; show or resume a study.

    `hpcmass sweep JOB` runs the study of the job's [sweep] table; a study that was interrupted goes on.
    """


@command.command("run")
@click.argument("job_file", metavar="JOB")
@click.option("--study", "study_name", metavar="NAME", help="Name of the study [default: the job's name].")
@set_option
@project_option
@site_option
def run(
    job_file: str,
    study_name: str | None,
    sets: tuple[str, ...],
    project_root: str | None,
    site_file: str | None,
) -> int:
    """Run the study of a job file (the word `run` may be left out)."""
    from hpcmass.workflow.training import sweep_command

    return sweep_command(
        job_file, study_name=study_name, sets=sets, project_root=project_root, site_file=site_file
    )


@command.command("resume")
@click.argument("study")
@project_option
def resume(study: str, project_root: str | None) -> int:
    """Go on with a study by its name; nothing that is done is run again."""
    from hpcmass.workflow.training import sweep_resume_command

    return sweep_resume_command(study, project_root=project_root)


@command.command("show")
@click.argument("study")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@project_option
def show(study: str, as_json: bool, project_root: str | None) -> None:
    """Show the trials of a study, best first; also while it runs."""
    from hpcmass.workflow.api import study_view

    view = study_view(study, project_root)
    if as_json:
        dump({"summary": view.summary, "trials": view.trials})
        return
    facts(view.summary)
    table(view.rows, view.header)
