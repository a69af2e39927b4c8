"""One rank of a probe: what it is told, who it finds, how fast. Started N times by `workflow.probe_program`.

    probe_rank mpi|torch|horovod|node RANKS FOLDER

Each rank leaves one file in FOLDER, `HOST-PID.json`, before it meets the others, and replaces it as it learns
more: a rank that hangs or is killed has said how far it came.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from hpcmass import __version__
from hpcmass.errors import HpcmassError
from hpcmass.launch import RankEnv, check_versions, detect_ranks
from hpcmass.launch.topology import binding, loaded_library, node_facts, node_name

MEASURE_S = 0.3
SMALL, LARGE = 8, 4 << 20


class Record:
    """What a rank has to say, on disk as soon as it knows it."""

    def __init__(self, folder: Path, what: str) -> None:
        place = binding()
        self.file = folder / f"{place['node']}-{os.getpid()}.json"
        self.values: dict[str, Any] = {"what": what, **place, "step": "started"}
        self.save()

    def save(self, **values: Any) -> None:
        """Add values and write the file anew."""
        self.values.update(values)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values), encoding="utf-8")
        os.replace(temporary, self.file)


def main() -> NoReturn:
    """Do what the words of the command line say, and end with 0 or 1."""
    sys.exit(probe(*sys.argv[1:4]))


def probe(what: str, ranks: str, folder: str) -> int:
    """Do one of the four and say how it went: 0, or 1 when something was refused."""
    record = Record(Path(folder), what)
    try:
        check_versions(__version__, os.environ)
        if what == "node":
            record.save(facts=node_facts(), step="done")
            return 0
        place = detect_ranks(os.environ)
        record.save(
            told={
                "rank": place.rank,
                "size": place.size,
                "local_rank": place.local_rank,
                "local_size": place.local_size,
                "by": place.source,
            }
        )
        {"mpi": _mpi, "torch": _torch, "horovod": _horovod}[what](record, place, int(ranks))
    except (HpcmassError, ImportError, OSError, RuntimeError, ValueError) as error:
        record.save(error=f"{type(error).__name__}: {error}".splitlines()[0][:500])
        _leave_world()
        return 1
    record.save(step="done")
    return 0


def _leave_world() -> None:
    """End the other ranks too, who would wait for this one until the probe's limit."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized() and mpi.COMM_WORLD.Get_size() > 1:
        mpi.COMM_WORLD.Abort(1)


# -- MPI ---------------------------------------------------------------------------------------------------


def _mpi(record: Record, _place: RankEnv, ranks: int) -> None:
    mpi = import_module("mpi4py.MPI")
    world = mpi.COMM_WORLD
    library = mpi.Get_library_version().splitlines()[0].strip(" \0")
    record.save(
        rank=world.Get_rank(),
        size=world.Get_size(),
        library=library,
        libmpi=loaded_library("libmpi"),
        step="met",
    )
    if world.Get_size() != ranks:
        return
    nodes = world.allgather(node_name())
    measured = {}
    for name, pair in pairs(nodes).items():
        _wait(mpi, world)
        if world.Get_rank() in pair:
            small, large = (_rounds(world, pair, size) for size in (SMALL, LARGE))
            if world.Get_rank() == pair[0]:
                measured[name] = _speeds(small, large)
    _wait(mpi, world)
    record.save(measured=measured)


def pairs(nodes: list[str]) -> dict[str, tuple[int, int]]:
    """Two ranks of one node, and two of different nodes, where there are such: by the nodes of all ranks."""
    found: dict[str, tuple[int, int]] = {}
    for rank, node in enumerate(nodes[1:], 1):
        found.setdefault("within a node" if node == nodes[0] else "between nodes", (0, rank))
    return found


def _wait(mpi: Any, world: Any) -> None:
    """A barrier that does not spin: ranks that only wait must not take the cores of those that measure."""
    request = world.Ibarrier()
    while not request.Test():
        time.sleep(0.005)


def _speeds(small: list[float], large: list[float]) -> dict[str, float]:
    """Median one-way latency in microseconds of 8 bytes, and bandwidth in GB/s of 4 MiB, by round trips."""
    return {
        "latency_us": statistics.median(small) / 2 * 1e6,
        "bandwidth_gb_s": LARGE / (statistics.median(large) / 2) / 1e9,
    }


def _rounds(world: Any, pair: tuple[int, int], size: int) -> list[float]:
    """Seconds of round trips, to the first rank of the pair, which says by a byte when it is enough."""
    first, second = pair
    message, answer = bytearray(size), bytearray(size)
    seconds: list[float] = []
    if world.Get_rank() == second:
        while True:
            world.Recv(answer, first)
            world.Send(message, first)
            if answer[0]:
                return seconds
    until, last = time.perf_counter() + MEASURE_S, False
    while not last:
        last = time.perf_counter() > until and len(seconds) >= 3
        message[0] = last
        started = time.perf_counter()
        world.Send(message, second)
        world.Recv(answer, second)
        seconds.append(time.perf_counter() - started)
    # The first ones make the connection.
    return seconds[len(seconds) // 4 :]


# -- torch and Horovod -------------------------------------------------------------------------------------


def _torch(record: Record, place: RankEnv, ranks: int) -> None:
    """`import torch` on all ranks at once, then a sum over the torch backend: NCCL where there are GPUs."""
    started = time.perf_counter()
    torch = import_module("torch")
    import_s = time.perf_counter() - started
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(n) for n in range(gpus)]
    record.save(import_s=import_s, alive_s=_alive_s(), torch=torch.__version__, gpus=names, step="imported")
    if not torch.distributed.is_available():
        raise RuntimeError("this torch is built without torch.distributed")
    _sum(record, "torch", place, ranks)


def _horovod(record: Record, place: RankEnv, ranks: int) -> None:
    # MPI first, so that it is mpi4py's library that is loaded, and Horovod's is held against it.
    import_module("mpi4py.MPI")
    mine = loaded_library("libmpi")
    import_module("horovod.torch")
    record.save(libmpi=loaded_library("libmpi"), libmpi_of_mpi4py=mine, step="imported")
    _sum(record, "horovod", place, ranks)


def _sum(record: Record, backend: str, place: RankEnv, ranks: int) -> None:
    torch = import_module("torch")
    from hpcmass.train.comm.choose import open_communicator

    os.environ.setdefault("HPCMASS_RANKS", str(ranks))
    comm = open_communicator(backend, place)
    record.save(rank=comm.rank, size=comm.size, device=str(comm.device), step="met")
    flat = torch.full((1000,), float(comm.rank + 1), device=comm.device)
    comm.allreduce_(flat).wait()
    right = bool((flat == comm.size * (comm.size + 1) / 2).all())
    comm.barrier()
    comm.close()
    record.save(right=right)


def _alive_s() -> float:
    """Seconds since this process was started, the interpreter's own start included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK")
