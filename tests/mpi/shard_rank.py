"""`hpcmass shard` of which one rank does something: python shard_rank.py WHAT RANK WORDS…

WHAT: `die` (SIGKILL after its first stretch), `refuse` (the file system refuses it a record), `wait` (after the
first stretch, until the file `go` is there; it makes the file `here`), or `nothing`.
"""

import os
import signal
import sys
import time
from pathlib import Path

from hpcmass.cli.root import run
from hpcmass.data.sharding.staging import ShardStaging
from hpcmass.errors import StorageError
from hpcmass.launch import detect_ranks

what, rank, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
record = ShardStaging.record


def disturbed(self: ShardStaging, kind: str, number: int, value: dict) -> None:
    if what == "refuse":
        raise StorageError("the disk of this node is full", where=self.home)
    record(self, kind, number, value)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "wait":
        Path("here").touch()
        while not Path("go").exists():
            time.sleep(0.02)


if __name__ == "__main__":
    if what != "nothing" and detect_ranks(os.environ).rank == rank:
        ShardStaging.record = disturbed
    sys.exit(run(words))
