"""MPI, initialised once it is known that this launcher may start it."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import mpi4py

from hpcmass.errors import LaunchError
from hpcmass.launch.advice import misfit, right_launcher


def start_mpi() -> Any:
    """The module `mpi4py.MPI`, with MPI initialised for calls from several threads.

    Raises:
        LaunchError: The MPI library would end the process, because it does not fit the launcher's PMI.
        ImportError: There is no MPI library.
    """
    # Open MPI's UCX windows complain on every rank where there is no such network; ours are a node's memory.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    # A waiting rank (and Horovod's thread, always) otherwise spins on a core that a loader's thread or the
    # backward pass could have: 114 against 84 ms a step of Horovod with two ranks on two cores. Where nothing
    # else wants the core, yielding costs nothing.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = True
    mpi4py.rc.thread_level = "multiple"
    mpi = import_module("mpi4py.MPI")
    if mpi.Is_initialized():
        return mpi
    library = mpi.Get_library_version()
    if reason := misfit(library, os.environ):
        raise LaunchError(reason, where="launch", hint=right_launcher(library), lasting=True)
    mpi.Init_thread(mpi.THREAD_MULTIPLE)
    return mpi


def mpi_library() -> str:
    """How the MPI library calls itself, or "" where none is loaded."""
    mpi = sys.modules.get("mpi4py.MPI")
    return str(mpi.Get_library_version()) if mpi is not None else ""
