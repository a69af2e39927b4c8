"""One of three ranks on two nodes (0 and 1 on a, 2 on b), as far as staging sees: `staging_worker.py BACKEND FOLDER`.

Stages the dataset FOLDER/d as the test asks, and writes what came of it into FOLDER/said-CASE-RANK.json.
"""

import json
import os
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

from hpcmass.data import open_dataset
from hpcmass.errors import HpcmassError
from hpcmass.launch import detect_ranks
from hpcmass.train import pieces
from hpcmass.train.comm import open_communicator
from hpcmass.train.staging import stage

OPENS: Counter[str] = Counter()


def main() -> None:
    backend, folder = sys.argv[1], Path(sys.argv[2])
    comm = open_communicator(backend, detect_ranks(os.environ))
    node = "ab"[comm.rank // 2]
    socket.gethostname = lambda: node
    pieces.PIECE_BYTES, pieces.usable_cores = 1000, lambda: 2 + comm.rank
    dataset = open_dataset(folder / "d")
    disk = folder / f"disk-{node}"
    sent, broadcast = [0], comm.broadcast_

    def counted(tensors, root=0):
        sent[0] += 1
        broadcast(tensors, root)

    comm.broadcast_ = counted

    def opened(event, args):
        if event == "open" and str(args[0]).startswith(f"{folder}/d/") and str(args[0]).endswith(".h5"):
            OPENS[Path(args[0]).name] += 1

    sys.addaudithook(opened)

    def case(name: str, **options) -> None:
        comm.barrier()
        OPENS.clear()
        sent[0] = 0
        said = {"sent": 0, "opens": {}, "error": None, "folders": [], "notes": []}
        try:
            staged = stage([dataset], comm, str(disk), **options)
            said.update(folders=[str(f) for f in staged.datasets[0].folders], notes=staged.notes)
            said["unchecked"] = [shard.file for shard, _ in staged.unchecked]
            staged.close()
        except HpcmassError as error:
            said["error"] = str(error)
        said.update(sent=sent[0], opens=dict(OPENS))
        (folder / f"said-{name}-{comm.rank}.json").write_text(json.dumps(said))
        comm.barrier()

    case("first")
    if comm.rank == 2:
        for place in list(disk.glob("*/*/*/shard-00001.h5")):
            shutil.rmtree(place.parent)
    case("one_lacks")
    if comm.rank == 2:
        shutil.rmtree(disk)
        disk.mkdir()
        os.chmod(disk, 0o755)
        (disk / f"hpcmass-shards-{os.getuid()}").write_text("in the way")
    if comm.rank == 0:
        shutil.rmtree(disk)
    case("b_cannot")
    if comm.rank == 2:
        (disk / f"hpcmass-shards-{os.getuid()}").unlink()
    if comm.rank == 0:
        shutil.rmtree(disk)
        file = folder / "d" / "shard-00003.h5"
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        os.chmod(file, 0o600)
        file.write_bytes(data)
    case("flipped")
    if comm.rank == 0:
        shutil.rmtree(disk)
        os.truncate(folder / "d" / "shard-00003.h5", 1500)
    case("short")
    comm.close()


main()
