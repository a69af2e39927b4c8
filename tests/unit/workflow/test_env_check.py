"""What a node's environment is held against, line by line; and this very environment, which is right."""

from __future__ import annotations

import copy
import json
import os
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from hpcmass.errors import ConfigError, NotFound
from hpcmass.launch.software import parse_facts, path_faults
from hpcmass.workflow.env_check import check_environment, facts_here
from hpcmass.workflow.env_compare import CheckLine, compare

FACTS: dict[str, Any] = {
    "node": "cn1",
    "python": "3.11.7",
    "prefix": "/shared/env",
    "packages": {
        name: {"version": "1.0", "path": "/shared/env/x", "seconds": 0.1}
        for name in ("numpy", "h5py", "torch", "mpi4py.MPI", "horovod.torch")
    },
    "mpi": "Open MPI v5.0.11, ident: 5.0.11",
    "libmpi": {"mpi4py.MPI": ["/opt/mpi/libmpi.so.40"], "horovod.torch": ["/opt/mpi/libmpi.so.40"]},
    "mpiexec": {"path": "/opt/mpi/bin/mpiexec", "kind": "openmpi", "version": "5.0.11"},
    "cpu": "EPYC",
    "flags": ["avx", "f16c", "fma", "avx2", "avx512f"],
    "glibc": "glibc 2.36",
    "network": [],
    "paths": [],
    "gpus": {"built_for": "CUDA 12.8", "seen": 1, "drivers": ["nvidia"]},
}


def lines(there: dict[str, Any], **options: Any) -> list[CheckLine]:
    return list(compare(FACTS, there, **{"stamped": True, **options}))


def wrong(there: dict[str, Any]) -> list[tuple[str, str]]:
    return [(line.what, line.found) for line in lines(there) if line.verdict == "wrong"]


def test_what_is_as_built_is_ok() -> None:
    assert {line.verdict for line in lines(FACTS)} == {"ok"}


@pytest.mark.parametrize(
    ("path", "value", "what", "found"),
    [
        (("python",), "3.12.1", "Python", "3.12.1, but it was 3.11.7"),
        (("packages", "torch", "version"), "2.0", "import torch", "2.0, but it was 1.0, 0.1 s"),
        (("packages", "torch"), {"error": "ImportError: libgomp"}, "import torch", "ImportError: libgomp"),
        (("packages", "horovod.torch"), {"error": "x"}, "import horovod.torch", "x"),
        (("mpi",), "MPICH 4", "MPI library", "MPICH 4, but it was Open MPI v5.0.11, ident: 5.0.11"),
        (("libmpi", "horovod.torch"), ["/opt/mpi/libmpi.so.40", "/usr/lib/libmpi.so.12"], "Horovod's MPI",
         "loads /usr/lib/libmpi.so.12 beside mpi4py's /opt/mpi/libmpi.so.40"),
        (("mpiexec",), {"path": "/usr/bin/mpiexec", "kind": "openmpi", "version": "4.1.4"}, "mpiexec",
         "/usr/bin/mpiexec (Open MPI 4.1.4) is not of the MPI that mpi4py loads"),
        (("flags",), ["avx"], "CPU", "EPYC lacks f16c, fma, which the compiled code uses"),
        (("glibc",), "glibc 2.9", "glibc", "glibc 2.9 is older than glibc 2.36 of the build"),
        (("network",), ["huggingface.co"], "no internet needed", "importing asks for huggingface.co"),
        (("paths",), ["bin/python is a link to /x"], "paths", "bin/python is a link to /x"),
    ],
)  # fmt: skip
def test_each_difference_is_a_line(path: tuple[str, ...], value: Any, what: str, found: str) -> None:
    there = copy.deepcopy(FACTS)
    table = there
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    assert (what, found) in wrong(there)
    assert all(line.hint for line in lines(there) if line.verdict == "wrong")


def test_a_cpu_without_what_nothing_needs_is_ok() -> None:
    there = {**FACTS, "flags": ["avx", "f16c", "fma"]}
    (line,) = [line for line in lines(there) if line.what == "CPU"]
    assert (line.verdict, line.found) == ("ok", "EPYC lacks avx2, avx512f; nothing compiled here needs them")


def test_the_environments_own_libmpi_may_have_moved_with_it() -> None:
    own = {"mpi4py.MPI": ["/shared/env/lib/libmpi.so.40"], "horovod.torch": ["/shared/env/lib/libmpi.so.40"]}
    moved = {name: [path.replace("/shared", "/scratch") for path in paths] for name, paths in own.items()}
    there = {**FACTS, "prefix": "/scratch/env", "libmpi": moved}
    found = list(compare({**FACTS, "libmpi": own}, there, stamped=True))
    assert {line.verdict for line in found} == {"ok"}


def test_an_environment_without_mpi_is_a_note() -> None:
    none = {"error": "No module named 'mpi4py'"}
    facts = copy.deepcopy(FACTS)
    facts["packages"].update({"mpi4py.MPI": none, "horovod.torch": none})
    facts["mpi"] = None
    found = list(compare(facts, facts, stamped=True))
    assert [line.what for line in found if line.verdict == "note"] == [
        "import mpi4py.MPI", "import horovod.torch", "MPI library",
    ]  # fmt: skip
    assert not [line for line in found if line.verdict == "wrong"]


@pytest.mark.parametrize("side", ["built", "there", "both"])
def test_libraries_that_are_not_known_are_no_proof(side: str) -> None:
    none = {**FACTS, "libmpi": {"mpi4py.MPI": [], "horovod.torch": []}}
    built, there = {"built": (none, FACTS), "there": (FACTS, none), "both": (none, none)}[side]
    found = {line.what: line.verdict for line in compare(built, there, stamped=True)}
    assert found["libmpi"] == "note"
    assert found["Horovod's MPI"] == ("ok" if side == "built" else "note")


def test_what_fails_only_where_it_is_compared_with_is_a_note() -> None:
    login = copy.deepcopy(FACTS)
    for name in ("mpi4py.MPI", "horovod.torch"):
        login["packages"][name] = {"error": "ImportError: libmpi.so.12"}
    login |= {"mpi": None, "libmpi": {"mpi4py.MPI": [], "horovod.torch": []}}
    found = list(compare(login, FACTS, stamped=False, login=True))
    assert [line.what for line in found if line.verdict == "note"] == [
        "import mpi4py.MPI", "import horovod.torch", "MPI library", "libmpi",
    ]  # fmt: skip
    assert [line for line in found if line.verdict == "wrong"] == []
    assert "on the login node it fails: ImportError" in found[4].found


def needs_a_module(folder: Path) -> Path:
    """An environment whose mpi4py loads only where a module has set its variable, as with the site's MPI."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in ("numpy", "h5py", "torch"):
        (site / f"{name}.py").write_text("__version__ = '1'\n")
    (site / "mpi4py").mkdir()
    (site / "mpi4py/__init__.py").write_text("class rc: pass\n")
    (site / "mpi4py/MPI.py").write_text(
        "import os\nif os.environ.get('THE_MODULE') != 'is loaded':\n    raise ImportError('libmpi.so.12')\n"
        "__version__ = '4'\ndef Get_library_version(): return 'MPICH 4'\n"
    )
    return folder


LOADS = 'export THE_MODULE="is loaded"'


@pytest.mark.parametrize("by", ["stamp", "site", "target of the stamp"])
def test_the_modules_are_loaded_here_as_in_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.delenv("HPCMASS_SITE", raising=False)
    monkeypatch.delenv("THE_MODULE", raising=False)
    environment = needs_a_module(tmp_path / "env")
    here = {line.what: line for line in check_environment(environment)}
    assert here["import mpi4py.MPI"].found == "is not in this environment (ImportError: libmpi.so.12)"
    site = tmp_path / "site.toml"
    head = 'name = "here"\ndefault_target = "cpu"\n[targets.cpu]\nkind = "slurm"\ncores = 1\n'
    line = f"setup = ['{LOADS}']\n"
    other = '[targets.other]\nkind = "slurm"\ncores = 1\n'
    site.write_text(head + line if by == "site" else f"{head}{other}{line}")
    stamp = {"site": "here", "target": "other", "modules": [], "setup": [LOADS] if by == "stamp" else []}
    if by != "site":
        built = facts_here(environment / "bin/python", {**os.environ, "THE_MODULE": "is loaded"})
        (environment / "hpcmass-env.json").write_text(json.dumps({"format": 1, **built, **stamp}))
    found = check_environment(environment, site_file=None if by == "stamp" else site)
    assert [line for line in found if line.verdict == "wrong"] == []
    assert {line.what: line.verdict for line in found}["import mpi4py.MPI"] == "ok"


def test_a_target_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no target 'gpu'"):
        check_environment(needs_a_module(tmp_path / "env"), target="gpu")


@pytest.mark.parametrize(
    ("facts", "vendor", "verdict", "words"),
    [
        ({}, None, "ok", "torch sees 1 GPU, 1 asked for (it is built for CUDA 12.8)"),
        ({"built_for": "ROCm 6.4", "seen": 8, "drivers": ["amd"]}, "amd", "ok", "sees 8 GPUs, 1 asked for"),
        ({"seen": 0, "drivers": ["amd"]}, "amd", "wrong", "and the GPUs are amd's"),
        ({"seen": 0, "drivers": ["amd"]}, None, "wrong", "and the GPUs are amd's"),
        ({"seen": 0, "drivers": []}, "nvidia", "wrong", "torch sees 0 GPUs"),
        ({"seen": 0}, None, "wrong", "torch sees 0 GPUs"),
        ({"seen": 0, "built_for": "CPUs"}, None, "wrong", "and the GPUs are nvidia's"),
        ({"seen": None, "error": "RuntimeError: too old"}, None, "wrong", "RuntimeError: too old"),
        ({"seen": 0, "drivers": []}, None, "note", "the node shows no GPU driver"),
    ],
)
def test_a_node_with_gpus_is_asked_whether_torch_sees_them(
    facts: dict[str, Any], vendor: str | None, verdict: str, words: str
) -> None:
    there = {**FACTS, "gpus": {**FACTS["gpus"], **facts}}
    (line,) = [one for one in lines(there, gpus=1, vendor=vendor) if one.what == "torch and GPUs"]
    assert (line.verdict, words in line.found) == (verdict, True), line
    assert bool(line.hint) is (verdict == "wrong")
    assert not [one for one in lines(there) if one.what == "torch and GPUs"]  # of a node without


def test_this_environment_is_right() -> None:
    found = check_environment(None)
    assert [line for line in found if line.verdict == "wrong"] == []
    assert {"import torch", "import h5py", "paths"} <= {line.what for line in found}


def test_no_environment_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"there is no bin/python"):
        check_environment(tmp_path)


def test_an_import_that_reaches_out_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = "socket.create_connection(('198.51.100.7', 9), timeout=0.01)"
    code = f"import socket\ntry:\n    {call}\nexcept OSError:\n    pass\n"
    (tmp_path / "reaches_out.py").write_text(code)
    (tmp_path / "falls.py").write_text("raise RuntimeError('on purpose')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import subprocess

    words = "from hpcmass.launch.software import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", words, "reaches_out", "falls", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    facts = parse_facts(done.stdout)
    assert facts is not None
    assert facts["network"] == ["198.51.100.7"]
    assert facts["packages"]["falls"] == {"error": "RuntimeError: on purpose"}
    assert "error" not in facts["packages"]["json"]


def test_facts_survive_what_packages_print() -> None:
    assert parse_facts('noise\nhpcmass-software {"a": 1}\nmore noise\n') == {"a": 1}
    assert parse_facts("noise\n") is None


def test_paths_that_are_not_here(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lib/python3.11/site-packages").mkdir(parents=True)
    (tmp_path / "pyvenv.cfg").write_text("home = /gone/bin\n")
    (tmp_path / "bin/python").symlink_to("/gone/bin/python3")
    (tmp_path / "bin/good").write_text(f"#!{sys.executable}\n")
    (tmp_path / "bin/bad").write_text("#!/gone/env/bin/python\n")
    (tmp_path / "bin/native").write_bytes(b"\x7fELF")
    (tmp_path / "lib/python3.11/site-packages/a.pth").write_text("/gone/more\nimport os\n")
    faults = path_faults(tmp_path)
    assert len(faults) == 4
    assert "scripts of bin (bad …) start with /gone/env/bin/python" in faults[2]
