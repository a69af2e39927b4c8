"""Which variables a launcher may inherit. Pure.

What a launcher around us (a Slurm step, an mpiexec, torchrun) left for *its* ranks is wrong for ours: an
mpiexec started with it attaches to the outer job and fails, or hangs. A start over the nodes of an
allocation needs the allocation's own variables, and nothing of the step or the options that sbatch had.
What hpcmass itself told a rank of an outer run (its folder, its number of threads) is that run's alone.
"""

from __future__ import annotations

from collections.abc import Mapping

_LAUNCHER_PREFIXES = ("SLURM_", "PMI", "OMPI_", "PRTE_", "HYDI_", "TORCHELASTIC_")
_LAUNCHER_NAMES = {
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "HPCMASS_ATTEMPT",
    "HPCMASS_RANK",
    "HPCMASS_RANKS",
    "HPCMASS_SIZE",
    "HPCMASS_LOCAL_RANK",
    "HPCMASS_LOCAL_SIZE",
    "HPCMASS_KEEPER",
    "HPCMASS_LAUNCHER",
    "HPCMASS_OWN_GPUS",
    "HPCMASS_RUN_DIR",
    "HPCMASS_SOURCE",
    "HPCMASS_STOP_GRACE_S",
    "HPCMASS_TTY",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "NODE_RANK",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "MASTER_ADDR",
    "MASTER_PORT",
}
_TUNING_PREFIXES = ("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_")

# What says which job and nodes these are. Everything else of SLURM_* is an option of sbatch, which srun
# would read as its own (SLURM_NTASKS, SLURM_CPU_BIND, SLURM_MEM_PER_CPU beside SLURM_MEM_PER_NODE is even
# fatal, SLURM_EXPORT_ENV=NONE empties the ranks' environment), or belongs to a step.
_OF_ALLOCATION = {
    "SLURM_CLUSTER_NAME",
    "SLURM_CONF",
    "SLURM_HET_SIZE",
    "SLURM_HINT",
    "SLURM_JOBID",
    "SLURM_NETWORK",
    "SLURM_NNODES",
    "SLURM_NODELIST",
    "SLURM_RESTART_COUNT",
    "SLURM_SUBMIT_DIR",
    "SLURM_SUBMIT_HOST",
    "SLURM_TASKS_PER_NODE",
    "SLURM_THREADS_PER_CORE",
    "SLURM_TMPDIR",
    "SLURM_WORKING_CLUSTER",
}
_OF_ALLOCATION_PREFIXES = ("SLURM_JOB_", "SLURM_ARRAY_", "SLURM_NODELIST_HET_", "SLURM_TASKS_PER_NODE_HET_")
THREADS = "OMP_NUM_THREADS"
OUR_THREADS = "HPCMASS_OMP"  # what hpcmass itself set THREADS to: while they agree, no user chose it
# How Slurm's commands find their controller; belongs to the machine, not to a job.
_OF_MACHINE = {"SLURM_CONF"}


def scrubbed(env: Mapping[str, str], *, in_allocation: bool = False) -> dict[str, str]:
    """The environment without what an outer launcher left for its ranks; a user's MPI tuning stays.

    Args:
        env: The environment to start from.
        in_allocation: Keep what says which Slurm job and nodes these are: for srun and for an mpiexec over
            several nodes. Without it the ranks know no Slurm, but `HPCMASS_SLURM_JOB_ID` and
            `HPCMASS_SLURM_STEP` say where they ran.
    """
    inside_mpi = "OMPI_COMM_WORLD_RANK" in env or "PMIX_RANK" in env
    names = _OF_ALLOCATION if in_allocation else _OF_MACHINE
    prefixes = _OF_ALLOCATION_PREFIXES if in_allocation else ()
    clean = {
        name: value
        for name, value in env.items()
        if name in names or name.startswith(prefixes) or not _from_launcher(name, inside_mpi)
    }
    for name, source in (("HPCMASS_SLURM_JOB_ID", "SLURM_JOB_ID"), ("HPCMASS_SLURM_STEP", "SLURM_STEP_ID")):
        if source in env:
            clean[name] = env[source]
    if clean.pop(OUR_THREADS, None) == clean.get(THREADS):
        clean.pop(THREADS, None)
    return clean


def outer_threads(env: Mapping[str, str]) -> int | None:
    """The threads that an outer start gave this process, which are then its cores; None where none did."""
    ours = env.get(OUR_THREADS, "")
    return int(ours) if ours.isdigit() and int(ours) > 0 and ours == env.get(THREADS) else None


def _from_launcher(name: str, inside_mpi: bool) -> bool:
    # Inside a job of Open MPI, its launcher's own settings cannot be told from the user's.
    if name.startswith(_TUNING_PREFIXES):
        return inside_mpi
    return name in _LAUNCHER_NAMES or name.startswith(_LAUNCHER_PREFIXES)
