"""Submits a script for runs, so that nothing is lost or doubled whenever it is cut off.

An intent with the job's comment is published before sbatch is called, and the record after it answered. An
intent without a record is settled later: by its comment the job is found, or it never was.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcmass.config import Layout
from hpcmass.errors import AlreadyExists, HpcmassError, LeaseHeld
from hpcmass.files import Owner, publish, publish_json
from hpcmass.slurm import records
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.records import SubmissionRecord, publish_submission, script_name, slurm_folder
from hpcmass.slurm.submission import submit_script

# An intent of a process on another machine, of which nobody here can tell whether it lives, counts this long.
_FRESH_S = 600.0
_NAME = re.compile(r"^#SBATCH --job-name=(\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """A run that a job is submitted for.

    Attributes:
        path: The run's folder.
        array_index: Which element of the array it is, or None.
        number: The number to claim, as it was free before Slurm was asked whether the run has a job; None: the
            next that is free.
    """

    path: Path
    array_index: int | None = None
    number: int | None = None


def new_comment() -> str:
    """What a job carries so that it can be found again."""
    return f"{records.COMMENT}{uuid.uuid4()}"


def send(
    places: Sequence[Place],
    text: str,
    *,
    slurm: Slurm,
    site: str,
    target: str,
    layout: Layout | dict[str, Any],
    by: str = "submit",
    after: Sequence[str] = (),
    options: Sequence[str] = (),
    comment: str | None = None,
) -> list[SubmissionRecord]:
    """Submit one script for one run, or for those that are the elements of an array.

    Args:
        places: The runs.
        text: The script.
        slurm: The Slurm to submit to.
        site: The site's name, for the record; also `target` and `layout`.
        target: The target's name.
        layout: Where the ranks lie.
        by: `submit`, `rerun` or `successor`, for the record.
        after: Dependencies as the script or the options name them, for the record.
        options: Options of sbatch that win over the script's lines.
        comment: What the job carries; default: a new one.

    Returns:
        The records, in the order of the places.

    Raises:
        SlurmError: Slurm refused; nothing is left behind, unless it may have taken the job all the same
            (`unsure`): then the intents stay, and the next submit looks for the job.
        LeaseHeld: Another submit of the same run is under way, or was quicker.
        StorageError: The file system refused; after the job was taken the data say `unsure`.
    """
    comment = comment or new_comment()
    written: list[Path] = []
    numbers: list[int] = []
    layout = layout if isinstance(layout, dict) else asdict(layout)
    found = _NAME.search(text)
    name = found[1] if found else ""
    facts = {"site": site, "target": target, "layout": layout, "by": by, "after": list(after), "name": name}
    owner = vars(Owner.this_process())
    try:
        for place in places:
            number = place.number or records.next_number(place.path)
            folder = slurm_folder(place.path)
            intent = {**facts, "format": records.FORMAT, "comment": comment, "array_index": place.array_index}
            try:
                publish_json(
                    folder / f"intent-{number:04d}.json", {**intent, "owner": owner, "time": time.time()}
                )
                written.append(folder / f"intent-{number:04d}.json")
                publish(folder / script_name(number), text)
                written.append(folder / script_name(number))
            except AlreadyExists as error:
                raise overtaken(place.path) from error
            numbers.append(number)
        job_id = submit_script(
            text,
            slurm_folder(places[0].path),
            slurm=slurm,
            name=script_name(numbers[0]),
            options=options,
            comment=comment,
        )
    except HpcmassError as error:
        if not error.data.get("unsure"):
            # The scripts first: an intent without its script can still be settled.
            for path in reversed(written):
                with contextlib.suppress(OSError):
                    path.unlink()
        raise
    sent = [
        SubmissionRecord(
            number=number,
            job_id=job_id,
            array_index=place.array_index,
            site=site,
            target=target,
            layout=layout,
            script=script_name(number),
            submitted=time.time(),
            by=by,
            after=tuple(after),
            comment=comment,
            name=name,
        )
        for place, number in zip(places, numbers, strict=True)
    ]
    try:
        for place, record in zip(places, sent, strict=True):
            _record(place.path, record)
    except HpcmassError as error:
        # The job is there: whoever takes back what it needs would break it. The intent finds it again.
        error.data["unsure"] = True
        error.hint = f"Slurm has taken job {job_id}; 'hpcmass submit' or 'rerun' finds it again"
        raise
    return sent


def overtaken(run_path: Path) -> LeaseHeld:
    """The error of a submit whose number another one has claimed."""
    return LeaseHeld(
        "another submit of this run is under way, or has just ended",
        where=run_path,
        hint=f"hpcmass status {run_path.name} shows its job",
        transient=True,
    )


def settle(run_path: Path, slurm: Slurm) -> list[SubmissionRecord]:
    """Find the jobs of submits that were cut off before their record was written, and write it.

    Returns:
        The records written; empty where there was nothing to settle, or where no job was found.

    Raises:
        LeaseHeld: A submit that may be alive is still at it.
        SlurmError: Slurm does not answer, so that nobody knows.
    """
    found = []
    for number in _open(run_path):
        intent = records.read_intent(run_path, number)
        if intent is None or not intent.get("comment"):
            continue
        if _under_way(intent):
            raise LeaseHeld(
                "another submit of this run is under way",
                where=run_path,
                hint="wait for it to end",
                transient=True,
            )
        jobs = slurm.find_comment(str(intent["comment"]))
        if not jobs:
            continue
        record = _from_intent(number, intent, jobs[-1])
        _record(run_path, record)
        found.append(record)
    return found


def pending(run_path: Path) -> bool:
    """Whether a submit was cut off, or is under way: an intent stands without its record."""
    return bool(_open(run_path))


def under_way(run_path: Path) -> bool:
    """Whether a submit of the run may be at work at this moment."""
    intents = (records.read_intent(run_path, number) for number in _open(run_path))
    return any(_under_way(intent) for intent in intents if intent is not None)


def _open(run_path: Path) -> list[int]:
    return sorted(set(records.numbers(run_path)) - set(records.numbers(run_path, "submission")))


def _under_way(intent: dict[str, Any]) -> bool:
    try:
        alive = Owner(**intent["owner"]).alive()
    except (KeyError, TypeError):
        alive = None
    return alive is True or (alive is None and time.time() - float(intent.get("time") or 0) < _FRESH_S)


def _from_intent(number: int, intent: dict[str, Any], job_id: str) -> SubmissionRecord:
    index = intent.get("array_index")
    return SubmissionRecord(
        number=number,
        job_id=job_id,
        array_index=None if index is None else int(index),
        site=str(intent.get("site", "")),
        target=str(intent.get("target", "")),
        layout=dict(intent.get("layout") or {}),
        script=script_name(number),
        submitted=float(intent.get("time") or 0.0),
        by=str(intent.get("by", "submit")),
        after=tuple(str(one) for one in intent.get("after") or ()),
        comment=str(intent["comment"]),
        name=str(intent.get("name") or ""),
    )


def _record(run_path: Path, record: SubmissionRecord) -> None:
    """Write the record; of two that found the same job the first has written it."""
    with contextlib.suppress(AlreadyExists):
        publish_submission(run_path, record)
