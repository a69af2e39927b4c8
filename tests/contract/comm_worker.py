"""One rank of the communicators' contract: does everything once and writes what it got as JSON.

comm_worker.py BACKEND OUTPUT_FOLDER [NODES]

NODES, such as 0,0,1: the node of each rank, as if the ranks of one number only shared memory; the windows and
what goes between them are the real ones. Where the ranks have cores to spare or not is settled by THREADS.
"""

import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from hpcmass.errors import HpcmassError
from hpcmass.launch import detect_ranks
from hpcmass.train.comm import open_communicator
from hpcmass.train.comm.agree import everywhere, on_root
from hpcmass.train.reducer import FLAGS, GradientReducer

SAMPLES, FEATURES = 12, 5


def make_model() -> torch.nn.Module:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    model.unused = torch.nn.Parameter(torch.ones(4))
    return model


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    return x, torch.randn(SAMPLES, 2, generator=generator)


def slices(size: int) -> list[range]:
    """Unequal on purpose; the last of several ranks has none."""
    if size == 1:
        return [range(SAMPLES)]
    bounds = [0, 7, *[8 + i for i in range(size - 3)], SAMPLES, SAMPLES] if size > 2 else [0, SAMPLES, SAMPLES]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def gradients(comm, bucket_bytes: int, micro: int, wire=None) -> list[list[float]]:
    model = make_model()
    x, y = make_data()
    reducer = GradientReducer(model.parameters(), comm, bucket_bytes=bucket_bytes, wire=wire)
    for _ in range(2):  # the second time over used buffers
        reducer.zero()
        mine = list(slices(comm.size)[comm.rank])
        parts = [mine[i::micro] for i in range(micro) if mine[i::micro]]
        reducer.flags[0] = float(comm.rank == comm.size - 1)
        for number, part in enumerate(parts):
            if number == len(parts) - 1:
                reducer.start()
            loss = torch.nn.functional.mse_loss(model(x[part]), y[part])
            (loss * (len(part) / SAMPLES)).backward()
        reducer.finish()
    assert reducer.flags.tolist() == [1.0, *[0.0] * (FLAGS - 1)]
    found = [p.grad.flatten().tolist() for p in model.parameters()]
    reducer.close()
    return found


def buffers(comm) -> dict[str, list]:
    """Sums in buffers of every type, of one and many pieces, over ranks of which some are late."""
    found = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for numel in (3, 300_001):
            flat = comm.buffer(numel, dtype)
            assert flat.shape == (numel,)
            assert not flat.any()
            for turn in range(2):
                mine = torch.randn(numel, generator=torch.Generator().manual_seed(10 * turn + comm.rank))
                flat.copy_(mine)
                if comm.rank == comm.size - 1:
                    time.sleep(0.05)
                comm.sum_([flat[:1], flat[1:]])
            parts = [
                torch.randn(numel, generator=torch.Generator().manual_seed(10 + rank)).to(dtype).double()
                for rank in range(comm.size)
            ]
            allowed = torch.finfo(dtype).eps * sum(part.abs() for part in parts)
            error = ((flat.double() - sum(parts)).abs() / allowed).max().item()
            digest = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
            found[f"{dtype} {numel}"] = [error, digest]
    return found


def combined(comm) -> list[str]:
    """Digests of sums of all ranks' rows in a given order: what was expected, and what came."""
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for n in (1, 100_003):
            rows = 2
            table = comm.buffer(rows * n, dtype).view(rows, n)
            steps = [(of // 2, of) for of in range(comm.size * rows - 1, 0, -1)]
            for turn in range(2):

                def row(number: int, n: int = n, turn: int = turn, dtype=dtype) -> torch.Tensor:
                    seed = torch.Generator().manual_seed(100 * turn + number)
                    return torch.randn(n, generator=seed).mul(10.0 ** (number % 5)).to(dtype)

                for number in range(rows):
                    table[number] = row(comm.rank * rows + number)
                comm.combine_([table], steps)
                expected = [row(number) for number in range(comm.size * rows)]
                for to, of in steps:
                    expected[to].add_(expected[of])
                found += [
                    hashlib.sha256(one.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
                    for one in (expected[0], table[0])
                ]
    return found


def on_nodes(nodes: list[int]) -> None:
    from hpcmass.train.comm.mpi import MpiCommunicator

    MpiCommunicator._split_node = lambda self: self._comm.Split(nodes[self.rank], self.rank)


def agreed_errors(comm) -> list[str]:
    def refuse() -> None:
        raise HpcmassError("rank 0 refuses", hint="so be it")

    def last_refuses() -> int:
        if comm.rank == comm.size - 1:
            raise HpcmassError(f"rank {comm.rank} refuses")
        return 1

    said = []
    for call in (lambda: on_root(comm, refuse), lambda: everywhere(comm, last_refuses)):
        try:
            call()
        except HpcmassError as error:
            said.append(f"{error.message} told={error.data['told']}")
    return said


def wait_s(comm) -> float | None:
    """How long gloo lets a rank wait for the others."""
    if comm.name != "torch":
        return None
    backend = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    return float(backend.options._timeout.total_seconds())


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(int(os.environ.get("THREADS", "1")))
    if len(sys.argv) > 3:
        on_nodes([int(node) for node in sys.argv[3].split(",")])
    comm = open_communicator(name, detect_ranks(os.environ))
    got = {"rank": comm.rank, "size": comm.size, "name": comm.name, "mpi": "mpi4py.MPI" in sys.modules}
    values = np.array([comm.rank + 1.0, 2.0**40 + comm.rank, -1.0])
    for op in ("sum", "max", "min"):
        got[op] = comm.allreduce_values(values, op).tolist()
    assert values[0] == comm.rank + 1.0
    tensors = [
        torch.full((3, 2), float(comm.rank)),
        torch.tensor(comm.rank),
        torch.full((4,), comm.rank, dtype=torch.bfloat16),
        torch.full((2, 3), float(comm.rank)).t(),
        torch.zeros(0),
    ]
    comm.broadcast_(tensors, root=comm.size - 1)
    got["broadcast"] = [t.flatten().tolist() for t in tensors]
    got["object"] = comm.broadcast_object({"from": comm.rank, "text": "é" * 50}, root=comm.size - 1)
    got["shared"] = comm.share_objects([comm.rank] * (comm.rank + 1))
    got["share"] = comm.share_objects("x" * comm.rank)
    flats = [
        torch.full((n,), float(comm.rank + 1), dtype=d)
        for n, d in ((10, torch.float32), (3, torch.float64), (5, torch.bfloat16), (1 << 20, torch.float32))
    ]
    for pending in [comm.allreduce_(flat, slot=i) for i, flat in enumerate(flats)]:
        pending.wait()
    got["async"] = [[flat.double().min().item(), flat.double().max().item()] for flat in flats]
    got["gradients"] = [gradients(comm, b, m) for b, m in ((1 << 20, 1), (64, 1), (64, 3), (1, 2))]
    got["buffers"] = buffers(comm)
    got["combined"] = combined(comm)
    got["how"] = [comm.overlaps, comm.reduction]
    got["wires"] = {
        str(wire): [gradients(comm, b, m, wire) for b, m in ((1 << 20, 1), (64, 3))]
        for wire in (torch.float16, torch.bfloat16)
    }
    got["wait_s"] = wait_s(comm)
    got["errors"] = agreed_errors(comm)
    comm.barrier()
    comm.close()
    # A thread that still held a tensor of Python's could abort it at its end (pytorch#179291).
    got["threads"] = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    (folder / f"{comm.rank}.json").write_text(json.dumps(got))


if __name__ == "__main__":
    main()
