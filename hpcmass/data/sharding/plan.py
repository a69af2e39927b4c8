"""All that is decided before the first sample is written: a function of the source and the arguments alone.

The source is read in *blocks*, whose statistics are merged one after another. Blocks that follow each other are
a *stretch*: what one rank does at a time, and what is not done again once it is recorded. Finished shards are
recorded in *groups*. None of these depends on how many work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hpcmass.data.cut import Cut
from hpcmass.data.filters import Packing
from hpcmass.data.manifest import Field
from hpcmass.data.ragged import Ids, Sizes
from hpcmass.data.sources import Source
from hpcmass.data.sources.base import sizes_of
from hpcmass.files import canonical_json, sha256_bytes, storage_errors

FORMAT = 1
BLOCK_BYTES = 8 << 20
MAX_BLOCK_ROWS = 1 << 18
STRETCH_BYTES = 64 << 20
STRETCHES = 16, 128
"""Stretches of a source too small for so many of STRETCH_BYTES, and the most of any."""
GROUP_BYTES = 64 << 20
HASHED_TOGETHER = 256


@dataclass(frozen=True)
class ShardPlan:
    """What is sharded, and how.

    Attributes:
        source: The samples.
        fields: What is written of them.
        cut: Which sample goes where.
        record: What the manifest says of the cut.
        packing: How shards are compressed; None: not.
        asked: Further arguments by which the source was read.
    """

    source: Source
    fields: tuple[Field, ...]
    cut: Cut
    record: dict[str, Any]
    packing: Packing | None
    asked: dict[str, Any]

    @property
    def splits(self) -> list[str | None]:
        """Names of the splits, in the order of their parts."""
        return list(dict.fromkeys(part.split for part in self.cut.parts))

    @cached_property
    def layout(self) -> Sizes:
        """How many bytes samples take."""
        return sizes_of(self.source, self.fields)

    @property
    def bytes(self) -> int:
        """Bytes of all samples."""
        return self.layout.before(self.source.n)

    @cached_property
    def bounds(self) -> Ids:
        """Where blocks begin, and the end of the last one: a function of the data alone."""
        ends = [stop for _, stop in self.layout.blocks(0, BLOCK_BYTES, MAX_BLOCK_ROWS)]
        return np.array([0, *ends], np.int64)

    @cached_property
    def stretch_blocks(self) -> int:
        """Blocks of a stretch."""
        few, most = STRETCHES
        wanted = max(min(STRETCH_BYTES, self.bytes // few), self.bytes // most)
        blocks = max(1, len(self.bounds) - 1)
        return max(1, wanted * blocks // max(1, self.bytes))

    @property
    def stretches(self) -> int:
        """Number of stretches."""
        return -(-(len(self.bounds) - 1) // self.stretch_blocks)

    def stretch(self, number: int) -> tuple[int, int]:
        """First sample and end of a stretch."""
        mine = self._bounds_of(number)
        return int(mine[0]), int(mine[-1])

    def blocks(self, number: int) -> Iterator[tuple[int, int]]:
        """First sample and end of each block of a stretch."""
        return pairwise(self._bounds_of(number).tolist())

    def _bounds_of(self, number: int) -> Ids:
        first = number * self.stretch_blocks
        return self.bounds[first : first + self.stretch_blocks + 1]

    @cached_property
    def values(self) -> list[dict[str, int]]:
        """Of each part the number of values of each ragged field."""
        found: list[dict[str, int]] = [{} for _ in self.cut.parts]
        for one in self.fields:
            if one.ragged:
                lengths, total = np.diff(self.source.offsets(one.name)), np.zeros(len(found), np.int64)
                for start, stop in pairwise(self.bounds.tolist()):
                    np.add.at(total, self.cut.part_of(start, stop), lengths[start:stop])
                for of_part, many in zip(found, total.tolist(), strict=True):
                    of_part[one.name] = many
        return found

    @cached_property
    def groups(self) -> list[range]:
        """Parts that are finished and recorded together."""
        found, first, held = [], 0, 0
        for number, part in enumerate(self.cut.parts):
            held += part.samples * self.layout.row_bytes
            held += sum(self.values[number][one.name] * one.row_bytes for one in self.fields if one.ragged)
            if held >= GROUP_BYTES:
                found.append(range(first, number + 1))
                first, held = number + 1, 0
        if first < len(self.cut.parts):
            found.append(range(first, len(self.cut.parts)))
        return found

    @cached_property
    def file_groups(self) -> list[tuple[Path, ...]]:
        """Files of the source whose checksums are made together."""
        files = self.source.files
        return [files[at : at + HASHED_TOGETHER] for at in range(0, len(files), HASHED_TOGETHER)]

    def to_json(self) -> dict[str, Any]:
        """What two starts have in common that make the same shards."""
        fields = [
            [one.name, one.dtype, list(one.shape), one.role, one.classes, one.ragged] for one in self.fields
        ]
        parts = [[part.split, part.samples] for part in self.cut.parts]
        names = [f"{path.parent.name}/{path.name}" for path in self.source.files]
        packing = self.packing and [self.packing.compression.name, self.packing.chunk_samples]
        return {
            "format": FORMAT,
            "source": [self.source.kind, self.source.n, len(names), _digest(names)],
            "fields": [len(fields), _digest(fields)],
            "cut": {**self.record, "parts": len(parts), "digest": _digest(parts)},
            "compression": packing,
            "asked": self.asked,
            "blocks": [_digest(self.bounds.tolist()), self.stretch_blocks],
        }


def stamps_of(files: Sequence[Path]) -> dict[str, Any]:
    """What tells that files have changed: their sizes and times.

    Raises:
        NotFound: One is missing.
    """
    total, newest, lines = 0, 0, []
    for path in files:
        with storage_errors(path, "read the file"):
            found = path.stat()
        total, newest = total + found.st_size, max(newest, found.st_mtime_ns)
        lines.append([found.st_size, found.st_mtime_ns])
    return {"bytes": total, "newest": newest, "digest": _digest(lines)}


def _digest(value: Any) -> str:
    return sha256_bytes(canonical_json(value))[:16]
