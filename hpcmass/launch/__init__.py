"""Floor 2: from resources and a target to the command and environment of N ranks, and their supervision."""

from hpcmass.launch.ranks import RankEnv, detect_ranks, promised_ranks

__all__ = ["RankEnv", "detect_ranks", "promised_ranks"]
