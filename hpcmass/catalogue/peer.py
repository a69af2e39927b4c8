"""The second process of `catalogue doctor`, on this machine or another one."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcmass.catalogue import doctor_peer
from hpcmass.errors import CorruptError


class Peer:
    """The other process: it is told, and answers.

    Args:
        before: Words in front of the command, such as `srun --nodelist=n2` or `ssh n2`; none: on this machine.
        shell: The words in front hand the rest to a shell, as ssh does, so it is quoted for one.
    """

    def __init__(self, before: Sequence[str] = (), *, shell: bool = False) -> None:
        self.before = list(before)
        self.shell = shell
        self._process: subprocess.Popen[str] | None = None

    @contextlib.contextmanager
    def started(self, folder: Path) -> Iterator[Peer]:
        """The process, at work in a folder.

        Raises:
            OSError: The command cannot be started.
        """
        words = [sys.executable, "-I", str(Path(doctor_peer.__file__).resolve()), str(folder.resolve())]
        command = [*self.before, *([shlex.join(words)] if self.shell else words)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            self._process = process
            try:
                yield self
            finally:
                self._process = None
                if process.stdin is not None:
                    with contextlib.suppress(OSError):
                        process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)
                process.kill()

    def tell(self, *words: object) -> None:
        """Send a command; `answer` waits for what comes of it.

        Raises:
            CorruptError: The process has ended.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise CorruptError(self._ended()) from error

    def answer(self) -> str:
        """What came of the last command.

        Raises:
            CorruptError: The process has ended.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CorruptError(self._ended())
        return line.rstrip("\n")

    def ask(self, *words: object) -> str:
        """Send a command, and wait for its answer."""
        self.tell(*words)
        return self.answer()

    def _ended(self) -> str:
        assert self._process is not None
        assert self._process.stderr is not None
        said = self._process.stderr.read().strip().splitlines()[-1:]
        return f"the second process ended: {said[0] if said else 'it said nothing'}"
