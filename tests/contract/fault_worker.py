"""One rank to whom something happens: fault_worker.py BACKEND OUTPUT_FOLDER WHAT; writes what it was told."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from hpcmass.errors import RankFailed
from hpcmass.launch import detect_ranks
from hpcmass.train.comm import open_communicator


def main() -> None:
    name, folder, what = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    comm = open_communicator(name, detect_ranks(os.environ))
    comm.barrier()
    if what == "killed" and comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    told = {}
    try:
        comm.share_objects("here")
    except RankFailed as error:
        told = {"message": error.message, "lost_peer": bool(error.data.get("lost_peer"))}
    (folder / f"{comm.rank}.json").write_text(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
