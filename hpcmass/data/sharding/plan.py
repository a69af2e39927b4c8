"""All that is decided before the first sample is written: a function of the source and the arguments alone.

The source is read in *blocks*, whose statistics are merged one after another. Blocks that follow each other are
a *stretch*: what one rank does at a time, and what is not done again once it is recorded. Finished shards are
recorded in *groups*. None of these depends on how many work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpcmass.data.cut import Cut
from hpcmass.data.filters import Packing
from hpcmass.data.manifest import Field
from hpcmass.data.sources import Source
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
    def row_bytes(self) -> int:
        """Bytes of a sample."""
        return sum(one.row_bytes for one in self.fields)

    @property
    def bytes(self) -> int:
        """Bytes of all samples."""
        return self.row_bytes * self.source.n

    @property
    def block_rows(self) -> int:
        """Samples of a block."""
        return int(min(max(1, BLOCK_BYTES // self.row_bytes), MAX_BLOCK_ROWS))

    @property
    def stretch_rows(self) -> int:
        """Samples of a stretch, whole blocks."""
        few, most = STRETCHES
        wanted = max(min(STRETCH_BYTES, self.bytes // few), self.bytes // most)
        blocks = max(1, wanted // (self.block_rows * self.row_bytes))
        return int(blocks * self.block_rows)

    @property
    def stretches(self) -> int:
        """Number of stretches."""
        return -(-self.source.n // self.stretch_rows)

    def stretch(self, number: int) -> tuple[int, int]:
        """First sample and end of a stretch."""
        return number * self.stretch_rows, min((number + 1) * self.stretch_rows, self.source.n)

    def blocks(self, number: int) -> Iterator[tuple[int, int]]:
        """First sample and end of each block of a stretch."""
        start, stop = self.stretch(number)
        for at in range(start, stop, self.block_rows):
            yield at, min(at + self.block_rows, stop)

    @cached_property
    def groups(self) -> list[range]:
        """Parts that are finished and recorded together."""
        found, first, held = [], 0, 0
        for number, part in enumerate(self.cut.parts):
            held += part.samples * self.row_bytes
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
        fields = [[one.name, one.dtype, list(one.shape), one.role, one.classes] for one in self.fields]
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
            "rows": [self.block_rows, self.stretch_rows],
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
