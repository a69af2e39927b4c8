"""Texts that Open MPI 5.0.11's and MPICH 5.0.2's mpiexec really wrote."""

import pytest

from hpcmass.launch import AbortReport, parse_abort

OPENMPI_KILLED = """
--------------------------------------------------------------------------
prterun noticed that process rank 1 with PID 6671 on node vm exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
OPENMPI_EXIT = """
--------------------------------------------------------------------------
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-6677@1,1]
   Exit code:    3
--------------------------------------------------------------------------
"""
OPENMPI_ABORT = """
--------------------------------------------------------------------------
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
  Proc: [[47218,1],1]
  Errorcode: 5

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
You may or may not see output from other processes, depending on
exactly when Open MPI kills them.
--------------------------------------------------------------------------
--------------------------------------------------------------------------
prterun has exited due to process rank 1 with PID 0 on node vm calling
"abort". This may have caused other processes in the application to be
terminated by signals sent by prterun (as reported here).
--------------------------------------------------------------------------
"""
MPICH_KILLED = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 6977 RUNNING AT vm
=   EXIT CODE: 9
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)
This typically refers to a problem with your application.
Please see the FAQ page for debugging suggestions
"""
MPICH_ABORT = (
    "Abort(5) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 5) - process 1\n"
)


SRUN_KILLED = """\
srun: error: cn2: task 3: Killed
srun: launch/slurm: _step_signal: Terminating StepId=13.0
slurmstepd-cn1: error: *** STEP 13.0 ON cn1 CANCELLED AT 2026-11-25T04:30:58 ***
srun: error: cn1: tasks 0-1: Killed
"""
SRUN_EXIT = "srun: error: cn1: task 1: Exited with exit code 16\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OPENMPI_KILLED, AbortReport(rank=1, signal=9, host="vm")),
        (OPENMPI_EXIT, AbortReport(rank=1, exit_code=3)),
        (OPENMPI_ABORT, AbortReport(rank=1, exit_code=5)),
        (OPENMPI_ABORT + OPENMPI_KILLED, AbortReport(rank=1, exit_code=5)),
        (MPICH_KILLED, AbortReport(signal=11)),
        (MPICH_ABORT, AbortReport(rank=1, exit_code=5)),
        (MPICH_ABORT + MPICH_KILLED, AbortReport(rank=1, exit_code=5)),
        (SRUN_KILLED, AbortReport(rank=3, signal=9, host="cn2")),
        (SRUN_EXIT, AbortReport(rank=1, exit_code=16, host="cn1")),
        ("", None),
        ("epoch 1: signal 9, rank 3\n", None),
    ],
)
def test_parse_abort(text: str, expected: AbortReport | None) -> None:
    assert parse_abort(text) == expected
