"""The batch script: golden files, and every value through sbatch's lines and bash unharmed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcmass.config import Layout, Target
from hpcmass.errors import ConfigError
from hpcmass.slurm.script import Element, ScriptSpec, option_line, quote, render_script

GOLDEN = Path(__file__).parent / "golden"
CPU = Target(kind="slurm", cores=4, partition="cpu")
ONE = Layout(
    nodes=1, ranks=1, ranks_per_node=1, threads_per_rank=4, gpus_per_node=0, memory_gb=None, time_s=600
)
# What a program is given, as it sees it itself.
DUMP = "import json,os,sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"

SPECS = {
    "one-node": ScriptSpec(
        name="first",
        target=CPU,
        layout=ONE,
        command=("hop", "/r/first"),
        out=Path("/r/first/slurm"),
    ),
    "several-gpu-nodes": ScriptSpec(
        name="wide",
        target=Target(
            kind="slurm",
            cores=64,
            memory_gb=512.0,
            gpus=4,
            gpu_type="a100",
            gres={"nvme": 1},
            partition="gpu,gpu-long",
            account="m1234_g",
            qos="regular",
            constraint="gpu&hbm80g",
            reservation="school day",
            exclusive=True,
            requeue=False,
            modules=["cray-mpich/8.1", "python/3.11"],
            setup=["ulimit -c 0", 'export TMPDIR="$SCRATCH/tmp"'],
            env={"OMP_PROC_BIND": "close", "GREETING": "it's $HOME"},
            sbatch={"licenses": "scratch,cfs", "mail-user": "me@example.org", "contiguous": ""},
        ),
        layout=Layout(
            nodes=3,
            ranks=10,
            ranks_per_node=4,
            threads_per_rank=16,
            gpus_per_node=4,
            memory_gb=480.0,
            time_s=100000,
        ),
        command=("/opt/venv/bin/python", "-c", "print('x')", "hop", "/scratch/my runs/wide"),
        out=Path('/scratch/my runs/50% "wide"/slurm'),
        env={"HPCMASS_NOTE": "two\nlines; $(id)"},
        after=("12", "afterany:13_4"),
        signal_s=300,
        comment="hpcmass:0000",
        cwd=Path("/scratch/my project"),
        title="run wide, target gpu of mars",
    ),
    "array": ScriptSpec(
        name="many",
        target=CPU,
        layout=ONE,
        command=("hop", Element("/r/50% it's-"), "--project", "/r"),
        out=Element("/r/50% it's-", "/slurm"),
        array="0-3,7",
        comment="hpcmass:0001",
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_golden(name: str) -> None:
    text = render_script(SPECS[name])
    file = GOLDEN / f"{name}.sbatch"
    if os.environ.get("HPCMASS_WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True).stderr == b""


def test_every_golden_file_is_tested() -> None:
    assert {file.stem for file in GOLDEN.glob("*.sbatch")} == set(SPECS)


def run_tail(script: str, **env: str) -> tuple[list[str], dict[str, str]]:
    """Run what bash runs of a script; what the program at its end was given."""
    done = subprocess.run(
        ["bash", "-s"],
        input=script.encode(),
        capture_output=True,
        env={"PATH": os.environ["PATH"], **env},
        check=True,
    )
    words, found = json.loads(done.stdout)
    return words, found


# No surrogates and no NUL: neither can stand in a UTF-8 file or a C string. Line ends, quotes, `$(…)` can.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
nasty = st.one_of(
    texts,
    st.sampled_from(
        [
            "",
            " ",
            "'",
            '"',
            "\\",
            "a\nb",
            "a\r\nb",
            "; rm -rf x",
            "$(id)",
            "`id`",
            "$HOME",
            "é ü 中",
            "*",
            "~",
            "#x",
            "-n",
            "a\\\nb",
            "$'\\x41'",
            "\x1b[0m",
            "!!",
            "a\tb",
            "{a,b}",
            "|&",
            "\\'",
            "%j",
            "\x7f",
            "=x",
            "\u2028",
            "\xa0",
        ]
    ),
)


@settings(max_examples=60)
@given(words=st.lists(nasty, max_size=4), values=st.lists(nasty, max_size=3))
def test_words_and_variables_reach_the_program_unharmed(words: list[str], values: list[str]) -> None:
    env = {f"HPCMASS_V{n}": value for n, value in enumerate(values)}
    target = CPU.model_copy(update={"env": {f"{name}_T": value for name, value in env.items()}})
    spec = ScriptSpec(
        name="x",
        target=target,
        layout=ONE,
        command=(sys.executable, "-c", DUMP, *words),
        out=Path("/r"),
        env=env,
    )
    script = render_script(spec)
    assert "\r\n" not in script  # sbatch refuses scripts with them
    got, found = run_tail(script)
    assert got == words
    for name, value in env.items():
        assert found[name] == value
        assert found[f"{name}_T"] == value


@settings(max_examples=30)
@given(before=nasty, after=nasty, number=st.integers(0, 9999))
def test_an_elements_word_reaches_the_program_unharmed(before: str, after: str, number: int) -> None:
    spec = replace(SPECS["array"], command=(sys.executable, "-c", DUMP, Element(before, after)))
    words, _ = run_tail(render_script(spec), SLURM_ARRAY_TASK_ID=str(number))
    assert words == [f"{before}{number}{after}"]


def test_a_path_that_is_no_utf8_goes_through_as_its_bytes(tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n'x")
    os.mkdir(folder)
    line = (
        f"exec {quote(sys.executable)} -c 'import os,sys; print(os.path.isdir(sys.argv[1]))' {quote(folder)}\n"
    )
    line.encode()  # it can be written as UTF-8
    assert subprocess.run(["bash", "-s"], input=line.encode(), capture_output=True).stdout == b"True\n"


@settings(max_examples=200)
@given(value=nasty)
def test_an_sbatch_value_is_carried_or_refused(value: str) -> None:
    """Either the line is what sbatch's reader, written down here, gives back as the value, or it is refused."""
    try:
        line = option_line("comment", value, "comment")
    except ConfigError as error:
        if error.where != "comment":
            raise
        assert not value or any(ord(c) < 32 or ord(c) == 127 for c in value)
        return
    assert "\n" not in line
    assert sbatch_reads(line.removeprefix("#SBATCH ")) == [f"--comment={value}"]


def sbatch_reads(line: str) -> list[str]:
    """The words of an #SBATCH line as sbatch 22.05 cuts them (`_get_argument` in its opt.c)."""
    words, word, quoted, escaped, begun = [], "", "", False, False
    for character in line:
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = begun = True
        elif quoted:
            word, quoted = (word, "") if character == quoted else (word + character, quoted)
        elif character in "\"'":
            quoted, begun = character, True
        elif character in " \t":
            words, word, begun = ([*words, word], "", False) if begun else (words, word, begun)
        elif character == "#":
            break
        else:
            word, begun = word + character, True
    return [*words, word] if begun else words


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"name": "a\nb"}, "name"),
        ({"out": Path("/r/a\nb")}, "runs"),
        ({"out": Path("/r/a\\b")}, "runs"),
        ({"cwd": Path("/r/\x01")}, "project"),
        ({"cwd": Path("/r/\udce9")}, "project"),
        ({"env": {"1X": "a"}}, "job env"),
        ({"env": {"X": "a\0b"}}, "job env.X"),
        ({"command": ("a\0",)}, "command"),
        ({"after": ("first",)}, "after"),
        ({"after": ("afterok:1;id",)}, "after"),
        ({"target": CPU.model_copy(update={"sbatch": {"array": "0-3"}})}, "sbatch.array"),
        ({"target": CPU.model_copy(update={"sbatch": {"partition": "other"}})}, "sbatch.partition"),
        ({"target": CPU.model_copy(update={"sbatch": {"--mem": "0"}})}, "sbatch.--mem"),
        ({"target": CPU.model_copy(update={"sbatch": {"mem": "0\n#SBATCH -p x"}})}, "sbatch.mem"),
        ({"target": CPU.model_copy(update={"env": {"A B": "x"}})}, "env"),
        ({"target": CPU.model_copy(update={"setup": ["a\nb"]})}, "setup"),
        ({"target": CPU.model_copy(update={"account": ""})}, "account"),
        ({"title": "x\n#SBATCH --nodes=9"}, "name"),
    ],
)
def test_what_cannot_be_carried_is_refused_with_its_key(change: dict, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        render_script(replace(SPECS["one-node"], **change))
    assert caught.value.where == where


def test_no_line_of_a_value_is_read_as_an_option() -> None:
    evil = "x\n#SBATCH --partition=evil"
    spec = replace(SPECS["one-node"], command=("a", evil), env={"X": evil})
    lines = render_script(spec).splitlines()
    assert [line for line in lines if line.startswith("#SBATCH --partition")] == ["#SBATCH --partition=cpu"]


def test_a_module_that_does_not_load_ends_the_job() -> None:
    target = CPU.model_copy(update={"modules": ["nope/1;id"]})
    script = render_script(replace(SPECS["one-node"], target=target, command=("echo", "ran")))
    head = 'module() { echo "module $*"; return 1; }\n'
    done = subprocess.run(["bash", "-s"], input=(head + script).encode(), capture_output=True)
    assert done.returncode == 78
    assert done.stdout == b"module load nope/1;id\n"
    assert b"cannot load module nope/1;id" in done.stderr


def test_shlex_agrees_about_plain_words() -> None:
    assert quote("a b") == shlex.quote("a b")
