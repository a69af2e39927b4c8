"""What a rank changes of its process while it trains, and puts back afterwards."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch

from hpcmass.config import Job
from hpcmass.launch import RankEnv, usable_cores
from hpcmass.train import heap, reproducible


@contextlib.contextmanager
def process_state(job: Job, ranks: RankEnv) -> Iterator[None]:
    """Set threads, and what becomes of freed memory; put both, and the random states, back afterwards."""
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())
    asked = job.resources.threads_per_rank
    if asked is None and not os.environ.get("OMP_NUM_THREADS"):
        # Not more than this process may use: a cpuset or a launcher's binding may leave it a part of the node.
        asked = max(1, min(usable_cores(), (os.cpu_count() or 1) // ranks.local_size))
    if job.train.reproducible:
        asked = job.resources.threads_per_rank or 1  # nothing that the number of ranks or the node decides
    if asked is not None:
        torch.set_num_threads(asked)
    try:
        with heap.kept(job.train.keep_memory), reproducible.deterministic(job.train.reproducible):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
