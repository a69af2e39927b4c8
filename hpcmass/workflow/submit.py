"""`hpcmass submit` and `hpcmass rerun`: from a job and a site's target to a Slurm job, with nothing half done.

What can be refused is refused before anything is written. Then the run folder is laid down, an intent is
published, sbatch is called, and the record is published; a submit that Slurm refuses takes all of it back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpcmass.config import Job, Layout, Project, Site, Target, as_job, job_to_toml, site_to_toml
from hpcmass.errors import AlreadyExists, ConfigError, HpcmassError, LeaseHeld, NotFound
from hpcmass.files import replace, storage_errors
from hpcmass.files.publish import temporary_beside
from hpcmass.launch import hpcmass_command
from hpcmass.runs import RunFolder, State
from hpcmass.slurm import records
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.script import Element, ScriptSpec, render_script
from hpcmass.slurm.send import Place, new_comment, pending, send, settle
from hpcmass.train.begun import asks_for_more, set_aside
from hpcmass.workflow.after import dependencies
from hpcmass.workflow.asked import Asked, ask
from hpcmass.workflow.env_pack import packed_of
from hpcmass.workflow.targets import AUTO

PATIENCE_S = 120.0


@dataclass(frozen=True)
class Submission:
    """What was submitted, or would be (`dry_run`).

    Attributes:
        job_id: Slurm's id (of an array: the array's); None after a dry run.
        runs: The runs' folders; of an array one an element.
        elements: The array's indices, as the runs are ordered; empty where it is no array.
        script: The script's text.
        after: The dependencies.
        notes: What the user should know, one sentence each.
    """

    job_id: str | None
    runs: tuple[Path, ...]
    script: str
    site: str
    target: str
    layout: Layout
    elements: tuple[int, ...] = ()
    after: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Laid:
    """What was done to one run's folder, so that it can be undone."""

    run: RunFolder
    made: bool = False
    aside: Path | None = None
    old: dict[Path, bytes | None] = field(default_factory=dict)


def submit(
    job: Job | Path | str,
    project: Project,
    *,
    site_file: str | Path | None = None,
    target: str | None = None,
    run_name: str | None = None,
    sets: Sequence[str] = (),
    after: Sequence[str] = (),
    array: str | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    slurm: Slurm | None = None,
) -> Submission:
    """Submit a job to Slurm; its run goes on from its last checkpoint where it was begun before.

    Args:
        job: The job, or its file.
        project: Where its data and runs lie: a file system that all nodes see.
        site_file: The site file.
        target: The target's name; default: the job's, else the site's. `auto`: the one where it finishes first.
        run_name: Name of the run; default: the job's.
        sets: Overrides of the job, `key=value`.
        after: Runs or job ids to wait for; `afterany:X` waits for its end, whatever came of it.
        array: `KEY=V1,V2,V3`: one job array; its element i is the run NAME-i with the key set to that value.
        dry_run: Render the script and touch nothing, Slurm neither; for target `auto` it is asked.
        fresh: Begin anew; a run of that name is kept under another name.
        slurm: The Slurm to submit to; default: that of the environment, waited for up to two minutes.

    Raises:
        ConfigError: The target cannot give what the job asks for, or a value does not go through sbatch.
        NotFound: A dataset, a run to wait for, or the site's target does not exist.
        LeaseHeld: The run is queued or running already; the message has the job id.
        SlurmError: Slurm refused, or could not be reached. No new run folder is left behind.
    """
    slurm = slurm or Slurm(patience_s=PATIENCE_S)
    why: tuple[str, ...] = ()
    if (target or as_job(job, sets).resources.target) == AUTO:
        from hpcmass.workflow.plan import chosen_target  # numpy comes with it, which takes longer than sbatch

        target, why = chosen_target(
            job, project, slurm, site_file=site_file, target=target, run_name=run_name, sets=sets,
            measure=not dry_run,
        )  # fmt: skip
    asked = ask(job, project, site_file=site_file, target=target, run_name=run_name, sets=sets, array=array)
    waits, notes = dependencies(after, project, None if dry_run else slurm)
    notes = (*why, *notes)
    if not after:
        asked.check_data(project)
    if dry_run:
        text = render_script(_spec(asked, project, waits, "hpcmass:DRY-RUN", list(range(len(asked.runs)))))
        return _submission(asked, None, text, waits, notes)
    if asked.array:
        _check_array(asked, slurm)
    open_runs = [n for n, run in enumerate(asked.runs) if _may_start(asked.jobs[n], run, slurm, fresh=fresh)]
    if not open_runs:
        raise ConfigError(
            "has completed already; the job asks for no more",
            where=asked.runs[0].path,
            hint="give the run another name (--run NAME), begin again (--fresh), or ask for more epochs",
        )
    if len(open_runs) < len(asked.runs):
        notes = (*notes, f"{len(asked.runs) - len(open_runs)} elements have completed and are left out")
    comment = new_comment()
    text = render_script(_spec(asked, project, waits, comment, open_runs))
    with _laying_down(asked, open_runs, fresh=fresh):
        sent = send(
            [Place(asked.runs[n].path, n if asked.array else None) for n in open_runs],
            text,
            slurm=slurm,
            site=asked.site.name,
            target=asked.target_name,
            layout=asked.layout,
            after=waits,
            comment=comment,
        )
    return _submission(asked.only(open_runs), sent[0].job_id, text, waits, notes)


def rerun(run: RunFolder, *, slurm: Slurm | None = None) -> Submission:
    """Submit exactly what ran: the text of the run's last script, byte for byte.

    It waits for no other job, and of an array only this run's element is started.

    Raises:
        NotFound: The run was never submitted, or its script is gone.
        LeaseHeld: It is queued or running; the message has the job id.
        ConfigError: It has completed.
        SlurmError: Slurm refused, or could not be reached.
    """
    slurm = slurm or Slurm(patience_s=PATIENCE_S)
    if run.status().state is State.COMPLETED:
        raise ConfigError(
            "has completed; there is nothing left to run",
            where=run.path,
            hint="submit its job under another name (hpcmass submit JOB --run NAME), or anew (--fresh)",
        )
    _refuse_alive(run, slurm)
    submissions = records.read_submissions(run.path)
    if not submissions:
        raise NotFound("was never submitted to Slurm", where=run.path, hint="hpcmass submit JOB")
    last = submissions[-1]
    script = records.slurm_folder(run.path) / last.script
    with storage_errors(script, "read the script that ran"):
        text = script.read_bytes().decode()
    options = [] if last.array_index is None else [f"--array={last.array_index}"]
    if "\n#SBATCH --dependency=" in text:
        options.append("--dependency=")  # What it waited for has ended long ago.
    _take_back_stop(run)
    sent = send(
        [Place(run.path, last.array_index)],
        text,
        slurm=slurm,
        site=last.site,
        target=last.target,
        layout=last.layout,
        by="rerun",
        options=options,
    )
    return Submission(
        job_id=sent[0].job_id,
        runs=(run.path,),
        script=text,
        site=last.site,
        target=last.target,
        layout=Layout(**last.layout),
        elements=() if last.array_index is None else (last.array_index,),
    )


def batch_script(
    run: Path,
    *,
    name: str,
    target: Target,
    layout: Layout,
    project_root: Path,
    comment: str,
    after: Sequence[str] = (),
    title: str = "",
) -> str:
    """The script of one run, as `submit` makes it: for its successor, with another layout perhaps."""
    return render_script(
        ScriptSpec(
            name=name,
            target=target,
            layout=layout,
            command=(*hpcmass_command(), "hop", str(run), "--project", str(project_root)),
            out=records.slurm_folder(run),
            after=tuple(after),
            signal_s=signal_s(layout.time_s),
            comment=comment,
            cwd=project_root,
            title=title or f"run {name}",
            packed=packed_of(target),
        )
    )


def signal_s(time_s: int) -> int:
    """Seconds before the time limit at which a job is signalled: a fifth of it, from 30 s to 5 minutes."""
    return min(300, max(30, time_s // 5))


# -- one submit, step by step ------------------------------------------------------------------------------


def _spec(asked: Asked, project: Project, after: Sequence[str], comment: str, indices: list[int]) -> ScriptSpec:
    tail = ("--project", str(project.root))
    if not asked.array:
        path = str(asked.runs[0].path)
        word: str | Element = path
        out: Path | Element = records.slurm_folder(asked.runs[0].path)
    else:
        base = str(project.runs / asked.name) + "-"
        word, out = Element(base), Element(base, f"/{records.slurm_folder(Path()).name}")
    return ScriptSpec(
        name=asked.name,
        target=asked.target,
        layout=asked.layout,
        command=(*hpcmass_command(), "hop", word, *tail),
        out=out,
        after=tuple(after),
        array=_ranges(indices) if asked.array else None,
        signal_s=signal_s(asked.layout.time_s),
        comment=comment,
        cwd=project.root,
        title=f"run {asked.name}{'-*' if asked.array else ''}, target {asked.target_name} of {asked.site.name}",
        packed=packed_of(asked.target),
    )


def _ranges(indices: Sequence[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7: the words of `--array`."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][-1] + 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)


def _check_array(asked: Asked, slurm: Slurm) -> None:
    text = slurm.config().get("MaxArraySize", "")
    if text.isdigit() and len(asked.runs) > int(text):
        raise ConfigError(
            f"{len(asked.runs)} elements are asked for, but this Slurm's job arrays have {text} at most",
            where="--array",
            hint="submit several arrays, or search with: hpcmass sweep JOB",
        )


def _may_start(job: Job, run: RunFolder, slurm: Slurm, *, fresh: bool) -> bool:
    """Whether there is anything to run.

    Raises:
        LeaseHeld: It is queued or running.
        ConfigError: It was begun with another job.
    """
    if not run.exists():
        if run.path.exists() and any(run.path.iterdir()):
            raise ConfigError(
                "the folder is there and holds no run",
                where=run.path,
                hint="remove it, or take another --run NAME",
            )
        return True
    _refuse_alive(run, slurm)
    if fresh:
        return True
    more = asks_for_more(job, run)
    return more or run.status().state is not State.COMPLETED


def _refuse_alive(run: RunFolder, slurm: Slurm) -> None:
    """Refuse a run that is queued or running; find what a submit that was cut off left behind.

    Raises:
        LeaseHeld: It is; the data carries `job_id`.
        SlurmError: Slurm does not answer, so that nobody knows.
    """
    if pending(run.path):
        settle(run.path, slurm)
    submissions = records.read_submissions(run.path)
    alive = slurm.alive([record.slurm_id for record in submissions])
    for record in submissions:
        info = record.job_in(alive)
        if info.state.ended is False:
            raise LeaseHeld(
                f"is {info.state.value.lower()} already as Slurm job {info.job_id}",
                where=run.path,
                hint=f"hpcmass status {run.path.name} shows it; hpcmass cancel {run.path.name} ends it",
                job_id=info.job_id,
            )
    if run.status().state is State.RUNNING:
        owner = run.lease().owner()
        who = f" by process {owner.pid} on {owner.host}" if owner else ""
        raise LeaseHeld(f"is being run{who}", where=run.path, hint="wait for it to end, or end it")


@contextlib.contextmanager
def _laying_down(asked: Asked, indices: list[int], *, fresh: bool) -> Iterator[None]:
    """Make the runs' folders, or bring them up to date; a submit that is refused leaves all as it was."""
    laid: list[_Laid] = []
    try:
        for number in indices:
            _lay_down(asked.jobs[number], asked.site, asked.runs[number], laid, fresh=fresh)
        yield
    except BaseException as error:
        # Where the job may have been taken, or we are ended from outside meanwhile, what it needs must stay.
        unsure = isinstance(error, HpcmassError) and error.data.get("unsure")
        if isinstance(error, Exception) and not unsure:
            for one in reversed(laid):
                _undo(one)
        raise


def _lay_down(job: Job, site: Site, run: RunFolder, laid: list[_Laid], *, fresh: bool) -> None:
    one = _Laid(run)
    laid.append(one)
    recipe = None if job.recipe is None else Path(job.recipe)
    kept = job if recipe is None else job.model_copy(update={"recipe": "recipe.py"})
    if fresh:
        one.aside = set_aside(run)
    if not run.exists():
        try:
            run.create(job_to_toml(kept), site_to_toml(site), recipe)
        except AlreadyExists as error:
            raise LeaseHeld("another submit made this run just now", where=run.path, transient=True) from error
        except BaseException:
            one.made = True  # What there is of it goes.
            raise
        one.made = True
        return
    texts = {run.job_file: job_to_toml(kept).encode(), run.path / "site.toml": site_to_toml(site).encode()}
    if recipe is not None:
        with storage_errors(recipe, "read the recipe"):
            texts[run.path / "recipe.py"] = recipe.read_bytes()
    for path, text in texts.items():
        one.old[path] = path.read_bytes() if path.exists() else None
        replace(path, text)
    if run.status().state is State.COMPLETED:
        # More is asked for than it has done; a hop leaves a completed run alone.
        status = run.path / "status.json"
        one.old[status] = status.read_bytes()
        run.update(state=State.STOPPED, reason="completed; it is asked for more", ended=None)
    _take_back_stop(run, one)


def _take_back_stop(run: RunFolder, one: _Laid | None = None) -> None:
    """What asked earlier jobs of the run to end must not end this one."""
    for path in (run.stop_file, records.slurm_folder(run.path) / "cancel"):
        with contextlib.suppress(FileNotFoundError), storage_errors(path, "take the stop back"):
            if path.exists():
                if one is not None:
                    one.old[path] = path.read_bytes()
                path.unlink()


def _undo(one: _Laid) -> None:
    with contextlib.suppress(OSError, HpcmassError):
        if one.made and not _begun(one.run):
            rubbish = temporary_beside(one.run.path)
            os.rename(one.run.path, rubbish)
            shutil.rmtree(rubbish, ignore_errors=True)
    with contextlib.suppress(OSError, HpcmassError):
        if one.aside is not None and not one.run.path.exists():
            os.rename(one.aside, one.run.path)
    for path, text in one.old.items():
        with contextlib.suppress(OSError, HpcmassError):
            if text is None:
                path.unlink()
            else:
                replace(path, text)


def _begun(run: RunFolder) -> bool:
    """Whether somebody has begun to use the run that we have just made."""
    return run.exists() and (run.status().state is not State.CREATED or run.lease().owner() is not None)


def _submission(
    asked: Asked, job_id: str | None, text: str, after: Sequence[str], notes: Sequence[str]
) -> Submission:
    return Submission(
        job_id=job_id,
        runs=tuple(run.path for run in asked.runs),
        script=text,
        site=asked.site.name,
        target=asked.target_name,
        layout=asked.layout,
        elements=asked.indices if asked.array else (),
        after=tuple(after),
        notes=tuple(notes),
    )
