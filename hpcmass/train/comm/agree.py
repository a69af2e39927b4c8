"""What one rank finds wrong, every rank says: errors that all ranks raise alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hpcmass import errors
from hpcmass.errors import HpcmassError
from hpcmass.train.comm.base import Communicator

T = TypeVar("T")


def on_root(comm: Communicator, function: Callable[[], Any]) -> Any:
    """Call `function` on rank 0 and hand what it returns (JSON can say it) to all ranks. Collective.

    Raises:
        HpcmassError: What it raised on rank 0, on every rank. Anything else is raised on rank 0 only.
    """
    said: dict[str, Any] = {}
    if comm.rank == 0:
        try:
            said = {"value": function()}
        except HpcmassError as error:
            said = {"error": _to_json(error, 0)}
    said = comm.broadcast_object(said)
    if "error" in said:
        raise _from_json(said["error"], comm)
    return said["value"]


def everywhere(comm: Communicator, function: Callable[[], T]) -> T:
    """Call `function` on every rank; what it raises on any rank, every rank raises. Collective.

    Raises:
        HpcmassError: What it raised on the lowest rank that it raised on.
    """
    said = None
    value: T | None = None
    try:
        value = function()
    except HpcmassError as error:
        said = _to_json(error, comm.rank)
    first = next((e for e in comm.share_objects(said) if e is not None), None)
    if first is not None:
        raise _from_json(first, comm)
    return value  # type: ignore[return-value]


def agreed(error: HpcmassError, comm: Communicator) -> HpcmassError:
    """Mark an error that every rank raises at the same point; only rank 0 is to print it."""
    error.data.update(agreed=True, told=comm.rank != 0)
    return error


def is_agreed(error: BaseException) -> bool:
    """Whether every rank raises this error alike, so that no rank waits for another."""
    return isinstance(error, HpcmassError) and bool(error.data.get("agreed"))


def _to_json(error: HpcmassError, rank: int) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
        "transient": error.transient,
        "rank": rank,
    }


def _from_json(said: dict[str, Any], comm: Communicator) -> HpcmassError:
    kind = getattr(errors, said["type"], HpcmassError)
    error: HpcmassError = kind(
        said["message"],
        where=said["where"],
        hint=said["hint"],
        transient=said["transient"],
        rank=said["rank"],
    )
    return agreed(error, comm)
