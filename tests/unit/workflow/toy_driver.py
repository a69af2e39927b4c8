"""A driver as a process of its own, to be killed: toy trials under real Parsl."""

import contextlib
import json
import sys
from functools import partial
from pathlib import Path

from toy_trials import prepare, toy_job, toy_trial

from hpcmass.config import Target
from hpcmass.sweep.driver import run_study
from hpcmass.workflow.pool import open_pool


class Submit:
    def __init__(self, pool):
        self.pool = pool

    def submit(self, trial):
        return self.pool.run(toy_trial, str(trial.path))


def main(folder, settings):
    job = toy_job(**json.loads(settings))

    @contextlib.contextmanager
    def workers():
        with open_pool(Target(), parallel=2, folder=folder, grace_s=5) as pool:
            yield Submit(pool)

    def show(event):
        print(event.kind, event.number, event.message, flush=True)

    result = run_study(job, folder, workers=workers, prepare=partial(prepare, job), on_event=show)
    print("RESULT", json.dumps({"counts": result.counts, "signal": result.signal}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
