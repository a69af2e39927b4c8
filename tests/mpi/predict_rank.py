"""`hpcmass predict` of which one rank is killed after its first part: python predict_rank.py RANK WORDS…"""

import os
import signal
import sys

from hpcmass.cli.root import run
from hpcmass.evaluate.batch_out import ParquetOutput, ShardOutput
from hpcmass.launch import detect_ranks

victim, words = int(sys.argv[1]), sys.argv[2:]


def dying(write):
    def disturbed(self, part, rows):
        write(self, part, rows)
        os.kill(os.getpid(), signal.SIGKILL)

    return disturbed


if __name__ == "__main__":
    if detect_ranks(os.environ).rank == victim:
        for kind in (ParquetOutput, ShardOutput):
            kind.write = dying(kind.write)
    sys.exit(run(words))
