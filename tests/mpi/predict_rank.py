"""`hpcmass predict` of which one rank is killed after its first part: python predict_rank.py RANK WORDS…

The other ranks go no further than that either, so that something is left to do when the launcher ends them.
"""

import os
import signal
import sys
import time

from hpcmass.cli.root import run
from hpcmass.evaluate.batch_out import ParquetOutput, ShardOutput
from hpcmass.launch import detect_ranks

victim, words = int(sys.argv[1]), sys.argv[2:]


def disturbed(write):
    def one_part(self, part, rows):
        write(self, part, rows)
        if detect_ranks(os.environ).rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(1)

    return one_part


if __name__ == "__main__":
    for kind in (ParquetOutput, ShardOutput):
        kind.write = disturbed(kind.write)
    sys.exit(run(words))
