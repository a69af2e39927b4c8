"""What a run's folder tells of its Slurm jobs: submissions and hops.

```
RUN/slurm/job-0001.sbatch          the script, exactly as it was submitted
RUN/slurm/intent-0001.json         published before sbatch is called, with the comment that the job carries
RUN/slurm/submission-0001.json     published after sbatch answered
RUN/slurm/hop-0001.json            claimed when a hop begins: its number, and whose it is
RUN/slurm/hops.jsonl               one record at the begin and one at the end of every hop
RUN/slurm/out-<jobid>.log          what Slurm and the batch script wrote
```
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcmass.errors import CorruptError, NotFound
from hpcmass.files import Owner, publish_json, read_json, read_records, storage_errors
from hpcmass.slurm.jobs import JobInfo, JobState

FORMAT = 1
COMMENT = "hpcmass:"
# Clocks of the login node and of Slurm's controller differ, and a submit waits for a controller that is away.
_CLOCKS_S = 900.0
_NUMBERED = re.compile(r"(submission|intent|hop)-(\d{4,})\.json")


@dataclass(frozen=True)
class SubmissionRecord:
    """One job that was submitted for a run.

    Attributes:
        number: 1 for the first.
        job_id: As sbatch gave it: of an array, the array's.
        array_index: The run's element of the array, or None.
        site, target: Names, as in the site file.
        layout: The fields of `hpcmass.config.Layout`.
        script: Name of the script, in the same folder.
        submitted: Seconds since the epoch.
        by: `submit`, `rerun` or `successor`.
        after: Ids of the jobs it waits for.
        comment: What the job carries as `--comment`.
        name: The job's name, or empty where it was not noted.
    """

    number: int
    job_id: str
    array_index: int | None = None
    site: str = ""
    target: str = ""
    layout: dict[str, Any] = field(default_factory=dict)
    script: str = ""
    submitted: float = 0.0
    by: str = "submit"
    after: tuple[str, ...] = ()
    comment: str = ""
    name: str = ""

    @property
    def slurm_id(self) -> str:
        """The id to ask Slurm about: `12`, or `12_3` for an element of an array."""
        return self.job_id if self.array_index is None else f"{self.job_id}_{self.array_index}"

    def job_in(self, jobs: Mapping[str, JobInfo]) -> JobInfo:
        """This submission's job out of what Slurm says by id; UNKNOWN where it says nothing of it.

        A Slurm that lost its state counts from 1 again, and each cluster counts for itself: another job may
        have the number now.
        """
        info = jobs.get(self.slurm_id)
        if info is None:
            return JobInfo(self.slurm_id, JobState.UNKNOWN)
        if info.source and not self._is(info):
            return JobInfo(self.slurm_id, JobState.UNKNOWN, "another job has its number now")
        return info

    def _is(self, info: JobInfo) -> bool:
        if self.comment and self.comment in info.comment:
            return True
        if self.comment and info.comment.startswith(COMMENT):
            return False
        if self.name and info.name and info.name != self.name:
            return False
        # A requeue sets the time of submission anew: it only ever grows.
        return not (info.submitted and self.submitted) or info.submitted > self.submitted - _CLOCKS_S


@dataclass(frozen=True)
class Hop:
    """One start of a run's batch script: a job, or a requeued job's next life.

    Attributes:
        hop: 1 for the first.
        job_id: As Slurm tells it inside the job.
        restart: How often Slurm had requeued the job before.
        ends: When its time limit ends, seconds since the epoch; None where not known.
        state, cause, step, next, reason, ended: From its end; None or empty while it runs, or where it ended
            without a last word.
    """

    hop: int
    job_id: str = ""
    restart: int = 0
    host: str = ""
    nodes: tuple[str, ...] = ()
    ranks: int = 0
    ends: float | None = None
    from_step: int = 0
    began: float | None = None
    state: str = ""
    cause: str = ""
    step: int | None = None
    next: str = ""
    reason: str = ""
    ended: float | None = None


def slurm_folder(run_path: Path) -> Path:
    """Where a run keeps what concerns Slurm."""
    return run_path / "slurm"


def script_name(number: int) -> str:
    """The name of the script of a submission."""
    return f"job-{number:04d}.sbatch"


def numbers(run_path: Path, kind: str = "intent") -> list[int]:
    """The numbers of the intents, submissions or hops of a run, ascending.

    Raises:
        StorageError: The file system refused.
    """
    folder = slurm_folder(run_path)
    with storage_errors(folder, "list the folder"):
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
    found = (_NUMBERED.fullmatch(name) for name in names)
    return sorted(int(match[2]) for match in found if match and match[1] == kind)


def next_number(run_path: Path) -> int:
    """The number that the next submit of a run is to claim."""
    return max(numbers(run_path), default=0) + 1


def publish_submission(run_path: Path, record: SubmissionRecord) -> None:
    """Write down that a job was submitted.

    Raises:
        AlreadyExists: The number is taken.
        StorageError: The file system refused.
    """
    value = {
        "format": FORMAT,
        "job_id": record.job_id,
        "array_index": record.array_index,
        "site": record.site,
        "target": record.target,
        "layout": record.layout,
        "script": record.script,
        "submitted": record.submitted,
        "by": record.by,
        "after": list(record.after),
        "comment": record.comment,
        "name": record.name,
    }
    publish_json(slurm_folder(run_path) / f"submission-{record.number:04d}.json", value)


def read_submissions(run_path: Path) -> list[SubmissionRecord]:
    """The submissions of a run, newest last; none where it was never submitted.

    Raises:
        CorruptError: A record is damaged.
    """
    return [_submission(run_path, number) for number in numbers(run_path, "submission")]


def _submission(run_path: Path, number: int) -> SubmissionRecord:
    file = slurm_folder(run_path) / f"submission-{number:04d}.json"
    raw = read_json(file)
    try:
        index = raw.get("array_index")
        return SubmissionRecord(
            number=number,
            job_id=str(raw["job_id"]),
            array_index=None if index is None else int(index),
            site=str(raw.get("site", "")),
            target=str(raw.get("target", "")),
            layout=dict(raw.get("layout") or {}),
            script=str(raw.get("script") or script_name(number)),
            submitted=float(raw.get("submitted") or 0.0),
            by=str(raw.get("by", "submit")),
            after=tuple(str(one) for one in raw.get("after") or ()),
            comment=str(raw.get("comment") or ""),
            name=str(raw.get("name") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptError(f"is not a submission's record ({error})", where=file) from error


def read_intent(run_path: Path, number: int) -> dict[str, Any] | None:
    """An intent, or None where there is none or it is damaged."""
    try:
        raw = read_json(slurm_folder(run_path) / f"intent-{number:04d}.json")
    except (NotFound, CorruptError):
        return None
    return raw if isinstance(raw, dict) else None


def hop_file(run_path: Path, number: int) -> Path:
    """What claims the number of a hop."""
    return slurm_folder(run_path) / f"hop-{number:04d}.json"


def hop_claims(run_path: Path) -> dict[int, Owner | None]:
    """The hops that have begun, by number, each with its process; None where its file is damaged."""
    found: dict[int, Owner | None] = {}
    for number in numbers(run_path, "hop"):
        found[number] = None
        with contextlib.suppress(NotFound, CorruptError, KeyError, TypeError):
            found[number] = Owner(**read_json(hop_file(run_path, number))["owner"])
    return found


def read_hops(run_path: Path) -> list[Hop]:
    """The hops of a run, oldest first, each with its end where it has one."""
    hops: dict[int, dict[str, Any]] = {}
    for record in read_records(slurm_folder(run_path) / "hops.jsonl"):
        try:
            hop = hops.setdefault(int(record["hop"]), {"hop": int(record["hop"])})
            if record.get("kind") == "begin":
                hop |= {
                    "job_id": str(record.get("job_id", "")),
                    "restart": int(record.get("restart") or 0),
                    "host": str(record.get("host", "")),
                    "nodes": tuple(str(node) for node in record.get("nodes") or ()),
                    "ranks": int(record.get("ranks") or 0),
                    "ends": _float(record.get("ends")),
                    "from_step": int(record.get("from_step") or 0),
                    "began": _float(record.get("time")),
                }
            elif record.get("kind") == "end":
                step = record.get("step")
                hop |= {
                    "state": str(record.get("state", "")),
                    "cause": str(record.get("cause", "")),
                    "step": None if step is None else int(step),
                    "next": str(record.get("next", "")),
                    "reason": str(record.get("reason") or ""),
                    "ended": _float(record.get("time")),
                }
        except (KeyError, TypeError, ValueError):
            continue
    return [Hop(**hops[number]) for number in sorted(hops)]


def _float(value: Any) -> float | None:
    return None if value is None else float(value)
