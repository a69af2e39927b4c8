"""Which launcher an MPI library needs, and what is said where it got another one. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hpcmass.launch.ranks import in_slurm_step

# What an MPI library or srun says when they do not fit, before any of hpcmass's own words.
_MISFIT = re.compile(
    r"PMI2?_\w+ (?:failed|returned)|PMIX?_\w+:? .*(?:failed|returned)|MPIR_Init|MPII_Init|internal_Init"
    r"|MPIR_pmi_init|OPAL ERROR|ompi_mpi_init|PMIx_Init|orte_init|prte_init"
    r"|(?:application|code) .*?was not built with.*?PMI",
    re.IGNORECASE,
)
_NO_PLUGIN = re.compile(
    r"(?:cannot find|find the specified|can't find|invalid|no) .*?mpi(?: plugin|/| type)\S*", re.I
)


_DAEMON = re.compile(r"launching\s+the per-node daemon|per-node daemon .*?failed", re.I)


def started_by(env: Mapping[str, str]) -> str:
    """What started this process, in the words that its user typed."""
    if "OMPI_COMM_WORLD_RANK" in env:
        return "Open MPI's mpiexec"
    if "PMI_RANK" in env and ("HYDI_CONTROL_FD" in env or "MPI_LOCALRANKID" in env):
        return "MPICH's mpiexec"
    if in_slurm_step(env):
        return f"srun --mpi={slurm_pmi(env)}"
    return "plain processes"


def slurm_pmi(env: Mapping[str, str]) -> str:
    """The PMI of the Slurm step around this process: what `srun --mpi=` was given."""
    said = env.get("SLURM_MPI_TYPE")
    if said:
        return said
    if "PMIX_NAMESPACE" in env:
        return "pmix"
    return "pmi2" if "PMI_RANK" in env else "none"


def right_launcher(library: str) -> str:
    """What starts ranks of an MPI library rightly, by the text in which it names itself."""
    if "Open MPI" in library:
        return "Open MPI ranks are started by `srun --mpi=pmix`, or by the mpiexec of the same Open MPI"
    if "CRAY" in library.upper():
        return "Cray MPICH ranks are started by `srun --mpi=cray_shasta`"
    if "MPICH" in library or "Intel" in library or "MVAPICH" in library:
        return "MPICH ranks are started by `srun --mpi=pmi2`, or by the mpiexec of the same MPICH"
    return "MPI ranks are started by the mpiexec of the same library, or the srun --mpi=… that it was built for"


def size_hint(library: str, env: Mapping[str, str]) -> str:
    """The hint of ranks that did not find each other."""
    target = "in a site file: the target's 'pmi' and 'launcher'; 'srun --mpi=list' shows what this Slurm has"
    return f"these were started by {started_by(env)}; {right_launcher(library)} ({target})"


def misfit(library: str, env: Mapping[str, str]) -> str | None:
    """Why an MPI library must not be initialised under this launcher, or None where nothing speaks against it.

    MPICH asked to start under PMIx that it was not built for does not say so: it aborts. What is not known for
    certain is let through, for the size check follows.

    Args:
        library: What `MPI.Get_library_version()` says.
        env: The environment of the rank.
    """
    if not library.startswith("MPICH") or "pmix" in library.lower():
        return None
    if "PMI_RANK" in env or "PMIX_RANK" not in env:
        return None
    return f"MPICH was not built for PMIx, which {started_by(env)} offers"


def launcher_hint(text: str, pmi: str | None) -> str | None:
    """What to do about a launcher's or MPI library's own complaint before the ranks began, if that is known."""
    if _NO_PLUGIN.search(text) and pmi is not None:
        return (
            f"this Slurm cannot offer pmi = {pmi!r}: 'srun --mpi=list' shows what it has; or "
            'launcher = "mpiexec" in the site file\'s target'
        )
    if daemon_failed(text):
        return "Open MPI's daemon did not come up on a node, which may pass: start it again"
    if _MISFIT.search(text):
        how = f"srun --mpi={pmi}" if pmi else "this launcher"
        return (
            f"the MPI library and {how} do not fit: Open MPI needs srun --mpi=pmix, MPICH srun --mpi=pmi2, "
            "or each the mpiexec of its own"
        )
    return None


def never_fits(text: str) -> bool:
    """Whether a launcher says for certain that it cannot start these ranks: again, it would say the same.

    An MPI library that fails while it begins may have lost a node.
    """
    return bool(_NO_PLUGIN.search(text))


def daemon_failed(text: str) -> bool:
    """Whether an mpiexec says that its daemon on another node ended at once, before there were ranks."""
    return bool(_DAEMON.search(text))
