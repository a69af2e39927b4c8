"""Floor 2: from resources and a target to the command and environment of N ranks, and their supervision.

Standard library only: `launch.child` imports it in an interpreter without site-packages.
"""

from hpcmass.launch.abort import AbortReport, parse_abort
from hpcmass.launch.allocation import Allocation, read_allocation
from hpcmass.launch.command import hpcmass_command
from hpcmass.launch.container import ContainerSpec, check_versions, container_words, inside_container
from hpcmass.launch.control import Control
from hpcmass.launch.cores import usable_cores
from hpcmass.launch.lastword import leave_word
from hpcmass.launch.mpi import MpiFlavour, find_mpiexec
from hpcmass.launch.outcome import LostNode, Outcome, RankExit, unheard_node
from hpcmass.launch.plan import LaunchPlan, plan_ranks
from hpcmass.launch.ranks import RankEnv, describe, detect_ranks, promised_ranks, start_id
from hpcmass.launch.supervise import supervise

__all__ = [
    "AbortReport",
    "Allocation",
    "ContainerSpec",
    "Control",
    "LaunchPlan",
    "LostNode",
    "MpiFlavour",
    "Outcome",
    "RankEnv",
    "RankExit",
    "check_versions",
    "container_words",
    "describe",
    "detect_ranks",
    "find_mpiexec",
    "hpcmass_command",
    "inside_container",
    "leave_word",
    "parse_abort",
    "plan_ranks",
    "promised_ranks",
    "read_allocation",
    "start_id",
    "supervise",
    "unheard_node",
    "usable_cores",
]
