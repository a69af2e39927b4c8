r"""The batch script of a job, as text. Pure.

Two readers have to get every value unharmed: sbatch, which reads the `#SBATCH` lines by rules of its own, and
bash, which runs the rest. sbatch takes words in double quotes with `\` before `"` and `\`, one line each
(seen on 22.05); what cannot stand on one line is refused. For bash a value stands in single quotes, or in
`$'…'` where it holds control characters, so that every command is one line.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpcmass.config import Layout, Target, slurm_time
from hpcmass.errors import ConfigError
from hpcmass.launch.packed import PackedEnv, unpack_lines

_SAFE = re.compile(r"[A-Za-z0-9_@%+:,./=-]+")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KINDS = ("after", "afterany", "afterok", "afternotok", "aftercorr")
_AFTER = re.compile(rf"(?:({'|'.join(_KINDS)}):)?(\d+(?:[_+]\d+)?)")

# What hpcmass says itself: said twice, the last would win and the job would not be what hpcmass thinks it is.
_OURS = {
    "array", "chdir", "comment", "cpus-per-task", "dependency", "error", "input", "job-name", "no-requeue",
    "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "requeue", "signal", "test-only",
    "time", "wait", "wrap",
}  # fmt: skip


@dataclass(frozen=True)
class Element:
    """A word of an array's script that differs by element: the text before and after the element's number."""

    before: str
    after: str = ""


Word = str | Element


@dataclass(frozen=True)
class ScriptSpec:
    """What a batch script is made of.

    Attributes:
        name: The job's name, as squeue shows it.
        target: Partition, account and so on; modules, setup lines and variables.
        layout: Nodes, ranks, wall time.
        command: The words that the script ends in.
        out: The folder of Slurm's output file `out-<job id>.log`; of an array with the element's number in it.
        env: Variables of the job besides the target's.
        after: Jobs to wait for: `12` or `afterok:12` (it completed), `afterany:12` (it ended), ….
        array: Indices of a job array, such as `0-9` or `1,4`.
        signal_s: How long before the time limit the batch script gets SIGUSR1; 0: no signal.
        comment: What the job carries as its comment.
        cwd: The working folder; default: that of sbatch.
        title: What a person reads in the script's second line.
        packed: An environment to unpack on each node first, whose Python takes the place of the command's.
        python_word: Which word of the command that is.
    """

    name: str
    target: Target
    layout: Layout
    command: tuple[Word, ...]
    out: Path | Element
    env: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    array: str | None = None
    signal_s: int = 120
    comment: str = ""
    cwd: Path | None = None
    title: str = ""
    packed: PackedEnv | None = None
    python_word: int = 0


def render_script(spec: ScriptSpec) -> str:
    """The whole script.

    Raises:
        ConfigError: A value that sbatch or bash cannot carry, an option that hpcmass sets itself, or a name of
            a variable that is none; `where` is the key.
    """
    title = spec.title or f"job {spec.name}"
    lines = ["#!/bin/bash", f"# Written by hpcmass: {_one_line(title, 'name')}"]
    said: dict[str, str] = {}
    for name, value, key in _options(spec):
        if name in said:
            raise ConfigError(
                f"'--{name}' would be said twice",
                where=key,
                hint=f"'{said[name]}' says it already: leave one out",
            )
        said[name] = key
        lines.append(option_line(name, value, key))
    lines.append("")
    lines += list(_modules(spec.target))
    lines += [_one_line(line, "setup") for line in spec.target.setup]
    for key, env in (("env", spec.target.env), ("job env", spec.env)):
        for name, value in env.items():
            if not _VARIABLE.fullmatch(name):
                raise ConfigError(
                    f"{name!r} is no name of a variable",
                    where=key,
                    hint="letters, digits and '_' may stand in it",
                )
            lines.append(f"export {name}={quote(value, f'{key}.{name}')}")
    words = [_word(word) for word in spec.command]
    if spec.packed is not None:
        lines += unpack_lines(spec.packed, spec.target.scratch, nodes=spec.layout.nodes)
        words[spec.python_word] = '"$HPCMASS_ENV/bin/python"'
    lines.append(" ".join(["exec", *words]))
    return "\n".join(lines) + "\n"


def option_line(name: str, value: str | None, key: str) -> str:
    """One `#SBATCH` line.

    Raises:
        ConfigError: The value cannot stand on such a line.
    """
    if value is None:
        return f"#SBATCH --{name}"
    if not value or any(_control(character) for character in value):
        raise ConfigError(
            f"{value!r} cannot stand in an #SBATCH line: it must be one line without control characters",
            where=key,
            hint="tabs, line ends and the like do not go through sbatch",
        )
    text = value if _SAFE.fullmatch(value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
    return f"#SBATCH --{name}={text}"


def quote(text: str, key: str = "command") -> str:
    """A word as bash reads it back: quoted where it has to be, and always on one line.

    Raises:
        ConfigError: It holds a NUL, which no program can be given.
    """
    if "\0" in text:
        raise ConfigError("holds a NUL character, which no command or variable can take", where=key)
    if not any(_control(character) for character in text):
        return shlex.quote(text)
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _control(character: str) -> bool:
    """Whether it is a control character, or a byte that is no UTF-8 (a lone surrogate to Python)."""
    return not " " <= character != "\x7f" or "\udc80" <= character <= "\udcff"


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if not _control(character):
        return character
    code = ord(character) - 0xDC00 if "\udc80" <= character <= "\udcff" else ord(character)
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\x{code:02x}")


def _word(word: Word) -> str:
    if isinstance(word, str):
        return quote(word)
    before, after = (quote(part) if part else "" for part in (word.before, word.after))
    return f'{before}"$SLURM_ARRAY_TASK_ID"{after}'


def _one_line(text: str, key: str) -> str:
    if any(_control(character) for character in text if character != "\t"):
        raise ConfigError(f"{text!r} must be one line", where=key)
    return text


def _options(spec: ScriptSpec) -> Iterator[tuple[str, str | None, str]]:
    """The options as (name, value or None, key for messages), in the order in which a person looks for them."""
    target, layout = spec.target, spec.layout
    yield "job-name", spec.name, "name"
    for key in ("partition", "account", "qos", "constraint", "reservation"):
        value = getattr(target, key)
        if value is not None:
            yield key, value, key
    yield "nodes", str(layout.nodes), "resources.nodes"
    yield "ntasks", str(layout.ranks), "resources.ranks"
    yield "ntasks-per-node", str(layout.ranks_per_node), "resources.ranks"
    yield "cpus-per-task", str(layout.threads_per_rank), "resources.threads_per_rank"
    if gres := _gres(target, layout):
        yield "gres", gres, "gres"
    if layout.memory_gb is not None:
        # Slurm counts in MiB, the job file in GB; rounded down, so that a whole node's memory fits the node.
        yield "mem", f"{max(1, math.floor(layout.memory_gb * 1e9 / 2**20))}M", "resources.memory_gb"
    if target.exclusive:
        yield "exclusive", None, "exclusive"
    yield "time", slurm_time(layout.time_s), "resources.time"
    if spec.signal_s:
        yield "signal", f"B:USR1@{spec.signal_s}", "signal"
    yield ("requeue" if target.requeue else "no-requeue"), None, "requeue"
    if spec.array is not None:
        yield "array", spec.array, "array"
    if spec.after:
        yield "dependency", dependency(spec.after), "after"
        yield "kill-on-invalid-dep", "yes", "after"
    if spec.comment:
        yield "comment", spec.comment, "comment"
    yield "output", _output(spec), "runs"
    yield "open-mode", "append", "open-mode"
    if spec.cwd is not None:
        yield "chdir", str(spec.cwd), "project"
    yield from _extra(target)


def dependency(after: tuple[str, ...]) -> str:
    """The value of `--dependency` for ids, each perhaps with its kind before it (`afterany:12`).

    Raises:
        ConfigError: One is no job id.
    """
    parts = []
    for one in after:
        match = _AFTER.fullmatch(one)
        if match is None:
            raise ConfigError(f"{one!r} is no job id", where="after", hint="write 123, or afterany:123")
        parts.append(f"{match[1] or 'afterok'}:{match[2]}")
    return ",".join(parts)


def _gres(target: Target, layout: Layout) -> str:
    parts = []
    if layout.gpus_per_node:
        kind = f":{target.gpu_type}" if target.gpu_type else ""
        parts.append(f"gpu{kind}:{layout.gpus_per_node}")
    parts += [f"{name}:{count}" for name, count in target.gres.items() if count]
    return ",".join(parts)


def _output(spec: ScriptSpec) -> str:
    """The file name pattern: `%` of a path would be a placeholder, and a backslash switches them off."""
    paths = (spec.out.before, spec.out.after) if isinstance(spec.out, Element) else (str(spec.out),)
    if any("\\" in path for path in paths):
        raise ConfigError("a backslash in the run folder's path does not go through sbatch", where="runs")
    if isinstance(spec.out, Element):
        before, after = (part.replace("%", "%%") for part in (spec.out.before, spec.out.after))
        return f"{before}%a{after}/out-%A_%a.log"
    name = "out-%j.log" if spec.array is None else "out-%A_%a.log"
    return f"{str(spec.out).replace('%', '%%')}/{name}"


def _extra(target: Target) -> Iterator[tuple[str, str | None, str]]:
    for name, value in target.sbatch.items():
        key = f"sbatch.{name}"
        if not _OPTION.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no long option of sbatch", where=key, hint="write its name without the dashes"
            )
        if name in _OURS:
            raise ConfigError(
                f"'--{name}' is set by hpcmass itself",
                where=key,
                hint="see the keys of [resources] and of the target",
            )
        yield name, value or None, key


def _modules(target: Target) -> Iterator[str]:
    if not target.modules:
        return
    # A batch script is no login shell; where the submitting one had no `module` either, /etc/profile brings it.
    yield "type module >/dev/null 2>&1 || . /etc/profile"
    for module in target.modules:
        word = quote(_one_line(module, "modules"), "modules")
        yield f"module load {word} || {{ echo hpcmass: cannot load module {word} >&2; exit 78; }}"
