"""The shell lines that unpack a packed environment once a node. Pure; what makes the archive is `workflow`.

A Python environment on a shared file system is thousands of small files that every rank looks up and opens at
the same moment. Packed it is one file, read once a node in one go. The lines need bash, tar, coreutils,
findutils and sed: nothing of the environment itself, which is not there yet.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from hpcmass.errors import ConfigError

TOKEN = "@HPCMASS_ENV@"  # stands in the archive's text files for the folder it is unpacked to
RELOCATE = ".hpcmass-relocate"  # lists those files, each ended by NUL
DEFAULT_SCRATCH = "${TMPDIR:-/tmp}"
_VARIABLE = re.compile(r"\$(?:[A-Za-z_][A-Za-z0-9_]*|\{[A-Za-z_][A-Za-z0-9_]*(?::-[A-Za-z0-9_./-]*)?\})")
# What would not survive a shebang, or the sed below, as part of the folder's name.
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]*")


@dataclass(frozen=True)
class PackedEnv:
    """An archive that `hpcmass env pack` made.

    Attributes:
        archive: Where it lies, on a file system that all nodes see.
        sha256: Of its bytes; the beginning names the unpacked folder, so that jobs share it.
        bytes: Size of the archive.
        unpacked_bytes: Size of what it holds.
        python: Version of its interpreter, such as `3.11.7`.
    """

    archive: str
    sha256: str
    bytes: int
    unpacked_bytes: int
    python: str

    @property
    def folder(self) -> str:
        """Name of the unpacked folder."""
        return self.sha256[:16]


def scratch_word(scratch: str | None) -> str:
    """A node-local folder as a word of bash in which `$NAME`, `${NAME}` and `${NAME:-default}` stay variables.

    Raises:
        ConfigError: It holds anything that cannot be part of a path in a shebang line, such as a space.
    """
    text = scratch or DEFAULT_SCRATCH
    rest = _VARIABLE.sub("", text)
    if not _PLAIN.fullmatch(rest):
        raise ConfigError(
            f"{text!r} cannot be a node-local folder for an environment: only letters, digits, "
            "_ @ % + = : , . / - and variables such as $SLURM_JOB_ID",
            where="scratch",
        )
    return f'"{text}"'


def unpack_function(env: PackedEnv, scratch: str | None) -> list[str]:
    """`hpcmass_unpack`, a bash function: unpacks on this node, or finds it unpacked; prints which.

    Any number of jobs and processes may call it at once: one unpacks, under a lock of the node, into a folder
    beside, which gets its name when it is complete. The list of files is the mark of one. A cleaner of
    old files takes them one by one: the mark is kept the oldest, so it goes first, and what is left without
    it gives way to a new one.

    Raises:
        ConfigError: As for `scratch_word`.
    """
    kilobytes = env.unpacked_bytes // 1024
    return f"""\
hpcmass_env_base={scratch_word(scratch)}/hpcmass-env-$(id -u)
export HPCMASS_ENV="$hpcmass_env_base/{env.folder}"
hpcmass_unpack() (
    # `set -e` counts for nothing in a function whose end is asked for: every step says itself what then.
    set -u
    started=$(date +%s)
    archive={shlex.quote(env.archive)}
    base={scratch_word(scratch)}/hpcmass-env-$(id -u)
    dest="$base/{env.folder}"
    say() {{ echo "hpcmass: $(uname -n): $*"; }}
    no() {{ say "the environment cannot be unpacked: $*" >&2; exit 1; }}
    case "$dest" in *[!A-Za-z0-9_@%+=:,./-]*) no "a shebang cannot hold its path '$dest'";; esac
    mark="$dest/{RELOCATE}"
    there() {{
        [ -e "$mark" ] || return 1
        # Once a day all of it is made young, what is never read too; the mark by the moment before.
        if [ -n "$(find "$mark" -mmin +1440 2>/dev/null)" ]; then
            find "$dest" ! -path "$mark" -exec touch -hc -- {{}} + 2>/dev/null
            touch -c -d "@$started" -- "$mark"
        fi
        say "environment {env.folder} is there already"
    }}
    if there; then exit 0; fi
    mkdir -p -- "$base" || no "the folder $base cannot be made"
    [ -O "$base" ] || no "$base belongs to somebody else"
    chmod 700 "$base" || no "$base cannot be closed to others"
    locked=
    if command -v flock >/dev/null; then exec 9>"$base/{env.folder}.lock" && flock 9 && locked=1; fi
    if there; then exit 0; fi
    # Under the node's lock, what a killed unpacking left is nobody's; $base may be of many nodes.
    mine="$base/.{env.folder}.$(uname -n)"
    [ -z "$locked" ] || rm -rf -- "$mine".*
    same() {{
        [ "$(stat -L -c %s -- "$archive" 2>/dev/null)" = {env.bytes} ] || return 1
        grep -q {env.sha256} -- "$archive.json"
    }}
    same || no "$archive is gone, or was packed anew since this job was submitted"
    free=$(df -Pk -- "$base" | awk 'NR == 2 {{ print $4 }}')
    [ "${{free:-0}}" -gt {kilobytes + 1024} ] || no "$base has $free kB free, it needs {kilobytes} kB"
    new=$(mktemp -d "$mine.XXXXXX") || no "$base cannot be written"
    trap 'rm -rf -- "$new" "$new.old"' EXIT
    tar -xf "$archive" -C "$new" --no-same-owner || no "tar failed"
    same || no "$archive was packed anew meanwhile"
    # Its last file: what is there is whole.
    [ -e "$new/{RELOCATE}" ] || no "$archive is damaged"
    (cd "$new" && xargs -0 -r sed -i "s|{TOKEN}|$dest|g" -- <{RELOCATE}) || no "its paths cannot be set"
    chmod 755 "$new"
    # What a cleaner of old files left of it, which a job may still have open, makes room.
    [ -z "$locked" ] || [ ! -e "$dest" ] || [ -e "$mark" ] || mv -T -- "$dest" "$new.old"
    if mv -T -- "$new" "$dest" 2>/dev/null; then
        say "environment {env.folder} unpacked in $(($(date +%s) - started)) s"
    elif ! there; then
        no "$new cannot become $dest: remove that folder"
    fi
)""".splitlines()


def unpack_lines(env: PackedEnv, scratch: str | None, *, nodes: int | None = None) -> list[str]:
    """Lines of a batch script: the function, and its call on every node of the allocation.

    Afterwards `$HPCMASS_ENV` is the folder, `$HPCMASS_ENV/bin` is first on PATH, and the job has ended with an
    error where a node could not unpack.

    Args:
        env: The archive.
        scratch: The target's node-local folder; None: `$TMPDIR`, else `/tmp`.
        nodes: Nodes of the job; None: as Slurm says when the job runs.
    """
    every = (
        'srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 '
        # ALL: under `sbatch --export=NONE` the tasks would not know the function.
        "--cpus-per-task=1 --mpi=none --export=ALL --kill-on-bad-exit=1 bash -c hpcmass_unpack || exit 1"
    )
    if nodes == 1:
        call = ["hpcmass_unpack || exit 1"]
    else:
        call = [
            'if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then',
            "    export -f hpcmass_unpack",
            f"    {every}",
            "    unset -f hpcmass_unpack",
            "else",
            "    hpcmass_unpack || exit 1",
            "fi",
        ]
    return [*unpack_function(env, scratch), *call, 'export PATH="$HPCMASS_ENV/bin:$PATH"', "unset PYTHONHOME"]
