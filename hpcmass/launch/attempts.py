"""The ways to start N ranks in an allocation that a probe tries, and what came of one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hpcmass.launch.mpi import MpiFlavour


@dataclass(frozen=True)
class Attempt:
    """One way to start ranks.

    Attributes:
        name: As a person says it, such as `srun --mpi=pmix`.
        launcher, pmi: What a site file says for it.
    """

    name: str
    launcher: Literal["mpiexec", "srun"]
    pmi: str | None


def attempts(*, pmis: Sequence[str], mpiexec: MpiFlavour | None) -> list[Attempt]:
    """Every way worth trying: srun under each PMI that it lists, and the mpiexec of this environment.

    Args:
        pmis: From `srun --mpi=list`; empty outside Slurm.
        mpiexec: What `find_mpiexec` found.
    """
    known = [pmi for pmi in pmis if not (pmi.startswith("pmix_v") and "pmix" in pmis)]
    # The likeliest first: a probe that is cut short has then tried those.
    ordered = sorted(known, key=lambda name: (name == "none", name not in ("pmix", "pmi2", "cray_shasta")))
    found = [Attempt(f"srun --mpi={pmi}", "srun", pmi) for pmi in ordered]
    if mpiexec is not None:
        found.append(Attempt(f"mpiexec ({mpiexec.kind} {mpiexec.version})", "mpiexec", None))
    return found


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
        return True, f"{ranks} ranks of size {ranks}" if ranks > 1 else "1 rank, which is right under any PMI"
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


def proven(results: Sequence[Mapping[str, Any]], ranks: int) -> dict[str, Any] | None:
    """Launcher and PMI of the best attempt; None where there is none, or one rank, which proves no PMI."""
    found = best(results) if ranks > 1 else None
    return None if found is None else {"launcher": found["launcher"], "pmi": found["pmi"]}
