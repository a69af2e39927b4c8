"""The ways to start N ranks in an allocation that a probe tries, and what came of one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcmass.launch.mpi import MpiFlavour


@dataclass(frozen=True)
class Attempt:
    """One way to start ranks.

    Attributes:
        name: As a person says it, such as `srun --mpi=pmix`.
        launcher, pmi: What a site file says for it.
        prefix: The words before a rank's command.
    """

    name: str
    launcher: str
    pmi: str | None
    prefix: tuple[str, ...]


def attempts(
    *, nodes: int, ranks: int, per_node: int, threads: int, pmis: Sequence[str], mpiexec: MpiFlavour | None
) -> list[Attempt]:
    """Every way worth trying: srun under each PMI that it lists, and the mpiexec of this environment.

    Args:
        nodes: Of the allocation.
        ranks: Over all nodes.
        per_node: Ranks on each.
        threads: Cores of a rank.
        pmis: From `srun --mpi=list`; empty outside Slurm.
        mpiexec: What `find_mpiexec` found.
    """
    found = []
    known = [pmi for pmi in pmis if not (pmi.startswith("pmix_v") and "pmix" in pmis)]
    # The likeliest first: a probe that is cut short has then tried those.
    for pmi in sorted(known, key=lambda name: (name == "none", name not in ("pmix", "pmi2", "cray_shasta"))):
        words = srun_words(nodes=nodes, ranks=ranks, per_node=per_node, threads=threads, pmi=pmi)
        found.append(Attempt(f"srun --mpi={pmi}", "srun", pmi, tuple(words)))
    if mpiexec is not None:
        if mpiexec.kind == "openmpi":
            place = ["--map-by", f"ppr:{per_node}:node"] if nodes > 1 else ["--oversubscribe"]
            words = [mpiexec.path, "-n", str(ranks), *place, "--bind-to", "none"]
        else:
            place = ["-ppn", str(per_node)] if nodes > 1 else ["-launcher", "fork"]
            words = [mpiexec.path, "-n", str(ranks), *place, "-bind-to", "none"]
        found.append(Attempt(f"mpiexec ({mpiexec.kind} {mpiexec.version})", "mpiexec", None, tuple(words)))
    return found


def srun_words(*, nodes: int, ranks: int, per_node: int, threads: int, pmi: str) -> list[str]:
    """An srun of a whole allocation; it does not wait for a step that an earlier attempt left hanging."""
    return [
        "srun",
        f"--mpi={pmi}",
        f"--nodes={nodes}",
        f"--ntasks={ranks}",
        f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={threads}",
        "--export=ALL",  # as a run's srun has it, else `sbatch --export=NONE` makes a right PMI look wrong
        "--overlap",
        "--kill-on-bad-exit=1",
        "--quiet",
    ]


def verdict(records: Sequence[Mapping[str, Any]], ranks: int, code: int | None, said: str) -> tuple[bool, str]:
    """Whether N ranks found each other as one world of N, and in words what happened.

    Args:
        records: What each process left.
        ranks: How many were started.
        code: How the launcher ended; None: it was ended when its time was over.
        said: The last line of its output.
    """
    sizes = Counter(record["size"] for record in records if "size" in record)
    numbers = {record.get("rank") for record in records if record.get("size") == ranks}
    errors = [str(record["error"]) for record in records if "error" in record]
    whole = sizes == {ranks: ranks} and numbers == set(range(ranks))
    if whole and not errors and code == 0:
        return True, f"{ranks} ranks of size {ranks}"
    if sizes.get(1) and ranks > 1 and sizes[1] == len(records):
        return False, f"{sizes[1]} runs of one rank"
    if whole:
        told = errors[0] if errors else ("hung afterwards" if code is None else f"ended with {code}")
        return False, f"{ranks} ranks of size {ranks}, then: {told}"
    if code is None:
        return False, f"hung: {sum(sizes.values())} of {ranks} ranks met"
    if errors:
        return False, errors[0]
    met = f"{sum(sizes.values())} of {ranks} ranks met" if sizes else "no rank met another"
    return False, f"{met}; ended with {code}" + (f" ({said})" if said else "")


def best(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The attempt for a site file: of those that are right, srun before mpiexec, in the order tried."""
    right = [result for result in results if result["right"]]
    return min(right, key=lambda result: result["launcher"] != "srun", default=None)
