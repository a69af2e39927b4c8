"""Hands a script to Slurm through submitit: the only module that knows it.

submitit submits and names the job. Text and command are ours, so that what is submitted is what was shown, and
no pickle is written: `_submit_command` is called by itself, below the part of submitit that pickles a function.
These methods are private to submitit; the version is pinned, and `tests/contract` holds what is used here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcmass.errors import AlreadyExists, MissingDependency, SlurmError
from hpcmass.files import make_dir, publish, storage_errors
from hpcmass.slurm import commands
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.parse_jobs import parse_job_id

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor


def submit_script(
    text: str,
    folder: Path,
    *,
    slurm: Slurm,
    name: str = "job.sbatch",
    options: Sequence[str] = (),
    comment: str = "",
) -> str:
    """Submit a script as it stands.

    Args:
        text: The script.
        folder: Where it is kept under `name`; made if it is not there.
        slurm: The Slurm to submit to; its patience holds while the controller cannot be reached.
        name: The script's name; one that is there with the same text is used.
        options: Further options of sbatch, which win over the script's own lines.
        comment: What the job carries as its comment: by it a job is found that was taken although sbatch
            reports that it did not hear back.

    Returns:
        The job id (of an array: the array's).

    Raises:
        SlurmError: Slurm refused, in plain words, or could not be reached.
        AlreadyExists: There is another script of that name.
        MissingDependency: submitit is not installed.
        StorageError: The file system refused.
    """
    path = make_dir(folder) / name
    try:
        publish(path, text)
    except AlreadyExists:
        with storage_errors(path, "read the script"):
            if path.read_bytes() != text.encode():
                raise
    words = [*([f"--comment={comment}"] if comment else []), *options]
    job: Any = _executor(folder, path, words, slurm, comment)._submit_command("")
    return str(job.job_id)


def submit_file(
    script: Path, *, slurm: Slurm, comment: str, options: Sequence[str] = (), patience_s: float | None = None
) -> str:
    """Submit a script that lies there, quickly: without submitit, which takes its time to load.

    Args:
        script: The script.
        slurm: The Slurm to submit to.
        comment: What the job carries as its comment; see `submit_script`.
        options: Further options of sbatch, which win over the script's own lines.
        patience_s: How long it is tried; default: the client's patience. With 0 no second job can come of it.

    Returns:
        The job id.

    Raises:
        SlurmError: Slurm refused, in plain words, or could not be reached.
    """
    sbatch, *rest = commands.sbatch(script)
    argv = [sbatch, *rest[:-1], f"--comment={comment}", *options, rest[-1]]
    return _submitted(argv, slurm, comment, _job_id, patience_s)


def _job_id(answer: str) -> str:
    job_id = parse_job_id(answer)
    if job_id is None:
        raise ValueError(answer)
    return job_id


def _executor(folder: Path, path: Path, words: list[str], slurm: Slurm, comment: str) -> SlurmExecutor:
    try:
        from submitit.core.utils import FailedSubmissionError
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError as error:
        raise MissingDependency(
            "submitit is not installed", hint="pip install 'submitit>=1.5,<1.6'", missing=error.name
        ) from error

    class ScriptExecutor(SlurmExecutor):
        """Submits a script that is written already."""

        @classmethod
        def affinity(cls) -> int:
            return 2  # Whether there is a Slurm the command itself says, in better words.

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            sbatch, *rest = commands.sbatch(submission_file_path)
            return [sbatch, *rest[:-1], *words, rest[-1]]

        @staticmethod
        def _get_job_id_from_submission_command(string: bytes | str) -> str:
            answer = string if isinstance(string, str) else string.decode("utf-8", "replace")
            job_id = parse_job_id(answer)
            if job_id is None:
                raise FailedSubmissionError(answer)
            return job_id

        def _submit_command(self, command: str) -> Any:
            argv = self._make_submission_command(path)
            job_id = _submitted(argv, slurm, comment, self._get_job_id_from_submission_command)
            return self.job_class(folder=self.folder, job_id=job_id, tasks=[0])

    executor: SlurmExecutor = ScriptExecutor(folder)
    return executor


def _submitted(
    argv: list[str], slurm: Slurm, comment: str, read_id: Any, patience_s: float | None = None
) -> str:
    """Run sbatch; where it did not hear back, look whether the job is there before trying again."""
    until = time.monotonic() + (slurm.patience_s if patience_s is None else patience_s)
    while True:
        try:
            out = slurm.run(argv, patience_s=max(0.0, until - time.monotonic()))
        except SlurmError as error:
            if not error.data["unsure"] or not comment:
                raise
            # Slurm may need a moment to list what it has just taken.
            time.sleep(1.0)
            with contextlib.suppress(SlurmError):
                if found := slurm.find_comment(comment):
                    return found[-1]
                if time.monotonic() < until:
                    continue
            error.hint = (
                "look with 'hpcmass status' or squeue before you submit again: Slurm may have taken the job"
            )
            raise
        try:
            return str(read_id(out))
        except Exception:
            if comment and (found := slurm.find_comment(comment)):
                return found[-1]
            raise SlurmError(
                f"sbatch's answer holds no job id: {out.strip()[:200]!r}",
                hint="a wrapper of the site's may stand in place of sbatch",
                argv=argv,
                exit_code=0,
                stderr="",
                kind="other",
                unsure=True,
            ) from None
