"""What a run asks for (`Resources`) and what a site offers under one name (`Target`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Resources(BaseModel):
    """`[resources]` of a job file.

    Attributes:
        ranks: Processes of the run, over all nodes.
        threads_per_rank: CPU threads of one rank; None shares the node's cores out evenly.
        target: Name of a target of the site; None takes the site's default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ranks: int = Field(1, ge=1)
    threads_per_rank: int | None = Field(None, ge=1)
    target: str | None = None


class Target(BaseModel):
    """`[targets.NAME]` of a site file: one kind of node and how ranks are started on it.

    Attributes:
        kind: `local` (this machine, no scheduler).
        cores: CPU cores a node that hpcmass may use; None: what the operating system allows.
        memory_gb: Memory a node in GB (10^9 bytes); None: not limited.
        gpus: GPUs a node.
        launcher: How N ranks are started: `mpiexec`, or `spawn` (plain processes, no MPI), or `auto`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["local"] = "local"
    cores: int | None = Field(None, ge=1)
    memory_gb: float | None = Field(None, gt=0)
    gpus: int = Field(0, ge=0)
    launcher: Literal["auto", "mpiexec", "spawn"] = "auto"
