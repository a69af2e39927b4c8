"""Floor 2: the run folder, and what it proves."""

from hpcmass.runs.folder import RankError, RunFolder, State, Status

__all__ = ["RankError", "RunFolder", "State", "Status"]
