"""`hpcmass sweep JOB`, and of a study `sweep show`, `sweep resume`, `sweep rerun` and `sweep export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpcmass.cli.console import dump, facts, table, text
from hpcmass.cli.options import project_option, set_option, site_option

if TYPE_CHECKING:
    from hpcmass.config import Job, Project
    from hpcmass.sweep import BestTrial, TrialRow


def driver_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--driver here|job` and `--driver-target NAME`."""
    function = click.option(
        "--driver-target", metavar="NAME", help="Where a driver's job runs [default: the site's target]."
    )(function)
    return click.option(
        "--driver",
        type=click.Choice(["here", "job"]),
        default="here",
        show_default=True,
        help="Run the driver in this terminal, or as a Slurm job that goes on over its time limits.",
    )(function)


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
@click.option(
    "--targets", metavar="NAMES", help="Targets that take trials, parted by commas; 'all': every one that can."
)
@driver_options
@set_option
@project_option
@site_option
def run(
    job_file: str,
    study_name: str | None,
    targets: str | None,
    driver: str,
    driver_target: str | None,
    sets: tuple[str, ...],
    project_root: str | None,
    site_file: str | None,
) -> int:
    """Run the study of a job file (the word `run` may be left out)."""
    from hpcmass.config import load_job
    from hpcmass.workflow.projects import open_project

    project = open_project(project_root, beside=job_file)
    if targets is not None:
        names = [name.strip() for name in targets.split(",") if name.strip()]
        sets = (*sets, f"sweep.targets={json.dumps('all' if names == ['all'] else names)}")
    job = load_job(job_file, sets)
    folder = project.study_path(study_name or job.name)
    if driver == "job":
        return _submit(job, project, folder, site_file, driver_target)
    return _search(job, project, folder, site_file)


@command.command("resume")
@click.argument("study")
@driver_options
@project_option
def resume(study: str, driver: str, driver_target: str | None, project_root: str | None) -> int:
    """Go on with a study by its name; nothing that is done is run again."""
    from hpcmass.config import load_job
    from hpcmass.workflow.projects import find_study, open_project

    project = open_project(project_root)
    folder = find_study(study, project)
    job, site_file = load_job(folder / "job.toml"), str(folder / "site.toml")
    if driver == "job":
        return _submit(job, project, folder, site_file, driver_target)
    return _search(job, project, folder, site_file)


@command.command("show")
@click.argument("study")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@project_option
def show(study: str, as_json: bool, project_root: str | None) -> None:
    """Show the trials of a study, best first; also while it runs."""
    from hpcmass.sweep.show import study_summary, study_table
    from hpcmass.workflow.projects import find_study, open_project

    folder = find_study(study, open_project(project_root))
    summary, rows = study_summary(folder), study_table(folder)
    if as_json:
        dump({"summary": asdict(summary), "trials": [asdict(row) for row in rows]})
        return
    best, driver, several = summary.best, summary.driver, len(summary.objectives) > 1
    facts(
        {
            "study": folder,
            "metrics" if several else "metric": "; ".join(", ".join(one) for one in summary.objectives),
            "constraints": "; ".join(summary.constraints) or None,
            "trials": f"{len(rows)} of {summary.planned}: {text(summary.counts)}",
            "best": f"trial {best.number}, {best.value:.6g}, {text(best.params)}" if best else None,
            "front": ", ".join(str(one.number) for one in summary.front) or None if several else None,
            "beyond": _beyond(summary.beyond, summary.constraints, summary.front),
            "used": "; ".join(f"{name} {words}" for name, words in summary.used.items()),
            "ended": summary.usage.ended if driver is None else None,
            "driver": f"process {driver.pid} on {driver.host}" if driver else "none",
        }
    )
    sign = 1 if summary.direction == "minimize" else -1
    rows.sort(
        key=lambda row: (
            not row.front,
            row.state != "complete",
            row.feasible is False,
            sign * row.value if row.value is not None else float("inf"),
        )
    )
    # Beside the first objective, the others and what constraints are about have columns of their own.
    more = [name for name in summary.names if name != summary.metric]
    table(
        [
            (r.number, _state(r, several), r.value, *(r.measured.get(name) for name in more), r.params, r.steps,
             r.seconds, r.attempts, r.reason)
            for r in rows
        ],
        ["trial", "state", summary.metric, *more, "params", "steps", "seconds", "attempts", "reason"],
    )  # fmt: skip


@command.command("report")
@click.argument("study")
@click.option("--out", metavar="FILE", help="Where to write it [default: report.html in the study's folder].")
@project_option
def report(study: str, out: str | None, project_root: str | None) -> None:
    """Write a study's report: one HTML file for any browser, which asks nothing of the network.

    History, importances, parallel coordinates, slices, Pareto front, learning curves, time line, cost,
    failures, and the table of trials; also while it runs.
    """
    from hpcmass.cli.console import relative, size
    from hpcmass.sweep.report import write_report
    from hpcmass.workflow.projects import find_study, open_project

    file = write_report(find_study(study, open_project(project_root)), None if out is None else Path(out))
    click.echo(f"{relative(file.absolute())}  ({size(file.stat().st_size)})")


def _state(row: TrialRow, several: bool) -> str:
    if row.feasible is False:
        return f"{row.state}, beyond"
    return f"{row.state}, front" if several and row.front else row.state


def _beyond(count: int, constraints: list[str], front: list[BestTrial]) -> str | None:
    """What is to be said where complete trials do not keep to the constraints."""
    if not count:
        return None
    said = f"{count} complete trial{'s do' if count > 1 else ' does'} not keep to {'; '.join(constraints)}"
    return said if front else f"{said}: there is no best one"


@command.command("rerun")
@click.argument("study")
@click.argument("number", metavar="TRIAL", type=int)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@project_option
def rerun(study: str, number: int, as_json: bool, project_root: str | None) -> int:
    """Run one trial again alone, by its number, in a folder of its own; say what came of it then and now."""
    from hpcmass.config import load_job
    from hpcmass.runs import State
    from hpcmass.sweep.watch import Values
    from hpcmass.workflow.projects import find_study, open_project
    from hpcmass.workflow.sweeps import rerun_trial

    project = open_project(project_root)
    folder = find_study(study, project)
    spec, outcome, run = rerun_trial(folder, number, project)
    job, status = load_job(folder / "job.toml"), run.status()
    assert job.sweep is not None
    now = Values(run, job).measured()
    before = {} if outcome is None else outcome.measured
    if as_json:
        dump({"trial": number, "params": spec.params, "then": before, "now": now, "state": status.state.value,
              "reason": status.reason, "run": str(run.path)})  # fmt: skip
    else:
        facts({"run": run.path, "params": text(spec.params), "state": status.state.value.lower(),
               "reason": status.reason})  # fmt: skip
        table([(name, before.get(name), now.get(name)) for name in job.sweep.names], ["", "then", "now"])
    return 0 if status.state is State.COMPLETED else 1


@command.command("export")
@click.argument("study")
@click.option(
    "--to", "to", metavar="WHERE", required=True,
    help="A database, such as sqlite:///FILE, or a file's name for Optuna's journal.",
)  # fmt: skip
@click.option("--name", metavar="NAME", help="What the study is called there [default: as here].")
@project_option
def export(study: str, to: str, name: str | None, project_root: str | None) -> None:
    """Copy a study into a storage of Optuna's own, which optuna-dashboard opens by its name."""
    from hpcmass.sweep.storage import export_study
    from hpcmass.workflow.projects import find_study, open_project

    folder = find_study(study, open_project(project_root))
    count = export_study(folder, to, name)
    click.echo(f"{count} trial{'s' * (count != 1)} written to {to}")


def _submit(job: Job, project: Project, folder: Path, site_file: str | None, target: str | None) -> int:
    from hpcmass.config import load_site
    from hpcmass.workflow.drive import submit_sweep

    site = load_site(site_file, project.site_file)
    job_id = submit_sweep(job, project, site, folder, target=target)
    click.echo(f"the driver is job {job_id}; its output lies in {folder / 'driver'}")
    click.echo(f"see: hpcmass watch {folder.name}")
    return 0


def _search(job: Job, project: Project, folder: Path, site_file: str | None) -> int:
    from hpcmass.cli.progress import SweepProgress
    from hpcmass.config import load_site
    from hpcmass.errors import ConfigError
    from hpcmass.workflow.sweeps import sweep

    if job.sweep is None:
        raise ConfigError(
            "the job has no [sweep] table", where=job.name, hint="add one; docs/tutorial.md shows it"
        )
    objectives = job.sweep.objectives
    with SweepProgress(objectives[0].name, objectives[0].direction, job.sweep.trials, folder) as progress:
        result = sweep(
            job, project, load_site(site_file, project.site_file), folder=folder, on_event=progress.event
        )
    if result.best is not None:
        best = result.best
        click.echo(f"best: trial {best.number}, {result.metric} {best.value:.6g}, {text(best.params)}")
    elif result.front:
        click.echo(f"Pareto front of {', '.join(one.name for one in objectives)}:")
        for trial in result.front:
            values = [f"{one.name} {trial.measured[one.name]:.6g}" for one in objectives]
            click.echo(f"  trial {trial.number}, {', '.join(values)}, {text(trial.params)}")
    if said := _beyond(result.beyond, job.sweep.constraints, result.front):
        click.echo(said)
    if result.ended and result.counts["unfinished"]:
        click.echo(f"ended: {result.ended}")
    click.echo(f"{text(result.counts)}; see: hpcmass sweep show {folder.name}")
    if result.signal:
        click.echo("interrupted; start it again to go on", err=True)
        return 128 + result.signal
    return 0 if result.front else 2
