"""The same job on 1, 2 and 4 ranks of every backend: the same loss curve, the same weights on all ranks."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).with_name("train_tools.py")
spec = importlib.util.spec_from_file_location("train_tools", TOOLS)
tools = importlib.util.module_from_spec(spec)
sys.modules["train_tools"] = tools
spec.loader.exec_module(tools)

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(tools.MPIEXEC is None, reason="no mpiexec")]
horovod = [
    pytest.mark.horovod,
    pytest.mark.skipif(not importlib.util.find_spec("horovod"), reason="no Horovod"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], list[dict]]:
    """One rank, without MPI: the curve that the others are held against."""
    root = tools.make_project(tmp_path_factory.mktemp("alone") / "p")
    done = tools.run(tools.words(root, "single"), tools.environment(root))
    assert done.returncode == 0, done.stdout
    return root, tools.records(root, "single", "train"), tools.records(root, "single", "valid")


@pytest.mark.parametrize(
    ("backend", "ranks"),
    [
        ("mpi", 1), ("mpi", 2), ("mpi", 4), ("torch", 2), pytest.param("torch", 4, marks=pytest.mark.soak),
        pytest.param("horovod", 2, marks=horovod), pytest.param("horovod", 4, marks=[*horovod, pytest.mark.soak]),
    ],
)  # fmt: skip
def test_same_curve(backend: str, ranks: int, alone: tuple, tmp_path: Path) -> None:
    root, train, valid = alone
    name = f"{backend}-{ranks}"
    env = tools.environment(root, TELL=str(tmp_path))
    accumulation = 2 if ranks == 2 else 1  # micro-batches do not change the curve either
    argv = tools.words(root, name, f"train.backend={backend}", f"train.accumulation={accumulation}")
    done = tools.run(tools.mpiexec(ranks, argv), env)
    assert done.returncode == 0, done.stdout
    curve = tools.records(root, name, "train")
    assert [r["step"] for r in curve] == [r["step"] for r in train] == list(range(1, 13))
    assert [r["loss"] for r in curve] == pytest.approx([r["loss"] for r in train], rel=1e-5)
    others = tools.records(root, name, "valid")
    assert [r["loss"] for r in others] == pytest.approx([r["loss"] for r in valid], rel=1e-5)
    assert [r["accuracy"] for r in others] == pytest.approx([r["accuracy"] for r in valid])
    weights = {p.read_text() for p in tmp_path.glob(f"weights-{ranks}-*")}
    assert len(list(tmp_path.glob(f"weights-{ranks}-*"))) == ranks
    assert len(weights) == 1, "the ranks ended with different weights"
    assert tools.status(root, name)["ranks"] == ranks
    assert tools.status(root, name)["backend"] == backend
    looked: list[int] = []
    for lines in _seen(tmp_path).values():
        looked += [i for line in lines for i in line["ids"]]
    assert sorted(looked) == sorted([*range(tools.SAMPLES)] * 2), "not each sample once an epoch"


def _seen(folder: Path) -> dict[int, list[dict]]:
    (folder / "tell").symlink_to(folder, target_is_directory=True)
    return tools.seen(folder)


@pytest.mark.parametrize("name", ["auto", "mpi"])
def test_ranks_without_a_working_pmi_are_refused(name: str, tmp_path: Path) -> None:
    root = tools.make_project(tmp_path / "p")
    env = tools.environment(root, HPCMASS_RANKS="2")
    argv = tools.words(root, "r", f"train.backend={name}")
    started = [
        subprocess.Popen(argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    for process in started:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 2, output
        assert "2 ranks promised, but 1 found each other" in output
        assert "Traceback" not in output
    assert list((root / "runs").iterdir()) == []
