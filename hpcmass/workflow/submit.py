"""`hpcmass submit` and `hpcmass rerun`: from a job and a site's target to a Slurm job, with nothing half done.

What can be refused is refused before anything is written. Then the run folder is laid down, an intent is
published, sbatch is called, and the record is published; a submit that Slurm refuses takes all of it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcmass.config import Job, Layout, Project, Target, as_job
from hpcmass.errors import ConfigError, LeaseHeld, NotFound
from hpcmass.files import storage_errors
from hpcmass.launch import hpcmass_command
from hpcmass.runs import RunFolder, State
from hpcmass.slurm import records
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.script import Element, ScriptSpec, render_script
from hpcmass.slurm.send import Place, new_comment, pending, send, settle
from hpcmass.train.begun import asks_for_more
from hpcmass.workflow.after import dependencies
from hpcmass.workflow.asked import Asked, ask
from hpcmass.workflow.env_pack import packed_of
from hpcmass.workflow.laydown import laying_down, take_back_stop
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
    # Before Slurm is asked: of two submits at once the second finds its number taken.
    free = [records.next_number(run.path) for run in asked.runs]
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
    with laying_down(asked, open_runs, free, fresh=fresh) as laid:
        sent = send(
            [
                Place(one.run.path, n if asked.array else None, one.number)
                for n, one in zip(open_runs, laid, strict=True)
            ],
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
    number = records.next_number(run.path)
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
    take_back_stop(run)
    sent = send(
        [Place(run.path, last.array_index, number)],
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
