"""What mpiexec says when a rank ended badly. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class AbortReport:
    """The rank that mpiexec blames; each part None where its text does not say.

    MPICH's text names neither the rank nor, reliably, its process: only the signal can be trusted.
    """

    rank: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    host: str = ""


_SPACES = re.compile(r"\s+")
_OPENMPI_SIGNAL = re.compile(
    r"noticed that process rank (\d+) with PID \d+ on node (\S+) exited on signal (\d+)"
)
_OPENMPI_EXIT = re.compile(r"first process to do so was: Process name: \[[^\]]*?,\s*(\d+)\] Exit code: (\d+)")
_OPENMPI_ABORT = re.compile(r"MPI_ABORT was invoked on rank (\d+) .*?(?:[Ee]rrorcode:?|with errorcode) (-?\d+)")
_MPICH_ABORT = re.compile(r"Abort\((-?\d+)\) on node \d+ \(rank (\d+) in comm")
_SRUN = re.compile(
    r"^srun: error: (\S+): task (\d+): (?:Exited with exit code (\d+)|(Killed|Terminated|Segmentation fault"
    r"|Aborted|Bus error|Floating point exception|Illegal instruction|Out Of Memory))",
    re.MULTILINE,
)
_WORDS = {
    "Killed": 9, "Out Of Memory": 9, "Terminated": 15, "Segmentation fault": 11, "Aborted": 6, "Bus error": 7,
    "Floating point exception": 8, "Illegal instruction": 4,
}  # fmt: skip
_MPICH_SIGNAL = re.compile(r"APPLICATION TERMINATED WITH THE EXIT STRING: .*?\(signal (\d+)\)")


def parse_abort(text: str) -> AbortReport | None:
    """Find rank, exit code and signal in the output of Open MPI's (4, 5) or MPICH's mpiexec, or of srun.

    An explicit `MPI_Abort` counts before the signals and exit codes that follow from it.

    Returns:
        None when the text blames nobody.
    """
    flat = _SPACES.sub(" ", text)
    if found := _OPENMPI_ABORT.search(flat):
        return AbortReport(rank=int(found[1]), exit_code=int(found[2]))
    if found := _MPICH_ABORT.search(flat):
        return AbortReport(rank=int(found[2]), exit_code=int(found[1]))
    if found := _OPENMPI_SIGNAL.search(flat):
        return AbortReport(rank=int(found[1]), signal=int(found[3]), host=found[2])
    if found := _OPENMPI_EXIT.search(flat):
        return AbortReport(rank=int(found[1]), exit_code=int(found[2]))
    if found := _MPICH_SIGNAL.search(flat):
        return AbortReport(signal=int(found[1]))
    if found := _SRUN.search(text):
        number = None if found[4] is None else _WORDS[found[4]]
        code = None if found[3] is None else int(found[3])
        return AbortReport(rank=int(found[2]), exit_code=code, signal=number, host=found[1])
    return None
