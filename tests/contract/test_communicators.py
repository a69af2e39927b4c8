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
WINDOW, THREAD = "in the node's shared memory", "in buckets, during the backward pass"
BETWEEN = "in each node's shared memory, and slice by slice between nodes"
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


def start(argv: list[str], ranks: int, how: str, **set_env: str) -> tuple[int, str]:
    """Run `argv` on ranks by mpiexec, as plain processes, or alone; the worst exit code and all output."""
    env = {**clean_env(), **set_env}
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
    outputs = [process.communicate(timeout=400)[0] for process in processes]
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
    got = read(tmp_path, ranks)
    check(got, backend)
    if backend == "single":
        assert not got[0]["mpi"], "the single communicator imported MPI"
    window = backend == "mpi" and ranks > 1
    assert {tuple(said["how"]) for said in got} == {
        (not window, "none: one rank" if backend == "single" else WINDOW if window else THREAD)
    }
    if ranks > 1:
        check_wires(got, rounded=not window)


MPI_WAYS = [
    pytest.param("0,0,1,1", {"THREADS": "64"}, BETWEEN, True, id="equal-nodes"),
    pytest.param("0,0,0,1", {"THREADS": "64"}, BETWEEN, True, id="unequal-nodes"),
    pytest.param("0,1", {"THREADS": "64"}, BETWEEN, True, id="a-rank-a-node"),
    pytest.param("0,1", {"OMPI_MCA_osc": "^sm"}, THREAD, True, id="no-shared-windows"),
]


@pytest.mark.mpi
@pytest.mark.skipif(MPIEXEC is None or not importlib.util.find_spec("mpi4py"), reason="no MPI")
@pytest.mark.parametrize(("nodes", "env", "how", "rounded"), MPI_WAYS)
def test_ways_of_mpi(nodes: str, env: dict[str, str], how: str, rounded: bool, tmp_path: Path) -> None:
    ranks = len(nodes.split(","))
    words = [sys.executable, str(WORKER), "mpi", str(tmp_path), *([nodes] if "THREADS" in env else [])]
    code, output = start(words, ranks, "mpiexec", **env)
    assert code == 0, output
    got = read(tmp_path, ranks)
    check(got, "mpi")
    check_wires(got, rounded=rounded)
    for said in got:
        assert said["how"][0] == (how == THREAD)
        assert said["how"][1].partition(": no shared memory for ")[0] == how


FAULTS = WORKER.with_name("fault_worker.py")


def test_a_killed_rank_is_told_by_its_connection_and_not_by_a_clock(tmp_path: Path) -> None:
    _, output = start([sys.executable, str(FAULTS), "torch", str(tmp_path), "killed"], 2, "spawn")
    (said,) = read(tmp_path, 1)
    assert said["lost_peer"], output
    assert "lost the connection" in said["message"]


def read(folder: Path, ranks: int) -> list[dict]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def check(got: list[dict], backend: str) -> None:
    ranks, last = len(got), len(got) - 1
    for rank, said in enumerate(got):
        assert (said["rank"], said["size"], said["name"]) == (rank, ranks, backend)
        assert said["sum"] == [ranks * (ranks + 1) / 2, ranks * 2.0**40 + ranks * last / 2, -ranks]
        assert said["max"] == [ranks, 2.0**40 + last, -1]
        assert said["min"] == [1, 2.0**40, -1]
        assert said["broadcast"] == [[last] * 6, [last], [last] * 4, [last] * 6, []]
        assert said["object"] == {"from": last, "text": "é" * 50}
        assert said["shared"] == [[r] * (r + 1) for r in range(ranks)]
        assert said["share"] == ["x" * r for r in range(ranks)]
        assert said["async"] == [[ranks * (ranks + 1) / 2] * 2] * 4
        assert said["errors"] == [f"rank 0 refuses told={rank != 0}", f"rank {last} refuses told={rank != 0}"]
        assert (said["wait_s"] is None) == (backend != "torch")
        assert said["wait_s"] is None or said["wait_s"] > 365 * 86400, (
            "a long fit on rank 0 would end the others"
        )
        assert said["mpi"] or backend in ("single", "torch")
        # Those that carry the work out and hold its tensors; another one, which sends, may be there for longer.
        assert backend != "torch" or "pt_gloo_runloop" not in said["threads"], said["threads"]
        assert said["gradients"] == got[0]["gradients"], "ranks hold different gradients"
        for found in said["gradients"]:
            for part, wanted in zip(found, expected_gradients(), strict=True):
                assert part == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        assert said["buffers"] == got[0]["buffers"], "ranks hold different sums"
        assert len(said["buffers"]) == 8
        assert len(said["combined"]) == 24
        assert said["combined"][::2] == said["combined"][1::2], "not added up in the order that was asked for"
        assert max(error for error, _ in said["buffers"].values()) <= ranks


def check_wires(got: list[dict], *, rounded: bool) -> None:
    """Halves between ranks: the same on all, near the exact ones, and each a half where anything was sent."""
    for said in got:
        assert said["wires"] == got[0]["wires"], "ranks hold different gradients"
    for name, runs in got[0]["wires"].items():
        wire = getattr(torch, name.removeprefix("torch."))
        for found in runs:
            for part, wanted in zip(found, expected_gradients(), strict=True):
                eps = torch.finfo(wire).eps
                assert part == pytest.approx(wanted, rel=4 * eps, abs=2 * eps)
                if rounded:
                    values = torch.tensor(part)
                    assert torch.equal(values, values.to(wire).float()), f"not sent as {wire}"
        if not rounded:
            assert runs[0] == got[0]["gradients"][0], "rounded though nothing was sent"
