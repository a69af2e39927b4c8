"""The job file: what to train. One frozen, keyword-only model a table; nothing of a site stands here."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator

from hpcmass.config.resources import Resources
from hpcmass.config.sweep import SweepTable
from hpcmass.config.table import Table


class BlockTable(Table):
    """`[data.block]`: how the order "block" cuts and mixes."""

    kib: int = Field(512, ge=1, description="KiB of a block in the widest field, at least: one read")
    window: int = Field(16, ge=1, description="blocks whose samples are shuffled together")
    lanes: int = Field(16, ge=1, description="windows that a global batch draws from")


# `as` is a word of Python's, so it cannot be named in a class.
_KIND: dict[str, Any] = {
    "as": (Literal["pad", "pack"], Field("pad", description="a row a sample, or several in a row"))
}
_As: Any = create_model("_As", __base__=Table, **_KIND)


class RaggedTable(_As):  # type: ignore[misc]
    """`[data.ragged.NAME]`: what becomes of a field whose samples differ in length, in a batch."""

    length: int | None = Field(None, ge=1, description="of a row; default: the batch's longest sample")
    longer: Literal["refuse", "cut"] = Field("refuse", description="samples above `length`")
    to_multiple: int = Field(1, ge=1, description="without `length`: the row is a multiple of this")
    fill: float | None = Field(None, description="where no value is; default: 0, integer targets -100")

    @property
    def kind(self) -> Literal["pad", "pack"]:
        """`as` of the table."""
        kind: Literal["pad", "pack"] = getattr(self, "as")
        return kind

    @model_validator(mode="after")
    def _of_length(self) -> RaggedTable:
        if self.length is None:
            if self.kind == "pack":
                raise ValueError('as = "pack" needs the length of a row')
            if self.longer != "refuse":
                raise ValueError('longer = "cut" needs a length')
        elif self.to_multiple != 1:
            raise ValueError("give either a length or to_multiple")
        return self


class DataTable(Table):
    """`[data]`: dataset folders, relative to the project folder.

    `train` may name several datasets, which are then read as one (train + valid, say), or in the proportions
    of `mix`.
    """

    train: str | list[str] | None = None
    valid: str | list[str] | None = None
    test: str | list[str] | None = None
    order: Literal["global", "sequential", "block", "stratified"] = "global"
    block: BlockTable = BlockTable()
    stratify: str | None = Field(None, description="field with the classes; default: the only integer target")
    mix: dict[str, float] | None = Field(None, description="weights of the datasets of `train`, by name")
    epoch_samples: int | None = Field(None, ge=1, description="samples of an epoch of a mixture")
    verify: Literal["auto", "always", "never"] = Field(
        "auto", description="check the shards' checksums at a run's start; auto: up to 1 GiB"
    )
    seed: int = Field(0, ge=0, description="seed of the sample order")
    read: Literal["auto", "map", "pread", "block", "direct", "memory"] = Field(
        "auto", description="how samples are read; auto: by file system and memory of each node"
    )
    stage: bool = Field(
        False, description="copy the shards to each node's own disk first (the target's `scratch`)"
    )
    ragged: dict[str, RaggedTable] | None = Field(
        None, description="fields whose samples differ in length, by name: padded or packed"
    )
    inputs: list[str] | None = Field(None, description="fields used as inputs; default: the manifest's role")
    targets: list[str] | None = Field(None, description="fields used as targets; default: the manifest's role")

    @field_validator("block")
    @classmethod
    def _of_block(cls, value: BlockTable, info: ValidationInfo) -> BlockTable:
        if value != BlockTable() and info.data.get("order", "block") != "block":
            raise ValueError(f'is for order = "block", and the order is "{info.data["order"]}"')
        return value

    @field_validator("stratify")
    @classmethod
    def _of_stratified(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("order", "stratified") != "stratified":
            raise ValueError(f'is for order = "stratified", and the order is "{info.data["order"]}"')
        return value

    @field_validator("mix", mode="before")
    @classmethod
    def _whole_weights(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: float(w) if isinstance(w, int) and not isinstance(w, bool) else w for name, w in value.items()
        }

    @field_validator("mix")
    @classmethod
    def _of_several(cls, value: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        if value is None or "train" not in info.data:
            return value
        train = info.data["train"]
        names = train if isinstance(train, list) else [train]
        if not isinstance(train, list) or sorted(value) != sorted(names):
            raise ValueError(f"gives weights of {sorted(value)}; name each dataset of data.train once: {names}")
        if min(value.values()) <= 0:
            raise ValueError("every weight must be above 0; leave a dataset out of data.train instead")
        if info.data.get("order") == "stratified":
            raise ValueError('a mixture takes order = "global", "sequential" or "block", not "stratified"')
        return value

    @field_validator("epoch_samples")
    @classmethod
    def _of_mix(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("mix", ()) is None:
            raise ValueError("is for data.mix: without it an epoch is each sample once")
        return value


class ScheduleTable(Table):
    """`[train.schedule]`: a scheduler of torch.optim.lr_scheduler by name, stepped once an optimiser step."""

    name: str | None = None
    warmup_steps: int = Field(0, ge=0, description="linear warm-up, in optimiser steps")
    args: dict[str, Any] = Field(default_factory=dict)


class EarlyStopTable(Table):
    """`[train.early_stop]`: stop when a validation metric has not improved for `patience` evaluations."""

    metric: str = "loss"
    direction: Literal["minimize", "maximize"] = "minimize"
    patience: int = Field(3, ge=1, description="evaluations without improvement")
    min_delta: float = Field(0.0, ge=0.0)


# What a reproducible run cannot have, by key: the value that it may have, and why.
_BREAKS: dict[str, tuple[Any, str]] = {
    "mode": ("data-parallel", "an average or a vote over shards is another model for each number of shards"),
    "accumulation": (1, "it cuts each rank's share; set train.micro_batches, which cuts the global batch"),
    "shares": ("equal", "speeds differ from run to run"),
    "compression": ("none", "it rounds each rank's sum, and other ranks have other sums"),
    "compile": (False, "it makes other code for the shapes that a rank happens to see first"),
}


class TrainTable(Table):
    """`[train]`: how one model is trained."""

    mode: Literal["data-parallel", "per-shard"] = "data-parallel"
    backend: Literal["auto", "horovod", "mpi", "torch", "single"] = "auto"
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1, description="optimiser steps at most, over all epochs")
    global_batch: int = Field(64, ge=1, description="samples an optimiser step over all ranks")
    accumulation: int = Field(1, ge=1, description="micro-batches a rank cuts its share into")
    shares: Literal["equal", "measured"] = Field(
        "equal", description="of a global batch: measured gives fast ranks more samples than slow ones"
    )
    last_batch: Literal["keep", "drop", "pad"] = Field(
        "keep", description="an epoch's last batch, where samples are left over: smaller, left out, or padded"
    )
    drop_last: bool = Field(False, description='true is last_batch = "drop"')
    seed: int = Field(0, ge=0, description="seed of initial weights and of dropout")
    optimizer: str = Field("AdamW", description="a class of torch.optim")
    lr: float = Field(1e-3, gt=0)
    optimizer_args: dict[str, Any] = Field(default_factory=dict)
    schedule: ScheduleTable = ScheduleTable()
    clip_norm: float | None = Field(None, gt=0, description="limit of the gradient's global L2 norm")
    max_loss: float | None = Field(
        None, gt=0, description="a training loss above it ends the run; default: 1000 times the first one"
    )
    lr_batch: int | None = Field(None, ge=1, description="global batch that `lr` was chosen for")
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="how the learning rate grows with global_batch / lr_batch"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="what the model computes in; fp16 with loss scaling"
    )
    compression: Literal["none", "fp16", "bf16"] = Field(
        "none", description="type in which gradients are sent between ranks"
    )
    compile: bool = Field(False, description="torch.compile the model for training")
    reproducible: bool = Field(
        False, description="weights are the same bit for bit on any number of ranks of one CPU model"
    )
    micro_batches: int | None = Field(
        None, ge=1, validate_default=True,
        description="reproducible: fixed parts of a global batch, of which ranks take whole ones; "
        "default: 12 from 96 samples on, else 4",
    )  # fmt: skip
    keep_memory: bool = Field(
        True, description="memory that is freed on the CPU stays with the process: faster, for more memory"
    )
    profile_steps: int = Field(0, ge=0, description="steps to trace with torch's profiler; 0: none")
    fit: Literal["auto", "whole", "stream"] = Field("auto", description="estimators: fit, or partial_fit")
    evaluate_every_epochs: int = Field(1, ge=1)
    checkpoint_every_steps: int | None = Field(None, ge=1, description="default: at every epoch's end")
    checkpoint_background: bool = Field(
        True, description="copy the state, and write it while training goes on; takes memory for the copy"
    )
    hang_s: float = Field(
        600.0, ge=0, description="a run of several ranks that makes no step for so long ends; 0: never"
    )
    checkpoint_shard_mib: int = Field(
        1024, ge=0, description="a state above this is written in parts, by several ranks"
    )
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that stay")
    keep_best: bool = Field(
        False,
        description="the checkpoint of the best early_stop.metric (else of the validation loss) stays too",
    )
    init_from: str | None = Field(
        None, description="weights to begin with: a file, a model's folder, or a version of the catalogue"
    )
    init_strict: bool = Field(
        True, description="they must fit the model tensor for tensor; false: those that fit are taken"
    )
    log_every_steps: int = Field(10, ge=1)
    early_stop: EarlyStopTable | None = None

    @field_validator("drop_last")
    @classmethod
    def _one_way(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("last_batch") == "pad":
            raise ValueError('is last_batch = "drop", and last_batch is "pad": keep one of them')
        return value

    @field_validator("reproducible")
    @classmethod
    def _can_be_kept(cls, value: bool, info: ValidationInfo) -> bool:
        if value:
            for key, (free, why) in _BREAKS.items():
                if info.data.get(key, free) != free:
                    raise ValueError(f"cannot be kept with train.{key} = {info.data[key]!r}: {why}")
        return value

    @field_validator("micro_batches")
    @classmethod
    def _of_reproducible(cls, value: int | None, info: ValidationInfo) -> int | None:
        batch = info.data.get("global_batch")
        if not info.data.get("reproducible"):
            if value is not None and "reproducible" in info.data:
                raise ValueError("is for train.reproducible = true; else use train.accumulation")
            return value
        if batch is None:
            return value
        if value is not None and value > batch:
            raise ValueError(f"is {value}, and train.global_batch has {batch} samples only")
        return value or (12 if batch >= 96 else min(4, batch))

    @property
    def last(self) -> str:
        """What becomes of an epoch's last batch, where samples are left over: `keep`, `drop` or `pad`."""
        return "drop" if self.drop_last else self.last_batch

    @field_validator("lr_scaling")
    @classmethod
    def _of_a_batch(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and info.data.get("lr_batch", 1) is None:
            raise ValueError(f'"{value}" needs train.lr_batch, the global batch that train.lr was chosen for')
        return value

    @property
    def lr_factor(self) -> float:
        """What `lr` is multiplied with: `global_batch` / `lr_batch`, its square root, or 1."""
        if self.lr_scaling == "none" or self.lr_batch is None:
            return 1.0
        ratio = self.global_batch / self.lr_batch
        return ratio if self.lr_scaling == "linear" else math.sqrt(ratio)

    @property
    def scaled_lr(self) -> float:
        """The learning rate that the optimizer begins with."""
        return self.lr * self.lr_factor


class PerShardTable(Table):
    """`[per_shard]`: one model a group of shards, combined."""

    groups: int = Field(2, ge=2, description="parts that are trained; shards are dealt to them in turn")
    combine: list[Literal["average", "vote", "stack", "merge"]] = Field(["vote"])
    compare: bool = Field(True, description="train the data-parallel model too and put it in the report")

    @field_validator("combine")
    @classmethod
    def _some(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("name at least one of average, vote, stack, merge")
        return value


class Job(Table):
    """A whole job file.

    Attributes:
        name: Name of the run (and of the study); letters, digits, `.`, `_`, `-`.
        recipe: The recipe's file, relative to the job file.
        command: A script of the user's own instead of a recipe; `{name}` stands for a value of `params`.
        params: Handed to `build_model`; free keys with TOML values.
    """

    name: str
    recipe: str | None = None
    command: str | list[str] | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    data: DataTable = DataTable()
    train: TrainTable = TrainTable()
    per_shard: PerShardTable | None = None
    sweep: SweepTable | None = None
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _whole(self) -> Job:
        if (self.recipe is None) == (self.command is None):
            raise ValueError("give either 'recipe' or 'command'")
        if self.recipe is not None and self.data.train is None:
            raise ValueError("'data.train' is missing: a recipe needs a dataset to train on")
        if self.train.keep_best and self.recipe is not None and self.data.valid is None:
            raise ValueError("train.keep_best needs data.valid: without validation no checkpoint is the best")
        if self.train.reproducible and self.recipe is None:
            raise ValueError("train.reproducible is for recipes: nothing is known of what 'command' computes")
        if self.train.mode == "per-shard" and self.per_shard is None:
            raise ValueError('train.mode = "per-shard" needs a [per_shard] table')
        if self.train.mode == "per-shard" and self.data.mix is not None:
            raise ValueError("data.mix cannot be kept where each model has shards of its own (per-shard)")
        pruner = None if self.sweep is None else self.sweep.pruner
        if pruner in ("hyperband", "halving") and self.evaluations is None:
            raise ValueError(
                f'sweep.pruner = "{pruner}" needs sweep.max_evaluations: the reports of a whole trial'
            )
        return self

    @property
    def evaluations(self) -> int | None:
        """Evaluations of a whole trial, where that is known beforehand."""
        if self.sweep is not None and self.sweep.max_evaluations is not None:
            return self.sweep.max_evaluations
        return None if self.command is not None else -(-self.train.epochs // self.train.evaluate_every_epochs)
