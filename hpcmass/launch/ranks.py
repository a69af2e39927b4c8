"""Which rank am I, and of how many: read from what the launcher left in the environment. Pure.

What the environment says is a promise of the launcher, not a fact about the communicator: an MPI
library started under a wrong PMI gives N worlds of one rank each (open-mpi/ompi#13523). Whoever builds
the communicator holds its size against `promised_ranks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpcmass.errors import LaunchError

# Slurm numbers its special steps (pending, extern, batch, interactive) from here up; real steps count from 0.
_SLURM_SPECIAL_STEPS = 0xFFFFFFF0


@dataclass(frozen=True)
class RankEnv:
    """The place of this process among the ranks.

    Attributes:
        rank: 0 to `size` - 1 over all nodes.
        size: Ranks over all nodes.
        local_rank: 0 to `local_size` - 1 on this node.
        local_size: Ranks on this node; where the launcher does not say, `size` (one node).
        node: This node's number among the nodes, from 0; 0 where nothing says it.
        nodes: Nodes of the ranks; 1 where nothing says it.
        source: Whose variables were read: `hpcmass`, `openmpi`, `pmi`, `pmix`, `slurm`, `torchrun`, or
            `none` (an ordinary process: rank 0 of 1). Ranks that hpcmass started say `openmpi` or `pmi`
            where it used an mpiexec, and `hpcmass` where they are plain processes.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    source: str
    node: int = 0
    nodes: int = 1


def detect_ranks(env: Mapping[str, str]) -> RankEnv:
    """Read rank and size from an environment.

    The nearest launcher counts: variables of hpcmass itself before those of an MPI's launcher, these
    before torchrun's (which may run inside a Slurm step, one a node), and Slurm's own last, and only
    inside a step, because a batch script's environment says rank 0 of N too.

    Args:
        env: The environment, as `os.environ`.

    Raises:
        LaunchError: A variable is not a number, or the rank is not below the size.
    """
    readers: list[Callable[[Mapping[str, str]], RankEnv | None]] = [
        _hpcmass, _openmpi, _pmi, _pmix, _torchrun, _slurm,
    ]  # fmt: skip
    for reader in readers:
        found = reader(env)
        if found is not None:
            return found
    return RankEnv(0, 1, 0, 1, "none")


def promised_ranks(env: Mapping[str, str]) -> int | None:
    """How many ranks were started, by `HPCMASS_RANKS`, else by the launcher's variables, else None.

    Raises:
        LaunchError: `HPCMASS_RANKS` is not a number of 1 or more, or `detect_ranks` refused.
    """
    if "HPCMASS_RANKS" in env:
        promised = _number(env, "HPCMASS_RANKS")
        if promised < 1:
            raise LaunchError("must be 1 or more", where="HPCMASS_RANKS")
        return promised
    found = detect_ranks(env)
    return None if found.source == "none" else found.size


# What the ranks of one start have in common, and those of the next have not, by whose variables were read.
_START = {
    "hpcmass": ("HPCMASS_KEEPER", "HPCMASS_ATTEMPT"),
    "openmpi": ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"),
    "pmix": ("PMIX_NAMESPACE", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    "pmi": ("PMI_JOBID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    "torchrun": ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"),
    "slurm": ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
}


def start_id(env: Mapping[str, str]) -> str:
    """A text that all ranks of one start have, and those of the next have not; "" where nothing says it.

    MPICH's mpiexec is such a launcher that says nothing outside Slurm.

    Raises:
        LaunchError: As `detect_ranks`.
    """
    source = "hpcmass" if "HPCMASS_KEEPER" in env else detect_ranks(env).source
    return " ".join(f"{name}={env[name]}" for name in _START.get(source, ()) if env.get(name))


def _hpcmass(env: Mapping[str, str]) -> RankEnv | None:
    names = ("HPCMASS_RANK", "HPCMASS_SIZE", "HPCMASS_LOCAL_RANK", "HPCMASS_LOCAL_SIZE")
    # `launch.child` says under whose launcher it found the rank: whether there is an MPI to be had.
    return _read(env, env.get("HPCMASS_SOURCE", "hpcmass"), *names)


def _openmpi(env: Mapping[str, str]) -> RankEnv | None:
    prefix = "OMPI_COMM_WORLD_"
    return _read(env, "openmpi", *(prefix + name for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")))


def _pmi(env: Mapping[str, str]) -> RankEnv | None:
    # MPICH's Hydra; also Slurm's pmi2, which leaves the local part to SLURM_LOCALID.
    found = _read(env, "pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    if found is not None and "MPI_LOCALRANKID" not in env and "SLURM_LOCALID" in env:
        return _with_slurm_local(env, found)
    return found


def _pmix(env: Mapping[str, str]) -> RankEnv | None:
    # PMIx tells a process its rank by a variable but the size only by its own calls.
    if "PMIX_RANK" not in env:
        return None
    for size in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        if size in env:
            found = _read(env, "pmix", "PMIX_RANK", size)
            return _with_slurm_local(env, found) if found else None
    return None


def _torchrun(env: Mapping[str, str]) -> RankEnv | None:
    return _read(env, "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def in_slurm_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process; a batch script and an interactive shell are no such step."""
    step = env.get("SLURM_STEP_ID", "batch")
    return step.isdigit() and int(step) < _SLURM_SPECIAL_STEPS


def _slurm(env: Mapping[str, str]) -> RankEnv | None:
    if not in_slurm_step(env):
        return None
    size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    found = _read(env, "slurm", "SLURM_PROCID", size)
    return _with_slurm_local(env, found) if found else None


def _with_slurm_local(env: Mapping[str, str], found: RankEnv) -> RankEnv:
    """Take the rank on the node from Slurm, whose `SLURM_STEP_TASKS_PER_NODE` is text like `4(x2),1`."""
    if "SLURM_LOCALID" not in env:
        return found
    per_node: list[int] = []
    for part in env.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        count, _, times = part.partition("(x")
        if count.strip().isdigit():
            repeat = times.rstrip(") ")
            per_node += [int(count)] * (int(repeat) if repeat.isdigit() else 1)
    node = _number(env, "SLURM_NODEID") if "SLURM_NODEID" in env else 0
    local_rank = _number(env, "SLURM_LOCALID")
    # Of a heterogeneous step Slurm tells a group's part only; then all that is known is the own number.
    local_size = per_node[node] if node < len(per_node) else max(found.size, local_rank + 1)
    nodes = max(len(per_node), node + 1)
    return RankEnv(found.rank, found.size, local_rank, local_size, found.source, node, nodes)


def _read(
    env: Mapping[str, str],
    source: str,
    rank_name: str,
    size_name: str,
    local_rank_name: str = "",
    local_size_name: str = "",
) -> RankEnv | None:
    """The place by these variables, or None when rank or size is not there."""
    if rank_name not in env or size_name not in env:
        return None
    rank, size = _number(env, rank_name), _number(env, size_name)
    if rank >= size:
        raise LaunchError(f"rank {rank} of {size} ranks cannot be", where=f"{rank_name}, {size_name}")
    local_rank = _number(env, local_rank_name) if local_rank_name in env else rank
    local_size = _number(env, local_size_name) if local_size_name in env else size
    return RankEnv(rank, size, local_rank, local_size, source)


def _number(env: Mapping[str, str], name: str) -> int:
    text = env[name]
    if not text.strip().isdigit():
        raise LaunchError(f"is {text!r}, not a number", where=f"environment variable {name}")
    return int(text)


# Variables by which a device's runtime is told what it may see; Slurm sets those that fit the node.
_ROCR = "ROCR_VISIBLE_DEVICES"
_VISIBLE = ("CUDA_VISIBLE_DEVICES", _ROCR, "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


def gpu_share(
    env: Mapping[str, str], place: RankEnv, per_rank: int, *, own: bool, amd: bool = False
) -> dict[str, str]:
    """Variables that show a rank its own GPUs, out of those of the node.

    Args:
        env: The rank's environment, as Slurm left it.
        place: The rank.
        per_rank: GPUs a rank; 0 where nobody says.
        own: Whether to narrow the view. Else it stays as wide as it is, and the local rank picks.
        amd: Whether the node's GPUs are AMD's: there `ROCR_VISIBLE_DEVICES` filters first, and the other
            variables count what it left, from 0. Elsewhere Slurm may set it too, and nothing reads it.

    Returns:
        What to set; nothing where Slurm has given every rank its own already, in numbers that fit.

    Raises:
        LaunchError: The node's ranks see fewer GPUs than they are meant to have.
    """
    share: dict[str, str] = {}
    stacked = amd and bool(env.get(_ROCR, "").strip())
    for name in (_ROCR,) if stacked else _VISIBLE:
        seen = [word for word in env.get(name, "").split(",") if word.strip()]
        if not seen or per_rank < 1:
            continue
        needed = place.local_size * per_rank
        if len(seen) >= needed:
            if own:
                first = place.local_rank * per_rank
                share |= {name: ",".join(seen[first : first + per_rank]), "HPCMASS_OWN_GPUS": str(per_rank)}
        elif env.get("HPCMASS_LAUNCHER") != "srun":  # under srun each may have been given its own
            raise LaunchError(
                f"{len(seen)} GPUs are seen by the {place.local_size} ranks of this node, which need {needed}",
                where=name,
                hint="ask sbatch for GPUs a node (--gres=gpu:N), not a task: an mpiexec has one task a node",
            )
        elif len(seen) == per_rank:
            share["HPCMASS_OWN_GPUS"] = str(per_rank)
    if stacked:
        # Another value than ROCR's own, where nothing is narrowed, is somebody's choice among what is left.
        others = [name for name in _VISIBLE if name != _ROCR and env.get(name, "").strip()]
        left = _from_zero(share.get(_ROCR, env[_ROCR]))
        share |= {name: left for name in others if _ROCR in share or env[name] == env[_ROCR]}
    return share


def _from_zero(devices: str) -> str:
    return ",".join(str(number) for number in range(len(devices.split(","))))


def describe(
    env: Mapping[str, str], place: RankEnv, *, host: str, pid: int, cpus: int, at: float
) -> dict[str, object]:
    """The record of where a rank runs, `RUN/ranks/attempt-A-rank-R.json`.

    Args:
        env: The rank's environment.
        place: The rank.
        host: The machine's name.
        pid: The process.
        cpus: CPUs that the process may use.
        at: The time, in seconds since the epoch.
    """
    threads = env.get("OMP_NUM_THREADS", "")
    visible = env.get("CUDA_VISIBLE_DEVICES", env.get(_ROCR))
    if env.get(_ROCR) and visible == _from_zero(env[_ROCR]):
        visible = env[_ROCR]  # of numbers that count what ROCR left, the node's own
    step = env.get("SLURM_STEP_ID") if in_slurm_step(env) else env.get("HPCMASS_SLURM_STEP")
    job = env.get("SLURM_JOB_ID", env.get("HPCMASS_SLURM_JOB_ID"))
    return {
        "format": 1,
        "rank": place.rank,
        "local_rank": place.local_rank,
        "size": place.size,
        "host": host,
        "node": env.get("SLURMD_NODENAME", host) if job else host,
        "pid": pid,
        "cuda_visible_devices": visible,
        "cpus": int(threads) if threads.isdigit() else cpus,
        "slurm_job_id": job,
        "slurm_step": step or ("batch" if job else None),
        "launcher": env.get("HPCMASS_LAUNCHER", place.source),
        "time": at,
    }
