"""Make an `Order` for a data set: the choices that its kind leaves open are made here, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.blocks import BLOCK_BYTES, LANES, WINDOW_BLOCKS, BlockOrder, block_samples
from hpcmass.data.feistel import MAX_N
from hpcmass.data.order import KINDS, Order, PlainOrder
from hpcmass.data.strata import MixedOrder, StratifiedOrder
from hpcmass.errors import ConfigError, CorruptError
from hpcmass.files import storage_errors

if TYPE_CHECKING:
    from hpcmass.data.reader import Dataset

ALL_KINDS = (*KINDS, "block", "stratified")

# Of the table that every rank keeps: 4 bytes a sample.
STRATIFIED_LIMIT = 1 << 28


def make_order(
    kind: str,
    dataset: Dataset,
    seed: int = 0,
    *,
    batch: int = 1,
    block_bytes: int = BLOCK_BYTES,
    window: int = WINDOW_BLOCKS,
    lanes: int = LANES,
    field: str | None = None,
) -> Order:
    """The order of one data set.

    Args:
        kind: `sequential`, `global`, `block` or `stratified`.
        dataset: What is read.
        seed: Seed of the order.
        batch: Samples of a global batch: `block` and `stratified` depend on it.
        block_bytes: `block`: bytes of a block's rows in the widest field, at least.
        window: `block`: blocks a window.
        lanes: `block`: windows that a batch draws from.
        field: `stratified`: the field with the classes; default: the only integer target.

    Raises:
        ValueError: An unknown kind.
        ConfigError: The data set does not fit the kind; the message names the key of a job.
    """
    if kind not in ALL_KINDS:
        raise ValueError(f"unknown order {kind!r}: choose from {', '.join(ALL_KINDS)}")
    if kind == "stratified":
        name = _class_field(dataset, field)
        if len(dataset) > STRATIFIED_LIMIT:
            raise ConfigError(
                f"a stratified order keeps 4 bytes a sample on every rank: {len(dataset)} samples are "
                f"{len(dataset) * 4 / 1e9:.1f} GB, and {STRATIFIED_LIMIT * 4 / 1e9:.1f} GB the limit",
                where="data.order", hint='use "global": batches drawn at random are near the proportions',
            )  # fmt: skip
        return StratifiedOrder(read_labels(dataset, name), seed, batch=batch, field=name)
    block_bytes = _block_bytes(dataset, block_bytes)
    return _simple(kind, len(dataset), _row_bytes(dataset), seed, None, batch, block_bytes, window, lanes)


def make_mix(
    kind: str,
    dataset: Dataset,
    parts: Mapping[str, int],
    weights: Mapping[str, float],
    seed: int = 0,
    *,
    batch: int = 1,
    epoch_samples: int | None = None,
    block_bytes: int = BLOCK_BYTES,
    window: int = WINDOW_BLOCKS,
) -> MixedOrder:
    """The order of several data sets that are read in fixed proportions.

    Args:
        kind: The order of each: `sequential`, `global` or `block`.
        dataset: All of them, one after the other (`concat`).
        parts: Name and samples of each, in that order.
        weights: How much of each by name, above 0; only their proportion counts.
        seed: Seed of the order.
        batch: Samples of a global batch.
        epoch_samples: Samples of an epoch; default: until the first data set has been gone through once.
        block_bytes: As of `make_order`.
        window: `block`: windows are this many times `LANES` blocks, as a mixture has no lanes.

    Raises:
        ConfigError: The weights do not fit the data sets, or the kind cannot be mixed.
    """
    if kind not in ALL_KINDS or kind == "stratified":
        raise ConfigError(
            f"data sets in order {kind!r} cannot be mixed", where="data.order",
            hint=f"use one of {', '.join(one for one in ALL_KINDS if one != 'stratified')}",
        )  # fmt: skip
    if set(weights) != set(parts) or any(weight <= 0 for weight in weights.values()):
        raise ConfigError(
            f"gives weights of {', '.join(weights)}, but the data sets are {', '.join(parts)}",
            where="data.mix", hint="name each data set of data.train once, with a weight above 0",
        )  # fmt: skip
    if not all(parts.values()):
        raise ConfigError("a data set that is mixed is empty", where="data.train")
    quotas = mix_quotas([weights[name] for name in parts], list(parts.values()), epoch_samples)
    for name, quota in zip(parts, quotas, strict=True):
        if not quota:
            raise ConfigError(
                f"an epoch of {sum(quotas)} samples has none of {name!r}", where="data.mix",
                hint="give it a larger weight, or set data.epoch_samples",
            )  # fmt: skip
    row_bytes = _row_bytes(dataset)
    block_bytes = _block_bytes(dataset, block_bytes)
    children = [
        _simple(kind, n, row_bytes, seed, f"{seed}/mix/{number}", batch, block_bytes, window * LANES, 1)
        for number, n in enumerate(parts.values())
    ]
    try:
        return MixedOrder(children, list(parts), quotas, seed, batch=batch)
    except ValueError as error:
        raise ConfigError(str(error), where="data.epoch_samples", hint="make an epoch shorter") from None


def mix_quotas(weights: Sequence[float], sizes: Sequence[int], epoch_samples: int | None = None) -> list[int]:
    """Samples an epoch of each data set: in proportion to the weights, the largest remainders rounded up.

    Args:
        weights: Above 0, taken as the decimal numbers that they print as.
        sizes: Samples of each.
        epoch_samples: Their sum; default: as many as there are until the first data set is used up.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [one / sum(exact) for one in exact]
    total = epoch_samples
    if total is None:
        total = int(min(size / share for size, share in zip(sizes, shares, strict=True)))
    quotas = [int(total * share) for share in shares]
    missing = total - sum(quotas)
    by_rest = sorted(range(len(shares)), key=lambda i: (-(total * shares[i] - quotas[i]), i))
    for i in by_rest[:missing]:
        quotas[i] += 1
    return quotas


def read_labels(dataset: Dataset, field: str) -> npt.NDArray[Any]:
    """A scalar field of all samples, shape (n,), read at the byte offsets of the manifest.

    Raises:
        CorruptError: A shard is too short.
        StorageError: A shard cannot be read.
    """
    if any(field in shard.chunks for shard in dataset.manifest.shards):
        return dataset.whole(field)
    kind = dataset.fields[field].numpy_dtype
    out = np.empty(len(dataset), kind)
    at = 0
    for folder, shard in zip(dataset.folders, dataset.manifest.shards, strict=True):
        path = folder / shard.file
        with storage_errors(path, "read the labels"), open(path, "rb") as file:
            file.seek(shard.offsets[field])
            found = np.fromfile(file, kind, shard.samples)
        if len(found) != shard.samples:
            raise CorruptError(f"ends within the field {field!r}", where=path)
        out[at : at + len(found)] = found
        at += len(found)
    return out


def _simple(
    kind: str,
    n: int,
    row_bytes: int,
    seed: int,
    key: str | None,
    batch: int,
    block_bytes: int,
    window: int,
    lanes: int,
) -> Order:
    if n > MAX_N:
        raise ConfigError(f"{n} samples are more than an order can count", where="data.train")
    if kind == "block":
        block = block_samples(n, row_bytes, block_bytes)
        return BlockOrder(n, seed, batch=batch, block=block, window=window, lanes=lanes, key=key)
    return PlainOrder(kind, n, seed, key=key)


def _row_bytes(dataset: Dataset) -> int:
    """Bytes of a sample in its widest field: what one read of contiguous rows moves a sample."""
    return max(dataset.mean_bytes(name) for name in dataset.stored)


def _block_bytes(dataset: Dataset, asked: int) -> int:
    """Bytes of a block: what was asked for, and four chunks where several samples share a compressed one.

    A chunk at the edge of two blocks is decoded for each of them.
    """
    widest = dataset.stored[max(dataset.stored, key=dataset.mean_bytes)]
    chunks = [shard.chunks[widest.name] for shard in dataset.manifest.shards if widest.name in shard.chunks]
    samples = max((one.samples for one in chunks), default=1)
    return asked if samples == 1 else max(asked, 4 * samples * widest.row_bytes)


def _class_field(dataset: Dataset, field: str | None) -> str:
    """The field whose values are the classes.

    Raises:
        ConfigError: There is none, or not one only.
    """
    whole = [name for name, one in dataset.fixed.items() if one.numpy_dtype.kind in "biu" and not one.shape]
    if field is not None:
        if field in whole:
            return field
        what = (
            "is no field of the data set"
            if field not in dataset.fields
            else "is no single whole number a sample"
        )
        raise ConfigError(
            f"{field!r} {what}", where="data.stratify", hint=f"fields that are: {', '.join(whole) or 'none'}"
        )
    targets = [name for name in whole if name in dataset.targets]
    if len(targets) == 1:
        return targets[0]
    raise ConfigError(
        'the order "stratified" needs one integer target, and the data set has '
        + (f"{len(targets)}: {', '.join(targets)}" if targets else "none"),
        where="data.order",
        hint=f"name the field with the classes as data.stratify ({', '.join(whole)})"
        if whole
        else 'use "global"',
    )
