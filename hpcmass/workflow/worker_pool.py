"""Parsl's worker pool, but what is under way when the driver is gone runs on to its end.

Parsl's own ends its workers, with what they run. An item of ours has its run folder and needs no driver: the
next one finds it by its lease and by `slots.jsonl`, and takes what came of it from the folder. The pool takes
no other item meanwhile and ends with the last one, so a block that nobody drives holds its nodes no longer.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from parsl.executors.high_throughput import process_worker_pool as parsl_pool
from parsl.log_utils import set_file_logger

_LOOK_S = 1.0
_log = logging.getLogger(parsl_pool.__name__)  # whose file it is


class LastItem(threading.Event):
    """The pool's word to end: whoever gives it waits until nothing is under way any more."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        super().__init__()
        self._busy = busy

    def set(self) -> None:
        """End the pool, once its items have ended."""
        for look in itertools.count():
            if not self._busy():
                break
            if look == 1:  # else it is an item that was just giving its slot back
                _log.warning("the driver is gone: the items under way run to their end")
            time.sleep(_LOOK_S)
        super().set()


class Manager(parsl_pool.Manager):
    """Parsl's, which ends when its interchange is silent for `heartbeat_threshold` seconds."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The thread that gives the word is the one that would take further items.
        self._stop_event = LastItem(self._at_work)

    def _at_work(self) -> bool:
        with contextlib.suppress(OSError, EOFError):  # else the process that keeps the list is gone
            return len(self._tasks_in_progress) > 0 or not self.pending_task_queue.empty()
        return False


def main(words: list[str]) -> None:
    """As Parsl's `process_worker_pool.py`, with the same words."""
    args = parsl_pool.get_arg_parser().parse_args(words)
    parsl_pool.args = args  # where `_start_worker` looks for it
    folder = os.path.join(args.logdir, f"block-{args.block_id}", args.uid)
    os.makedirs(folder, exist_ok=True)
    set_file_logger(os.path.join(folder, "manager.log"), level=logging.INFO)
    Manager(
        port=args.port,
        addresses=args.addresses,
        address_probe_timeout=int(args.address_probe_timeout),
        uid=args.uid,
        block_id=args.block_id,
        cores_per_worker=float(args.cores_per_worker),
        mem_per_worker=None,
        max_workers_per_node=int(args.max_workers_per_node),
        prefetch_capacity=int(args.prefetch_capacity),
        heartbeat_threshold=int(args.hb_threshold),
        heartbeat_period=int(args.hb_period),
        drain_period=None if args.drain_period == "None" else int(args.drain_period),
        poll_period=int(args.poll),
        cpu_affinity=args.cpu_affinity,
        enable_mpi_mode=False,
        mpi_launcher=args.mpi_launcher,
        available_accelerators=args.available_accelerators,
        cert_dir=None if args.cert_dir == "None" else args.cert_dir,
        log_config=None,
    ).start()


if __name__ == "__main__":
    main(sys.argv[1:])
