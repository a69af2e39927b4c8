"""How a rank ends: its last words, and that none that leaves in order is taken for dead by the others."""

from __future__ import annotations

import contextlib
import sys
import traceback
from typing import NoReturn

from hpcmass.errors import CorruptError, HpcmassError, RankFailed, StorageError
from hpcmass.launch import leave_word
from hpcmass.runs import RunFolder, State
from hpcmass.train.comm import Communicator
from hpcmass.train.comm.agree import is_agreed
from hpcmass.train.signals import Watch, fail_status


def last_words(run: RunFolder, attempt: int, comm: Communicator, error: BaseException, watch: Watch) -> None:
    """Leave the reason in the run folder: of an agreed error rank 0, of its own error any rank."""
    if run.lost:
        return
    stopped = isinstance(error, KeyboardInterrupt)
    if not is_agreed(error) or comm.rank == 0:
        run.record_exception(attempt, comm.rank, error, watch.step)
        text = error.message if isinstance(error, HpcmassError) else f"{type(error).__name__}: {error}"
        if isinstance(error, (CorruptError, StorageError)) and error.where:
            text = f"{error.where}: {text}"  # which shard, which disk
        text = "ended at once by a second signal" if stopped else text
        if comm.size > 1 and not is_agreed(error):
            text = f"rank {comm.rank}: {text}"
        lost = isinstance(error, RankFailed) and error.data.get("lost_peer")
        if lost:
            watch.lost_peer()
        fail_status(run, text, State.STOPPED if stopped else State.FAILED)


def leave(comm: Communicator, watch: Watch) -> None:
    """Return when all ranks have said what they have to say, and none takes another's end for its death.

    Collective; called where all ranks are about to end. A rank that dies meanwhile changes nothing any more.
    """
    with contextlib.suppress(RankFailed):
        comm.barrier()  # rank 0 comes when the reason is written, and the others live until then
        watch.ending()
        comm.barrier()  # no process ends before all have heard of it


def end_all(comm: Communicator, error: BaseException) -> NoReturn:
    """End every rank: this one cannot go on, and the others are waiting for it."""
    if isinstance(error, HpcmassError):
        if not leave_word(error):
            print(f"error: rank {comm.rank}: {error}", file=sys.stderr, flush=True)
    elif isinstance(error, KeyboardInterrupt):
        comm.abort("interrupted", 130)
    else:
        text = "".join(traceback.format_exception(error))
        print(f"{text}error: rank {comm.rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    comm.abort(str(error), 2)
