"""What a block runs on a node: Parsl's worker pool, with the node's slots and a clean environment around it.

`main(SPEC, BLOCK)` is called once a node by the block's batch script (or by its one `srun`). Beside what the
file SPEC says it needs only what Slurm set: which accelerators this job has on this node, and when it ends. It
stays as the pool's parent, and leaves no process on the node, whatever tracks processes there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from hpcmass.launch.scrub import scrubbed
from hpcmass.workflow.addresses import best_addresses, own_interfaces

TAG = "HPCMASS_BLOCK"
BEGAN = "HPCMASS_BLOCK_BEGAN"
TIME_S = "HPCMASS_BLOCK_TIME_S"
ENDS = "HPCMASS_BLOCK_ENDS"
STOP_S = "HPCMASS_BLOCK_STOP_S"
JOB = "HPCMASS_BLOCK_JOB"
TARGET = "HPCMASS_TARGET"
NODES = "HPCMASS_SLOT_NODES"
SHARE = "HPCMASS_SLOT_SHARE"
_HOME = str(Path(__file__).resolve().parents[2])
_OURS = "from hpcmass.workflow.worker_pool import main; main(sys.argv[1:])"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def own_times(spec: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """The spec with this block's times: the last one of a budget is shorter than the others."""
    text = env.get(TIME_S, "")
    time_s = min(int(text), spec["time_s"]) if text.isdigit() and int(text) > 0 else spec["time_s"]
    if time_s == spec["time_s"]:
        return dict(spec)
    drain_s, stop_s = min(spec["drain_s"], time_s // 4), min(spec["stop_s"], time_s // 8)
    return {**spec, "time_s": time_s, "drain_s": drain_s, "stop_s": stop_s}


def block_end(env: Mapping[str, str], time_s: int, now: float) -> float:
    """When this block ends, in epoch seconds: as Slurm says, else by its beginning and its wall time."""
    ends = env.get("SLURM_JOB_END_TIME", "")
    if ends.isdigit() and int(ends) > 0:
        return float(ends)
    began = env.get(BEGAN, "")
    return (float(began) if began.isdigit() else now) + time_s


def accelerators(env: Mapping[str, str], slots: int, gpus_per_slot: int) -> list[str]:
    """The accelerators of each slot, such as `["0", "1"]` or `["0,1", "2,3"]`; none where an item wants none.

    Taken from what Slurm gave this job on this node, since another job may have the node's first ones.
    """
    if not gpus_per_slot:
        return []
    given = next((env[name].split(",") for name in _VISIBLE if env.get(name)), None)
    if given is None:
        given = [str(number) for number in range(slots * gpus_per_slot)]
    groups = [
        given[first : first + gpus_per_slot]
        for first in range(0, len(given) - gpus_per_slot + 1, gpus_per_slot)
    ]
    return [",".join(group) for group in groups[:slots]]


def pool_command(
    spec: Mapping[str, Any], block: str, env: Mapping[str, str], *, now: float, cores: int
) -> list[str]:
    """The argument list of Parsl's worker pool on this node."""
    found = accelerators(env, spec["slots"], spec["gpus_per_slot"])
    left_s = block_end(env, spec["time_s"], now) - now
    # Cores are dealt to the slots where this node's own binding lets us see as many as they need.
    affinity = "block" if not spec["whole"] and cores >= spec["slots"] * spec["threads"] else "none"
    options = {
        "--max_workers_per_node": spec["slots"],
        "-a": ",".join(spec["addresses"]),
        "-p": 0,
        "-c": 1e-6,
        "-m": "None",
        "--poll": spec["poll_ms"],
        "--port": spec["port"],
        "--cert_dir": spec["cert_dir"],
        "--logdir": spec["logdir"],
        "--logconf": "None",
        "--block_id": block,
        "--hb_period": spec["heartbeat_s"],
        "--hb_threshold": spec["lost_after_s"],
        "--drain_period": max(1, int(left_s - spec["drain_s"])),
        "--cpu-affinity": affinity,
        "--mpi-launcher": "mpiexec",
    }
    words = [word for name, value in options.items() for word in (name, str(value))]
    # Ours where items outlive their driver. Not by its path, which would come before the standard library.
    ours = ["-c", f"import sys; sys.path[:] = [p for p in sys.path if p]; sys.path.append({_HOME!r}); {_OURS}"]
    program = ours if spec.get("outlives") else [spec["pool"]]
    return [sys.executable, *program, *words, "--available-accelerators", *found]


def pool_environment(
    spec: Mapping[str, Any], env: Mapping[str, str], tag: str, *, now: float
) -> dict[str, str]:
    """The environment of the pool and of all that it starts on this node.

    In a packed block the ranks of an item are started locally: what Slurm and its PMI left for a step would
    make an mpiexec attach to the block, and fail or hang. A whole-node item starts its ranks over the block.
    """
    clean = dict(env) if spec["whole"] else scrubbed(env)
    return {
        **clean,
        **spec["environment"],
        TAG: tag,
        TARGET: spec["target"],
        JOB: env.get("SLURM_JOB_ID", ""),
        "HPCMASS_SLURM_JOB": env.get("SLURM_JOB_ID", ""),  # for the leases of what runs here
        ENDS: str(round(block_end(env, spec["time_s"], now))),
        STOP_S: str(spec["stop_s"]),
        NODES: str(spec["nodes"] if spec["whole"] else 1),
        SHARE: f"{1 / spec['slots']:.6g}",
        **dict.fromkeys(_THREADS, str(spec["threads"])),
    }


def _usable(addresses: list[str]) -> list[str]:
    try:
        return best_addresses(addresses, own_interfaces())
    except (OSError, ValueError):  # A name, say, that the user gave.
        return addresses


def main(spec_file: str, block: str) -> int:
    """Run the pool, pass on a TERM, and end what is left of it."""
    spec = own_times(json.loads(Path(spec_file).read_text(encoding="utf-8")), os.environ)
    spec["addresses"] = _usable(spec["addresses"])
    now = time.time()
    node = os.environ.get("SLURM_NODEID", "0")
    tag = f"{spec['driver']}-{spec['label']}-{block}-{node}"
    command = pool_command(spec, block, os.environ, now=now, cores=len(os.sched_getaffinity(0)))
    environment = pool_environment(spec, os.environ, tag, now=now)
    pool = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def on_term(_number: int, _frame: FrameType | None) -> None:
        # Where Slurm signals only its own children: a second TERM within a second counts as the first.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pool.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_term)
    code = pool.wait()
    from hpcmass.workflow.watchdog import end_tagged

    end_tagged(tag, grace_s=float(spec["grace_s"]), name=TAG)
    return code if code >= 0 else 128 - code
