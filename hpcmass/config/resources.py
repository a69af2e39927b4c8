"""What a run asks for (`Resources`) and what a site offers under one name (`Target`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hpcmass.config.duration import parse_duration


def _duration(text: str) -> str:
    parse_duration(text)
    return text


def _one_line(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError(f"{text!r} must be one line of printable characters")
    return text


Duration = Annotated[str, AfterValidator(_duration)]
Word = Annotated[str, AfterValidator(_one_line)]


class Resources(BaseModel):
    """`[resources]` of a job file.

    Attributes:
        ranks: Processes of the run, over all nodes.
        nodes: Nodes; None takes as few as the target's cores and GPUs allow.
        threads_per_rank: CPU threads of one rank; None shares the node's cores out evenly.
        gpus_per_rank: GPUs of one rank; None takes 1 on a target that has GPUs, else 0.
        memory_gb: Memory a node in GB (10^9 bytes); None takes what the target gives by itself.
        time: Wall time of one hop such as `90m` or `1-12:00:00`; a run may take many. None: the target's.
        target: Name of a target of the site; None takes the site's default; `auto` has `hpcmass submit` choose.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ranks: int = Field(1, ge=1)
    nodes: int | None = Field(None, ge=1)
    threads_per_rank: int | None = Field(None, ge=1)
    gpus_per_rank: int | None = Field(None, ge=0)
    memory_gb: float | None = Field(None, gt=0)
    time: Duration | None = None
    target: str | None = None


_OF_ANY_KIND = {
    "kind", "cores", "memory_gb", "gpus", "launcher",
    "container", "container_binds", "container_options", "gpu_vendor",
    "scratch", "scratch_gb",
}  # fmt: skip


class Target(BaseModel):
    """`[targets.NAME]` of a site file: one kind of node and how ranks are started on it.

    Attributes:
        kind: `local` (this machine, no scheduler) or `slurm`.
        cores: CPU cores a node that hpcmass may use; None: what the operating system allows.
        memory_gb: Memory a node in GB (10^9 bytes); None: not limited.
        gpus: GPUs a node.
        launcher: How N ranks are started: `mpiexec`, `srun`, `spawn` (plain processes, no MPI), or `auto`.
        pmi: What `srun --mpi=` is given: `pmix`, `pmi2`, `cray_shasta`; None: MPI ranks go by mpiexec.
        partition: `--partition`; also `account`, `qos`, `constraint`, `reservation`.
        gpu_type: The type in `--gres=gpu:TYPE:N`, where the site asks for it.
        gres: Other generic resources a node, such as `{ fpga = 1 }`.
        max_nodes: Nodes that one job may have.
        max_time: The longest wall time of one job.
        default_time: Wall time of a job that names none.
        exclusive: Whether jobs get whole nodes.
        requeue: Whether the site allows a job to be requeued; else the next hop is a job of its own.
        preemptible: Whether jobs may be ended at any time in favour of others.
        block_time: Wall time of a pilot job (a block) in which sweeps and workflows run; None: `default_time`,
            else `max_time`, else an hour.
        block_nodes: Nodes a pilot job.
        max_blocks: Pilot jobs at once; None: as many as `max_nodes` gives, else 1.
        price_per_node_hour: What a node costs an hour, in the site's own unit.
        modules: Loaded by `module load` at the start of a job, in this order.
        setup: Shell lines at the start of a job, as they stand: the site file's author writes them.
        env: Variables of a job.
        container: An Apptainer image in which every rank runs; may name variables. A path that is not absolute
            is beside the site file.
        container_binds: What of the host is seen inside beside the run's own folders, such as the host's MPI:
            `FOLDER` or `FOLDER:INSIDE[:ro]`; may name variables.
        container_options: Further words of `apptainer exec`, such as `--no-privs`.
        gpu_vendor: `nvidia` or `amd`: whose driver a container gets (`--nv`, `--rocm`).
        scratch: A node-local folder, which may name variables such as `$SLURM_JOB_ID`; where it stays between
            jobs, so do the shards that `data.stage` brings there.
        scratch_gb: What staged shards may take of it, in GB (10^9 bytes); None: what it has.
        environment: An archive of `hpcmass env pack`, which each job unpacks once a node to `scratch`, and
            whose Python it runs; a path relative to the site file.
        sbatch: Further options of sbatch by name, without the dashes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["local", "slurm"] = "local"
    cores: int | None = Field(None, ge=1)
    memory_gb: float | None = Field(None, gt=0)
    gpus: int = Field(0, ge=0)
    launcher: Literal["auto", "mpiexec", "srun", "spawn"] = "auto"
    pmi: Word | None = None
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    reservation: Word | None = None
    gpu_type: Word | None = None
    gres: dict[str, int] = Field(default_factory=dict)
    max_nodes: int | None = Field(None, ge=1)
    max_time: Duration | None = None
    default_time: Duration | None = None
    exclusive: bool = False
    requeue: bool = True
    preemptible: bool = False
    block_time: Duration | None = None
    block_nodes: int = Field(1, ge=1)
    max_blocks: int | None = Field(None, ge=1)
    price_per_node_hour: float | None = Field(None, ge=0)
    modules: list[Word] = Field(default_factory=list)
    setup: list[Word] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    container: Word | None = None
    container_binds: list[Word] = Field(default_factory=list)
    container_options: list[Word] = Field(default_factory=list)
    gpu_vendor: Literal["nvidia", "amd"] | None = None
    scratch: Word | None = None
    scratch_gb: float | None = Field(None, gt=0)
    environment: Word | None = None
    sbatch: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_kind(self) -> Target:
        given = sorted(name for name in self.model_fields_set if not self.knows(name))
        if given:
            raise ValueError(f'{", ".join(given)}: only for kind = "slurm"')
        if self.kind == "slurm" and self.cores is None:
            raise ValueError("'cores' (CPU cores a node) is missing: hpcmass places ranks by it")
        return self

    def knows(self, key: str) -> bool:
        """Whether a key means something for a target of this kind."""
        return self.kind == "slurm" or key in _OF_ANY_KIND
