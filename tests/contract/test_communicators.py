"""One contract for all communicators; every rank's results are looked at from outside."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("comm_worker.py")
MPIEXEC = shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")

needs_mpi = [
    pytest.mark.mpi,
    pytest.mark.skipif(MPIEXEC is None or not importlib.util.find_spec("mpi4py"), reason="no MPI"),
]
needs_horovod = [
    *needs_mpi,
    pytest.mark.horovod,
    pytest.mark.skipif(not importlib.util.find_spec("horovod"), reason="no Horovod"),
]
CASES = [
    pytest.param("single", 1, "plain", id="single-1"),
    pytest.param("torch", 1, "plain", id="torch-1"),
    *[pytest.param("torch", n, "spawn", id=f"torch-spawn-{n}") for n in (2, 4)],
    *[pytest.param("torch", n, "mpiexec", id=f"torch-mpiexec-{n}", marks=needs_mpi) for n in (1, 2)],
    *[pytest.param("mpi", n, "mpiexec", id=f"mpi-{n}", marks=needs_mpi) for n in (1, 2, 4)],
    *[pytest.param("horovod", n, "mpiexec", id=f"horovod-{n}", marks=needs_horovod) for n in (1, 2, 4)],
]


def clean_env() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "HPCMASS_", "MASTER_"))}
    env["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *env.get("PYTHONPATH", "").split(os.pathsep)]
    )
    return {**env, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def start(argv: list[str], ranks: int, how: str) -> tuple[int, str]:
    """Run `argv` on ranks by mpiexec, as plain processes, or alone; the worst exit code and all output."""
    env = clean_env()
    if how == "mpiexec":
        argv = [str(MPIEXEC), "-n", str(ranks), "--oversubscribe", "--bind-to", "none", *argv]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks if how == "spawn" else 1):
        more = {} if how != "spawn" else {
            "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(ranks),            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                argv, env={**env, **more}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return max(abs(process.returncode) for process in processes), "\n".join(outputs)


def expected_gradients() -> list[list[float]]:
    spec = importlib.util.spec_from_file_location("comm_worker", WORKER)
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    model, (x, y) = worker.make_model(), worker.make_data()
    torch.nn.functional.mse_loss(model(x), y).backward()
    return [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().tolist() for p in model.parameters()]


@pytest.mark.parametrize(("backend", "ranks", "how"), CASES)
def test_contract(backend: str, ranks: int, how: str, tmp_path: Path) -> None:
    code, output = start([sys.executable, str(WORKER), backend, str(tmp_path)], ranks, how)
    assert code == 0, output
    got = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    last = ranks - 1
    for rank, said in enumerate(got):
        assert (said["rank"], said["size"], said["name"]) == (rank, ranks, backend)
        assert said["sum"] == [ranks * (ranks + 1) / 2, ranks * 2.0**40 + ranks * last / 2, -ranks]
        assert said["max"] == [ranks, 2.0**40 + last, -1]
        assert said["min"] == [1, 2.0**40, -1]
        assert said["broadcast"] == [[last] * 6, [last], [last] * 4, [last] * 6, []]
        assert said["object"] == {"from": last, "text": "é" * 50}
        assert said["gather"] == ([[r] * (r + 1) for r in range(ranks)] if rank == 0 else None)
        assert said["share"] == ["x" * r for r in range(ranks)]
        assert said["async"] == [[ranks * (ranks + 1) / 2] * 2] * 4
        assert said["errors"] == [f"rank 0 refuses told={rank != 0}", f"rank {last} refuses told={rank != 0}"]
        assert said["mpi"] or backend in ("single", "torch")
        assert said["gradients"] == got[0]["gradients"], "ranks hold different gradients"
        for found in said["gradients"]:
            for part, wanted in zip(found, expected_gradients(), strict=True):
                assert part == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    if backend == "single":
        assert not got[0]["mpi"], "the single communicator imported MPI"
