"""Floor 4: studies: the space, what to try next, the driver. How a trial is run is passed in.

`hpcmass.sweep.study` alone imports Optuna; `hpcmass.sweep.driver` imports it, `hpcmass.sweep.show` must not.
"""
