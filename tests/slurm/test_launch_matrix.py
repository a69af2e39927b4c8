"""Every MPI under every way to start it, on two nodes: N ranks of size N, or a refusal that says why."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from hpcmass.devcluster import Cluster

TOOLS = Path(__file__).with_name("launch_tools.py")
spec = importlib.util.spec_from_file_location("launch_tools", TOOLS)
assert spec is not None
assert spec.loader is not None
tools = importlib.util.module_from_spec(spec)
sys.modules["launch_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = pytest.mark.slurm

MEET = """
import json, os, sys
from pathlib import Path
from mpi4py import MPI
import hpcmass
comm, env = MPI.COMM_WORLD, os.environ
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR"]
said = {name: env[name] for name in names} | {"mpi": [comm.rank, comm.size], "sum": comm.allreduce(1)}
said["port"] = comm.allgather(env["MASTER_PORT"])
said["words"] = sys.argv[2:]
said["library"] = MPI.Get_library_version().split()[0]
hpcmass.report(step=1, size=comm.size)
Path(sys.argv[1], f"said-{comm.rank}-{os.getpid()}.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"openmpi": sys.executable, "mpich": tools.make_mpich(tmp_path_factory.mktemp("mpich"))}


@pytest.mark.parametrize(
    ("mpi", "keys", "launcher"),
    [
        ("openmpi", {"pmi": "pmix"}, "srun"),
        ("openmpi", {"launcher": "mpiexec"}, "openmpi"),
        ("mpich", {"pmi": "pmi2"}, "srun"),
        ("mpich", {}, "mpich"),  # nothing said: the mpiexec beside the interpreter
    ],
)
def test_the_right_ones_are_n_ranks_of_size_n(
    cluster: Cluster, project: Path, pythons: dict[str, str], mpi: str, keys: dict[str, str], launcher: str
) -> None:
    (project / "meet.py").write_text(MEET)
    site = tools.site(project, **keys)
    words = ["run", "--site", site, "--name", "meet", "--", "python", "meet.py", str(project), *tools.WORDS]
    said = tools.batch(
        cluster, project, tools.hpcmass(pythons[mpi], *words), "--nodes=2", "--ntasks=4", "--ntasks-per-node=2"
    )
    assert "rc 0" in said, said
    found = sorted((json.loads(file.read_text()) for file in project.glob("said-*")), key=lambda s: s["mpi"])
    assert [each["mpi"] for each in found] == [[rank, 4] for rank in range(4)]
    assert all(each["sum"] == 4 for each in found)
    assert all(each["words"] == tools.WORDS for each in found)
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK"]
    assert [[each[name] for name in names] for each in found] == [
        ["0", "4", "0", "2", "0", "0"],
        ["1", "4", "1", "2", "0", "0"],
        ["2", "4", "0", "2", "1", "1"],
        ["3", "4", "1", "2", "1", "1"],
    ]
    assert {each["MASTER_ADDR"] for each in found} == {"cn1"} or not cluster.has_network
    assert len({port for each in found for port in each["port"]}) == 1
    assert ("MPICH" in found[0]["library"]) == (mpi == "mpich")
    run = project / "runs" / "meet"
    records = [json.loads((run / "ranks" / f"attempt-1-rank-{rank}.json").read_text()) for rank in range(4)]
    assert [(r["rank"], r["local_rank"], r["size"], r["launcher"], r["cpus"]) for r in records] == [
        (0, 0, 4, launcher, 1), (1, 1, 4, launcher, 1), (2, 0, 4, launcher, 1), (3, 1, 4, launcher, 1),
    ]  # fmt: skip
    assert len({record["node"] for record in records}) == 2 or not cluster.has_network
    assert all(record["slurm_job_id"] for record in records)


@pytest.mark.parametrize(("mpi", "pmi"), [("openmpi", "pmix"), ("mpich", "pmi2")])
def test_a_start_inside_a_step_is_a_world_of_its_own(
    cluster: Cluster, project: Path, pythons: dict[str, str], mpi: str, pmi: str
) -> None:
    """Two steps' ranks, each of which starts two: what srun left for its own must not reach the inner mpiexec."""
    (project / "meet.py").write_text(MEET)
    words = ["run", "--ranks", "2", "--name", "NAME", "--", "python", "meet.py", str(project)]
    line = tools.hpcmass(pythons[mpi], *words).replace("NAME", '"inner-$SLURM_PROCID"')
    (project / "inner.sh").write_text(line + "\n")
    outer = f"srun --mpi={pmi} --cpus-per-task=2 bash inner.sh"
    said = tools.batch(cluster, project, outer, "--nodes=2", "--ntasks=2", "--cpus-per-task=2")
    assert "rc 0" in said, said
    found = sorted((json.loads(file.read_text()) for file in project.glob("said-*")), key=lambda s: s["mpi"])
    assert [each["mpi"] for each in found] == [[0, 2], [0, 2], [1, 2], [1, 2]]
    assert {each["sum"] for each in found} == {2}
    assert {path.name for path in (project / "runs").iterdir()} == {"inner-0", "inner-1"}


SOAK = pytest.mark.soak
BY_HAND = [
    pytest.param("openmpi", "srun --mpi=pmi2", "srun --mpi=pmi2", "pmix", id="openmpi-pmi2"),
    pytest.param("openmpi", "srun --mpi=none", "srun --mpi=none", "pmix", id="openmpi-none", marks=SOAK),
    pytest.param("openmpi", "MPICH -n 2", "MPICH's mpiexec", "pmix", id="openmpi-hydra", marks=SOAK),
    pytest.param("mpich", "srun --mpi=pmix", "srun --mpi=pmix", "pmi2", id="mpich-pmix"),
    pytest.param("mpich", "srun --mpi=none", "srun --mpi=none", "pmi2", id="mpich-none"),
    pytest.param("mpich", "OPENMPI -n 2", "Open MPI's mpiexec", "pmi2", id="mpich-prterun", marks=SOAK),
]


@pytest.mark.parametrize(("mpi", "start", "named", "use"), BY_HAND)
def test_the_wrong_ones_are_refused_by_name(
    cluster: Cluster, project: Path, pythons: dict[str, str], mpi: str, start: str, named: str, use: str
) -> None:
    """Started by the user's own srun or mpiexec: nothing of hpcmass is above the ranks."""
    for name, python in pythons.items():
        start = start.replace(name.upper(), str(Path(python).with_name("mpiexec")))
    line = tools.hpcmass(pythons[mpi], "train", "job.toml", "--backend", "mpi")
    said = tools.batch(cluster, project, f"{start} {line}", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1")
    assert "rc 0" not in said
    assert named in said, said
    assert f"--mpi={use}" in said
    assert said.count("error: launch:") >= 1
    assert "Traceback" not in said
    assert not (project / "runs").exists() or list((project / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("mpi", "pmi", "named"),
    [
        ("openmpi", "pmi2", "srun --mpi=pmi2"),
        pytest.param("mpich", "pmix", "srun --mpi=pmix", marks=pytest.mark.soak),
        ("openmpi", "no-such", "no-such"),
    ],
)
def test_a_wrong_site_file_is_refused_once(
    cluster: Cluster, project: Path, pythons: dict[str, str], mpi: str, pmi: str, named: str
) -> None:
    words = ["train", "job.toml", "--site", tools.site(project, pmi=pmi), "--backend", "mpi", "--ranks", "2"]
    said = tools.batch(
        cluster, project, tools.hpcmass(pythons[mpi], *words), "--nodes=2", "--ntasks-per-node=1"
    )
    assert "rc 2" in said, said
    assert named in said
    assert "srun --mpi=" in said
    assert said.count("error: ") - said.count("srun: error: ") == 1, said
    assert list((project / "runs").iterdir()) == []


def test_a_script_of_ranks_that_did_not_meet_is_refused(cluster: Cluster, project: Path) -> None:
    """Nothing of hpcmass opens a communicator here: the first report sees what the script has."""
    (project / "meet.py").write_text(MEET.replace("env[name]", "env.get(name)"))
    site = tools.site(project, pmi="pmi2")  # the script's MPI is Open MPI
    words = ["run", "--site", site, "--name", "meet", "--", "python", "meet.py", str(project)]
    line = tools.hpcmass(sys.executable, *words)
    said = tools.batch(cluster, project, line, "--nodes=2", "--ntasks=2", "--ntasks-per-node=1")
    assert "rc 2" in said, said
    assert "2 ranks were started, but 1 found each other" in said
    assert list(project.glob("said-*")) == []
