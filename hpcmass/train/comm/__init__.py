"""Communicators: how the ranks of a run talk. One Protocol, four implementations."""

from hpcmass.train.comm.base import Communicator, Pending
from hpcmass.train.comm.choose import open_communicator

__all__ = ["Communicator", "Pending", "open_communicator"]
