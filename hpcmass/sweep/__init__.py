"""Floor 4: studies: the space, what to try next, the driver. How a trial is run is passed in.

Optuna is imported by `hpcmass.sweep.window` alone, for the samplers that are its; the names here are light.
"""

from hpcmass.sweep.events import Event, StudyResult
from hpcmass.sweep.records import BestTrial
from hpcmass.sweep.show import StudySummary, TrialRow, study_summary, study_table

__all__ = ["BestTrial", "Event", "StudyResult", "StudySummary", "TrialRow", "study_summary", "study_table"]
