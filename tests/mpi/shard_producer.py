"""A producer as a user writes it: run by mpiexec, srun or alone, it writes its ranks' part of the samples.

python shard_producer.py FOLDER SAMPLES [DIE_AT [DIE_RANK]]
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

import hpcmass


def main() -> None:
    folder, samples = Path(sys.argv[1]), int(sys.argv[2])
    die_at = int(sys.argv[3]) if len(sys.argv) > 3 else -1
    die_rank = int(sys.argv[4]) if len(sys.argv) > 4 else -1
    fields = {"x": ("float32", 4), "label": "int64", "number": "int64"}
    with hpcmass.ShardWriter(folder, fields, meta=["number"], shard_samples=8) as writer:
        print(f"rank {writer.rank} of {writer.ranks} has {writer.resumed_samples}", flush=True)
        mine = range(writer.rank * samples // writer.ranks, (writer.rank + 1) * samples // writer.ranks)
        for number in mine[writer.resumed_samples :]:
            if writer.samples == die_at and writer.rank == die_rank:
                os.kill(os.getpid(), signal.SIGKILL)
            writer.write({"x": np.full(4, number, np.float32), "label": number % 2, "number": number})


main()
