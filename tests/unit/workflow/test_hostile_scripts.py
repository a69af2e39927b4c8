"""Everything that makes a script for sbatch, with names and paths that a shell reads otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.config import Layout, Target
from hpcmass.errors import ConfigError
from hpcmass.workflow import drive, submit
from hpcmass.workflow.block_script import render_block
from hpcmass.workflow.block_shape import BlockShape

DUMP = "import json, sys; print(json.dumps(sys.argv[1:]))"
PROGRAM = (sys.executable, "-c", DUMP)
WORDS = [
    "'",
    '"',
    "\\",
    "; touch x",
    "$(touch x)",
    "`id`",
    "$HOME",
    "é 中 🚀",
    " a  b ",
    "*",
    "#",
    "-n",
    "%j",
    ":",
    "\t",
]
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=20),
    st.lists(st.sampled_from([*WORDS, "\n", "\r\n", "\n#SBATCH --partition=evil\n"]), min_size=1).map("".join),
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(lambda parts: Path("/", *parts))
TARGET = Target(kind="slurm", partition="cpu", cores=4, max_nodes=4)
ONE = Layout(1, 1, 1, 1, 0, None, 600)
BLOCK = BlockShape("cpu", False, 1, 2, 4, 2, 0, None, 600, 60, 30, 2)


@pytest.fixture(scope="module")
def path_with_srun(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH whose srun drops its own options and runs the rest, as srun does on every node."""
    folder = tmp_path_factory.mktemp("bin")
    srun = folder / "srun"
    srun.write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    srun.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture(autouse=True)
def _program(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of hpcmass: a program that says which words reached it."""
    for module in (submit, drive):
        monkeypatch.setattr(module, "hpcmass_command", lambda: list(PROGRAM))


def reached(script: str, path: str) -> list[str]:
    """What the program at the script's end was given, once sbatch would have taken the script."""
    assert "\r\n" not in script
    options = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert not any("evil" in line and line.startswith("#SBATCH --partition") for line in options)
    done = subprocess.run(["bash", "-s"], input=script.encode(), capture_output=True, env={"PATH": path})
    assert done.returncode == 0, done.stderr
    words: list[str] = json.loads(done.stdout)
    return words


def no_option(*texts: object) -> bool:
    """Whether a text may stand in a line of #SBATCH: no such line can hold a line's end."""
    return not any(ord(letter) < 32 or ord(letter) == 127 for text in texts for letter in str(text))


@settings(max_examples=60)
@given(run=PATHS, root=PATHS, name=NAMES)
def test_the_script_of_a_run_and_of_its_successor(
    path_with_srun: str, run: Path, root: Path, name: str
) -> None:
    try:
        script = submit.batch_script(
            run,
            name=name,
            target=TARGET,
            layout=ONE,
            project_root=root,
            comment="hpcmass:1",
            after=("afterany:7",),
        )
    except ConfigError:
        assert not no_option(run, root, name) or "\\" in f"{run}{root}"
        return
    assert reached(script, path_with_srun) == ["hop", str(run), "--project", str(root)]


@settings(max_examples=60)
@given(folder=PATHS, name=NAMES)
def test_the_script_of_a_driver(path_with_srun: str, folder: Path, name: str) -> None:
    try:
        script = drive._script(folder, TARGET, name, "hpcmass:1")
    except ConfigError:
        assert not no_option(folder, name) or "\\" in str(folder)
        return
    assert reached(script, path_with_srun) == ["workflow", "drive", str(folder)]


@settings(max_examples=60)
@given(
    words=st.lists(st.one_of(NAMES, st.just("")), max_size=4),
    out=PATHS,
    nodes=st.sampled_from([1, 3]),
    whole=st.booleans(),
    value=NAMES,
)
def test_the_script_of_a_block(
    path_with_srun: str, words: list[str], out: Path, nodes: int, whole: bool, value: str
) -> None:
    shape = replace(BLOCK, nodes=nodes, whole=whole)
    target = TARGET.model_copy(update={"env": {"SITE_VALUE": value}})
    try:
        script = render_block(shape, target, number="0", command=(*PROGRAM, *words), out=out, driver="d")
    except ConfigError:
        assert not no_option(out) or "\\" in str(out)
        return
    assert reached(script, path_with_srun) == words
