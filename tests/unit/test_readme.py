"""Every command that the documentation shows is run, block by block, in a copy of the checkout.

In ```console blocks the lines after `$ ` (and their `> ` continuations) are the commands, the rest is output;
```bash blocks are commands as a whole. A block after an HTML comment `<!-- not run: REASON -->` is left out.
Lines that CI runs by itself are not run again: `git clone` and `make …`, except that `make demo` makes sure
that the demo's project folder is there. A document that shows `git clone` begins beside the copy (named
hpcmass, as git would name it), any other one inside. The working folder and the environment last from block
to block; the environment's `bin` is first on PATH, and `.venv` in the copy is that environment.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "docs/tutorial.md", "docs/from-torchrun.md", "docs/writing.md"]
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`]*)$")
NOT_RUN = re.compile(r"<!--\s*not run:\s*(?P<reason>\S[^>]*?)\s*-->")
RUN_ELSEWHERE = re.compile(r"^\s*(git clone|make)\b")


class BlockFailed(AssertionError):
    """A command block of a document ended badly."""


@dataclass(frozen=True)
class Block:
    """One block of commands of a document; `line` is that of its opening fence."""

    line: int
    script: str
    not_run: str | None = None


def blocks(markdown: str) -> list[Block]:
    """The ```console and ```bash blocks of a document in their order.

    Raises:
        BlockFailed: For a block that never ends, and for a comment `not run` that gives no reason.
    """
    found: list[Block] = []
    lines = markdown.splitlines()
    position, above = 0, ""
    while position < len(lines):
        opening = FENCE.match(lines[position])
        if not opening:
            above = lines[position].strip() or above
            position += 1
            continue
        end = position + 1
        while end < len(lines) and lines[end].strip() != opening["fence"]:
            end += 1
        if end == len(lines):
            raise BlockFailed(f"line {position + 1}: the block never ends")
        body = [text.removeprefix(opening["indent"]) for text in lines[position + 1 : end]]
        kind = (opening["info"].split() or [""])[0]
        if kind in ("console", "bash"):
            script = "\n".join(_commands(body) if kind == "console" else body)
            comment = NOT_RUN.fullmatch(above)
            if not comment and "not run" in above and above.startswith("<!--"):
                raise BlockFailed(f"line {position + 1}: give the reason: <!-- not run: REASON -->")
            found.append(Block(position + 1, script, comment["reason"] if comment else None))
        above = ""
        position = end + 1
    return found


def _commands(lines: list[str]) -> list[str]:
    """The commands of a console block: `$ ` lines and what continues them."""
    commands: list[str] = []
    going_on = False
    for line in lines:
        if line.startswith("$ "):
            commands.append(line[2:])
        elif going_on:
            commands.append(line.removeprefix("> "))
        else:
            continue
        going_on = commands[-1].endswith("\\")
    return commands


def run_document(markdown: str, beside: Path, checkout: Path, env: dict[str, str]) -> int:
    """Runs the blocks of a document. Returns how many were run.

    Raises:
        BlockFailed: Names the line of the block whose commands failed, with the end of their output.
    """
    all_blocks = blocks(markdown)
    folder = beside if any(re.search(r"^\s*git clone\b", b.script, re.M) for b in all_blocks) else checkout
    count = 0
    for block in all_blocks:
        if block.not_run:
            continue
        lines = block.script.splitlines()
        if any(re.match(r"\s*make demo\b", line) for line in lines):
            ensure_demo(checkout, env)
        script = "\n".join(line for line in lines if not RUN_ELSEWHERE.match(line))
        folder, env = _run_block(block.line, script, folder, env, beside)
        count += 1
    return count


def _run_block(
    line: int, script: str, folder: Path, env: dict[str, str], scratch: Path
) -> tuple[Path, dict[str, str]]:
    """Runs one block with bash; the folder and environment that it leaves."""
    after = scratch / ".after"
    whole = f'set -eu -o pipefail\n{script}\n{{ pwd; env -0; }} >"{after}"\n'
    try:
        done = subprocess.run(
            ["bash", "-c", whole],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=900,
        )
    except subprocess.TimeoutExpired as expired:
        raise BlockFailed(f"line {line}: not done after {expired.timeout:.0f} s") from None
    if done.returncode != 0:
        raise BlockFailed(f"line {line}: ended with {done.returncode}\n{script}\n---\n{done.stdout[-4000:]}")
    here, _, variables = after.read_text(encoding="utf-8").partition("\n")
    after.unlink()
    left = dict(each.split("=", 1) for each in variables.split("\0") if "=" in each)
    return Path(here), left


def ensure_demo(checkout: Path, env: dict[str, str]) -> None:
    """Runs the last step of `make demo` in the copy, which resumes what the checkout had."""
    done = subprocess.run(
        [sys.executable, "workflows/mnist/demo.py", "demo"],
        cwd=checkout,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if done.returncode != 0:
        raise BlockFailed(
            f"make demo: ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def copy_checkout(beside: Path) -> Path:
    """A copy of the checkout, with demo/ if it has one, and the running environment as .venv."""
    checkout = beside / "hpcmass"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        with contextlib.suppress(
            FileNotFoundError, IsADirectoryError
        ):  # What other tests have there for a moment.
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    if (ROOT / "demo").is_dir():
        shutil.copytree(ROOT / "demo", checkout / "demo", symlinks=True)
    (checkout / ".venv").symlink_to(sys.prefix)
    return checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout for each document, as each may be the first that somebody reads."""
    return copy_checkout(tmp_path / "beside")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A newcomer's environment: a home of their own, and as root Open MPI told that this is meant."""
    home = tmp_path / "home"
    home.mkdir()
    path = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)])
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.getuid() == 0 else {}
    return {"HOME": str(home), "PATH": path, **as_root}


@pytest.mark.mpi
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_of_the_document_runs(name: str, checkout: Path, env: dict[str, str]) -> None:
    if not (ROOT / name).exists():
        pytest.fail(f"{name} is not there")
    assert run_document((ROOT / name).read_text(encoding="utf-8"), checkout.parent, checkout, env) > 0


def write(tmp_path: Path, text: str) -> tuple[str, Path, Path]:
    checkout = tmp_path / "hpcmass"
    checkout.mkdir()
    return text, tmp_path, checkout


def test_blocks_run_in_order_and_share_folder_and_environment(tmp_path: Path, env: dict[str, str]) -> None:
    text, beside, checkout = write(
        tmp_path,
        "\n".join(
            [
                "# Title",
                "```bash",
                "export COLOUR=blue",
                "mkdir -p deep && cd deep",
                "```",
                "prose, and an item:",
                "- item",
                "  ```console",
                "  $ echo $COLOUR \\",
                "  >   > seen",
                "  this is output, not a command; $(touch bad)",
                "  $ pwd > where",
                "  ```",
                "```python",
                "raise SystemExit",
                "```",
            ]
        ),
    )
    assert run_document(text, beside, checkout, env) == 2
    assert (checkout / "deep" / "seen").read_text() == "blue\n"
    assert (checkout / "deep" / "where").read_text() == f"{checkout / 'deep'}\n"
    assert not list(checkout.rglob("bad"))


def test_a_failing_command_names_its_line(tmp_path: Path, env: dict[str, str]) -> None:
    text, beside, checkout = write(
        tmp_path, "\n```console\n$ true\n```\n\n```console\n$ ls nowhere\n$ true\n```\n"
    )
    with pytest.raises(BlockFailed, match=r"line 6: ended with 2(?s:.)*nowhere"):
        run_document(text, beside, checkout, env)


def test_a_failure_inside_a_pipe_is_seen(tmp_path: Path, env: dict[str, str]) -> None:
    text, beside, checkout = write(tmp_path, "```bash\nfalse | cat\n```\n")
    with pytest.raises(BlockFailed, match="line 1: ended with 1"):
        run_document(text, beside, checkout, env)


def test_a_block_marked_not_run_is_left_out(tmp_path: Path, env: dict[str, str]) -> None:
    text, beside, checkout = write(
        tmp_path, "<!-- not run: needs a cluster -->\n\n```bash\nexit 3\n```\n```bash\ntouch ran\n```\n"
    )
    assert run_document(text, beside, checkout, env) == 1
    assert (checkout / "ran").exists()


def test_not_run_needs_a_reason() -> None:
    with pytest.raises(BlockFailed, match="give the reason"):
        blocks("<!-- not run -->\n```bash\ntrue\n```\n")


def test_a_block_that_never_ends_is_an_error() -> None:
    with pytest.raises(BlockFailed, match="line 2: the block never ends"):
        blocks("\n```bash\ntrue\n")


def test_git_clone_begins_beside_the_copy_and_make_is_not_run(tmp_path: Path, env: dict[str, str]) -> None:
    text, beside, checkout = write(
        tmp_path,
        "```console\n$ git clone https://example.org/hpcmass\n$ cd hpcmass\n$ make test\n$ touch here\n```\n",
    )
    assert run_document(text, beside, checkout, env) == 1
    assert (checkout / "here").exists()


def test_make_demo_runs_the_demo_in_its_folder(tmp_path: Path, env: dict[str, str]) -> None:
    text, beside, checkout = write(tmp_path, "```console\n$ make demo\n$ cat demo\n```\n")
    (checkout / "workflows" / "mnist").mkdir(parents=True)
    (checkout / "workflows" / "mnist" / "demo.py").write_text(
        "import sys\nopen(sys.argv[1], 'w').write('yes')\n"
    )
    assert run_document(text, beside, checkout, env) == 1
    assert (checkout / "demo").read_text() == "yes"


def test_the_demo_environment_reads_every_source() -> None:
    """The tutorial says that the environment of `make demo` will do, and cuts a CSV file in it."""
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r'^demo = \["hpcmass\[([^]]*)\]', text, re.M)
    assert found is not None
    assert {"tables", "images"} <= set(found[1].split(","))
