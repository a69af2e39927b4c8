"""Every error that hpcmass raises on purpose.

One root, so that a caller (and the command line) can tell "hpcmass says no" from a defect. A message
says what was wrong; `where` says in which file, key or line; `hint` says what to do about it.
"""

from __future__ import annotations

from typing import Any


class HpcmassError(Exception):
    """Root of all errors raised on purpose.

    Attributes:
        message: What was wrong, one sentence.
        where: File, `file:line`, key or folder concerned, if any.
        hint: What the user can do, if anything is known.
        transient: Whether the same call may succeed later without a change.
        data: Further facts for programs (ids, paths, captured output).
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        where: object = None,
        hint: str | None = None,
        transient: bool = False,
        **data: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = None if where is None else str(where)
        self.hint = hint
        self.transient = transient
        self.data = data

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        # The keyword-only arguments would be lost by Exception's own pickling, which Parsl needs.
        return _rebuild, (type(self), self.message, self.where, self.hint, self.transient, self.data)


def _rebuild(
    kind: type[HpcmassError],
    message: str,
    where: str | None,
    hint: str | None,
    transient: bool,
    data: dict[str, Any],
) -> HpcmassError:
    return kind(message, where=where, hint=hint, transient=transient, **data)


class ConfigError(HpcmassError):
    """A job, site or project file, or an override, is wrong."""


class NameNotAllowed(HpcmassError):
    """A name (of a run, model, alias, field …) holds characters that names may not hold."""


class StorageError(HpcmassError):
    """The file system refused: no space, no permission, a missing folder."""


class AlreadyExists(HpcmassError):
    """What was to be published once is there already."""


class NotFound(HpcmassError):
    """A file, dataset, run, model, version or alias does not exist."""


class LeaseHeld(HpcmassError):
    """Another process that is alive (or not known to be dead) holds the lease."""


class DataError(HpcmassError):
    """A dataset or an input file is not what it should be."""


class CorruptError(DataError):
    """Bytes on disk do not fit their checksum or their format."""


class RecipeError(HpcmassError):
    """The user's recipe or script raised, or lacks what it needs."""


class TrainError(HpcmassError):
    """Training cannot go on (a NaN loss, a checkpoint that does not fit)."""


class LaunchError(HpcmassError):
    """Ranks could not be started, or did not find each other.

    The data say `lasting` where the same start would fail again: MPI library and launcher do not fit.
    """


class RankFailed(LaunchError):
    """One or more ranks ended badly; the data carries `rank`, `exit_code` and `signal`."""


class BlockLost(HpcmassError):
    """The node or the pilot job under a piece of work is gone, or at its end: no fault of the work itself."""


class MissingDependency(HpcmassError):
    """An optional package is needed and not installed."""


class CatalogueError(HpcmassError):
    """The catalogue refused (an alias moved meanwhile, a digest does not fit)."""


class SweepError(HpcmassError):
    """A study cannot be opened, continued or run."""


class SlurmError(HpcmassError):
    """Slurm refused, or does not answer; the data carries `argv`, `exit_code` and `stderr`."""
