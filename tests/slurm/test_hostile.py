"""Names, words, variables and folders that a shell reads otherwise, made up by Hypothesis, through a real sbatch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpcmass.config import Layout, Target
from hpcmass.devcluster import Cluster
from hpcmass.slurm.client import Slurm
from hpcmass.slurm.script import ScriptSpec, render_script
from hpcmass.slurm.submission import submit_script

pytestmark = pytest.mark.slurm
DUMP = (
    "import json, os, sys; print('GOT', json.dumps([sys.argv[1:], os.environ.get('TEST_VALUE'), os.getcwd()]))"
)
PIECES = [
    "'", '"', "; touch hacked", "$(touch hacked)", "`touch hacked`", "$HOME", "é 中 🚀", "  ", "*", "~", "#", "-n",
    "%j", "%", "&& touch hacked", "| touch hacked", "> hacked", "{a,b}", "!!", "=", ":", "x",
]  # fmt: skip
# A line's end or a backslash cannot stand in an option of sbatch, and is refused: the unit tests have those.
NAMES = (
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join).filter(lambda name: "/" not in name)
)
TEXTS = st.one_of(
    st.lists(
        st.sampled_from([*PIECES, "\\", "\n", "\r\n", "\t", "\n#SBATCH --partition=gpu\n"]), max_size=6
    ).map("".join),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(words=st.lists(TEXTS, max_size=4), value=TEXTS, folder=NAMES, name=NAMES)
def test_what_was_written_reaches_the_program(
    cluster: Cluster,
    slurm_env: dict[str, str],
    tmp_path: Path,
    words: list[str],
    value: str,
    folder: str,
    name: str,
) -> None:
    slurm = Slurm(patience_s=60)
    place = fresh(tmp_path) / folder
    place.mkdir(parents=True)
    target = Target(kind="slurm", partition="cpu", cores=4, env={"TEST_VALUE": value})
    script = render_script(
        ScriptSpec(
            name=name,
            target=target,
            layout=Layout(1, 1, 1, 1, 0, None, 60),
            command=(sys.executable, "-c", DUMP, *words),
            out=place,
            cwd=place,
            signal_s=0,  # Longer than a minute before the limit would be at once: before the program is there.
        )
    )
    job_id = submit_script(script, place, slurm=slurm, comment=f"of {name}")
    out = place / f"out-{job_id}.log"
    shown = cluster.run("scontrol", "show", "job", job_id).stdout
    assert "Partition=cpu" in shown
    [said] = within(lambda: [line for line in text(out).splitlines() if line.startswith("GOT ")], lambda: shown)
    assert json.loads(said.removeprefix("GOT ")) == [words, value, str(place)]
    assert not list(tmp_path.rglob("hacked"))


_NUMBER = count()


def fresh(folder: Path) -> Path:
    """A folder for one example."""
    return folder / str(next(_NUMBER))


def text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def within(look: Callable[[], list[str]], told: Callable[[], str]) -> list[str]:
    """What is there within four minutes."""
    until = time.monotonic() + 240
    while not (found := look()):
        assert time.monotonic() < until, told()
        time.sleep(0.05)
    return found
