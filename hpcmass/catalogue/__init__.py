"""Floor 2: the file-based model catalogue. No torch, no pickle, no server."""

from hpcmass.catalogue.aliases import ANY, AliasMove
from hpcmass.catalogue.catalogue import Catalogue
from hpcmass.catalogue.check import Problem, VerifyReport
from hpcmass.catalogue.evaluations import EvaluationRecord, Evaluations, Measured
from hpcmass.catalogue.gates import GateResult, Requirement, parse_requirement
from hpcmass.catalogue.graph import Graph, lineage_graph
from hpcmass.catalogue.origin import environment, git_commit, lineage
from hpcmass.catalogue.register import Registration
from hpcmass.catalogue.search import Found, SearchResult
from hpcmass.catalogue.version import FileEntry, Version, check_alias

__all__ = [
    "ANY",
    "AliasMove",
    "Catalogue",
    "EvaluationRecord",
    "Evaluations",
    "FileEntry",
    "Found",
    "GateResult",
    "Graph",
    "Measured",
    "Problem",
    "Registration",
    "Requirement",
    "SearchResult",
    "VerifyReport",
    "Version",
    "check_alias",
    "environment",
    "git_commit",
    "lineage",
    "lineage_graph",
    "parse_requirement",
]
