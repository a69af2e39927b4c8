"""Floor 2: the run folder, and what it proves."""

from hpcmass.runs.commits import NewestCommit, newest_commit
from hpcmass.runs.folder import PAUSED, RankError, RunFolder, State, Status
from hpcmass.runs.losses import MOST_FREE_LOSSES, FreeLosses
from hpcmass.runs.report import ReportWriter, report, should_stop
from hpcmass.runs.why import Explanation, explain, first_error, is_lost_peer, log_tail

__all__ = [
    "MOST_FREE_LOSSES",
    "PAUSED",
    "Explanation",
    "FreeLosses",
    "NewestCommit",
    "RankError",
    "ReportWriter",
    "RunFolder",
    "State",
    "Status",
    "explain",
    "first_error",
    "is_lost_peer",
    "log_tail",
    "newest_commit",
    "report",
    "should_stop",
]
