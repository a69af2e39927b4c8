"""The `block` order: contiguous samples are read together, and mixed a window of blocks at a time.

The data set is cut into blocks of contiguous samples. The blocks are permuted, runs of `window` of them are a
window, and the samples of a window are shuffled: that is the *stream*. A batch is cut into `lanes`, each of
which walks its own stretch of the stream, so that a batch draws from `lanes` windows at once, and N ranks (N
up to `lanes`, best a divisor of it) read different blocks. Where a position lies is arithmetic; only the ids
of the windows in use are kept.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from hpcmass.data.feistel import Ids, Permutation
from hpcmass.data.order import FORMAT, check_range, rank_slice

BLOCK_BYTES = 512 << 10
WINDOW_BLOCKS = 16
LANES = 16


class BlockOrder:
    """Blocks of contiguous samples in random order, mixed within windows; a permutation of all samples.

    Attributes:
        n: Samples.
        block: Samples a block; the last block of the data set may be shorter.
        window: Blocks a window; the last window of an epoch may be shorter.
        lanes: Stretches of the stream that a batch draws from.
    """

    def __init__(
        self, n: int, seed: int, *, batch: int, block: int, window: int, lanes: int, key: str | None = None
    ) -> None:
        """Make one.

        Args:
            n: Samples in the data set.
            seed: Seed of the order.
            batch: Samples of a global batch.
            block: Samples a block.
            window: Blocks a window.
            lanes: See the module's text; no more than `batch` are used.
            key: Stands for the seed where the order is one of several of a run.
        """
        if n < 0 or min(batch, block, window, lanes) < 1:
            raise ValueError("samples, batch, block, window and lanes are counts")
        self.n, self.seed, self.batch, self.block, self.window = n, seed, batch, block, window
        self.lanes = min(lanes, batch)
        self._key = str(seed) if key is None else key
        self._made = {
            "n": n, "seed": seed, "batch": batch, "block": block, "window": window, "lanes": lanes, "key": key
        }  # fmt: skip
        self._blocks, self._tail = -(-n // block), n % block
        self._lanes = [rank_slice(0, batch, lane, self.lanes) for lane in range(self.lanes)]
        # All lanes reach the end of a window at about the same step: room for the old and the new ones.
        self._window_ids = lru_cache(maxsize=2 * self.lanes + 2)(self._make_window)
        self._tail_place = lru_cache(maxsize=8)(self._find_tail)
        self._permuted_blocks = lru_cache(maxsize=8)(self._permute_blocks)

    def ids(self, epoch: int, start: int, stop: int) -> Ids:
        """See `hpcmass.data.order.Order`."""
        check_range(self.n, start, stop)
        batches = self.n // self.batch
        out = np.empty(stop - start, np.int64)
        at = start
        while at < stop:
            number, first = divmod(at, self.batch)
            if number >= batches:  # the last batch is no whole one: the end of the stream
                out[at - start :] = self._stream(epoch, at, stop)
                break
            whole = (stop - at) // self.batch if first == 0 else 0
            if whole:
                whole = min(whole, batches - number)
                rows = out[at - start : at - start + whole * self.batch].reshape(whole, self.batch)
                for low, high in self._lanes:
                    width, origin = high - low, batches * low
                    part = self._stream(epoch, origin + number * width, origin + (number + whole) * width)
                    rows[:, low:high] = part.reshape(whole, width)
                at += rows.size
                continue
            last = min(self.batch, first + stop - at)
            for low, high in self._lanes:
                a, b = max(low, first), min(high, last)
                if a < b:
                    origin = batches * low + number * (high - low) - low
                    place = number * self.batch - start
                    out[place + a : place + b] = self._stream(epoch, origin + a, origin + b)
            at += last - first
        return out

    def stretches(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of the stream that positions `start` … `stop` draw from: (first, end), one a lane.

        What a reader needs in order to read ahead: `windows` of these are the blocks it will want.
        """
        check_range(self.n, start, stop)
        batches, found = self.n // self.batch, []
        (first, a), (last, b) = divmod(start, self.batch), divmod(stop, self.batch)
        for low, high in self._lanes:
            width, origin = high - low, batches * low
            begin = (
                origin + min(first, batches) * width + (min(max(a - low, 0), width) if first < batches else 0)
            )
            end = origin + min(last, batches) * width + (min(max(b - low, 0), width) if last < batches else 0)
            if begin < end:
                found.append((begin, end))
        if stop > batches * self.batch:
            found.append((max(start, batches * self.batch), stop))
        return found

    def windows(self, epoch: int, first: int, end: int) -> list[list[tuple[int, int]]]:
        """Windows that a stretch of the stream draws from, each as its blocks: (first id, end id), by id."""
        if first >= end:
            return []
        numbers = range(self._window_at(epoch, first), self._window_at(epoch, end - 1) + 1)
        return [
            [
                (int(b) * self.block, min((int(b) + 1) * self.block, self.n))
                for b in np.sort(self._places(epoch, w))
            ]
            for w in numbers
        ]

    def blocks_a_batch(self) -> float:
        """Blocks that a batch draws from, on average, while its lanes are within their windows."""
        if not self.n:
            return 0.0
        # Where there are fewer windows than lanes, several lanes draw from one.
        open_windows = min(self.lanes, -(-self._blocks // self.window))
        size = min(float(self.window), self._blocks / open_windows)
        return float(open_windows * size * (1 - (1 - 1 / size) ** (self.batch / open_windows)))

    def to_json(self) -> dict[str, Any]:
        """See `hpcmass.data.order.Order`."""
        return {
            "format": FORMAT, "kind": "block", "n": self.n, "seed": self.seed, "batch": self.batch,
            "block_samples": self.block, "window_blocks": self.window, "lanes": self.lanes,
        }  # fmt: skip

    def describe(self) -> str:
        """See `hpcmass.data.order.Order`."""
        return (
            f"block: {self.n} samples in {self._blocks} blocks of {self.block}, mixed within windows of "
            f"{self.window} blocks, {self.lanes} lanes: a batch of {self.batch} draws from about "
            f"{self.blocks_a_batch():.0f} blocks"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._made,)

    # -- the stream -----------------------------------------------------------------------------------
    def _stream(self, epoch: int, first: int, end: int) -> Ids:
        """Ids at places `first` … `end` of the stream."""
        parts = []
        while first < end:
            number = self._window_at(epoch, first)
            origin = self._window_start(epoch, number)
            part = self._window_ids(epoch, number)[first - origin : end - origin]
            parts.append(part)
            first += len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _find_tail(self, epoch: int) -> int:
        """The place, among all blocks of an epoch, of the short last block; behind all where there is none."""
        if not self._tail:
            return self._blocks
        return int(Permutation(self._blocks, f"tail/{self._key}/{epoch}").range(0, 1)[0])

    def _window_start(self, epoch: int, number: int) -> int:
        place = number * self.window
        return place * self.block - (self.block - self._tail if self._tail_place(epoch) < place else 0)

    def _window_at(self, epoch: int, place: int) -> int:
        number = place // (self.window * self.block)
        return number + 1 if self._window_start(epoch, number + 1) <= place else number

    def _places(self, epoch: int, number: int) -> Ids:
        """The blocks of a window."""
        first, end = number * self.window, min((number + 1) * self.window, self._blocks)
        tail = self._tail_place(epoch)
        if not first <= tail < end:
            shift = 1 if tail < first else 0
            return self._permuted_blocks(epoch).range(first - shift, end - shift)
        blocks = self._permuted_blocks(epoch).range(first, end - 1)
        return np.insert(blocks, tail - first, self._blocks - 1)

    def _permute_blocks(self, epoch: int) -> Permutation:
        return Permutation(self.n // self.block, f"blocks/{self._key}/{epoch}")

    def _make_window(self, epoch: int, number: int) -> Ids:
        ids = (self._places(epoch, number)[:, None] * self.block + np.arange(self.block)).reshape(-1)
        ids = ids[ids < self.n]
        mixed: Ids = ids[Permutation(len(ids), f"window/{self._key}/{epoch}/{number}").range(0, len(ids))]
        mixed.flags.writeable = False
        return mixed


def block_samples(n: int, row_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Samples of a block whose rows are `row_bytes` wide: so many that one read is `block_bytes` at least."""
    return max(1, min(n, -(-block_bytes // max(1, row_bytes))))


def _again(made: dict[str, Any]) -> BlockOrder:
    return BlockOrder(**made)
