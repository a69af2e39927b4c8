"""Memory of the loader: the ring of buffers that batches lie in, and the pool of blocks they are taken from.

Both are kept by the consumer's thread alone, so nothing here is locked.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.order import Ids
from hpcmass.data.reading.crew import Block, Memory, Unit

if TYPE_CHECKING:
    from hpcmass.data.manifest import Field

_ALIGN = 64
_RING_BYTES = 1 << 30


class Ring:
    """Buffers for units: made when first needed, then used again.

    Args:
        fields: The fields by name that have one value a sample; others come as a unit's frames say.
        limit: Buffers at most, while there is a choice; fewer where they are very large.
        allocate: Makes a buffer of so many bytes.
    """

    def __init__(
        self, fields: Mapping[str, Field], limit: int, allocate: Callable[[int], Memory] | None
    ) -> None:
        self._fields = [(name, one.row_bytes, one.numpy_dtype, one.shape) for name, one in fields.items()]
        self._limit = limit
        self._allocate = allocate or _allocate
        self._row_bytes = sum(row_bytes for _, row_bytes, _, _ in self._fields)
        self._free: list[Memory] = []
        self._largest = 0
        self._sizes: dict[int, int] = {}  # address -> bytes of every buffer

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(self._sizes.values())

    def equip(self, unit: Unit, *, must: bool) -> bool:
        """Give a unit a buffer; False while all are in use and there may be no more.

        Args:
            unit: The unit.
            must: Make one more if there is none: the consumer could not go on otherwise.
        """
        specs = [frame.specs for frame in unit.frames]
        more = [(math.prod(shape) * dtype.itemsize) for of_batch in specs for _, dtype, shape in of_batch]
        needed = len(unit.ids) * self._row_bytes + sum(more)
        memory = self._find(needed + _ALIGN * (len(self._fields) + len(more) + 1), must)
        if memory is None:
            return False
        unit.memory = memory
        at, rows = -memory.ctypes.data % _ALIGN, len(unit.ids)

        def take(dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
            nonlocal at
            size = math.prod(shape) * dtype.itemsize
            array = memory[at : at + size].view(dtype).reshape(shape)
            at += size + -size % _ALIGN
            return array

        for name, _, dtype, shape in self._fields:
            unit.arrays[name] = take(dtype, (rows, *shape))
        unit.shaped = [{name: take(dtype, shape) for name, dtype, shape in of_batch} for of_batch in specs]
        return True

    def give_back(self, unit: Unit) -> None:
        """The unit's buffer may be used again."""
        assert unit.memory is not None
        self._free.append(unit.memory)

    def _find(self, needed: int, must: bool) -> Memory | None:
        for number, memory in enumerate(self._free):
            if memory.nbytes >= needed:
                return self._free.pop(number)
        if self._free:  # all are too small: one gives way to a larger one
            del self._sizes[self._free.pop().ctypes.data]
        many = len(self._sizes)
        if not must and (many >= self._limit or (many > 1 and (many + 1) * needed > _RING_BYTES)):
            return None
        self._largest = max(self._largest, needed)
        memory = self._allocate(self._largest)
        self._sizes[memory.ctypes.data] = memory.nbytes
        return memory


class Pool:
    """Blocks of neighbouring samples, each read as a whole and kept while batches ahead need it.

    A block that no planned batch needs any more gives its place to the next one, the longest unused first.

    Args:
        fields: Fields that it holds.
        samples: Samples of the dataset.
        block: Samples a block.
        pool_bytes: What all its places may take together; two blocks at least.
    """

    def __init__(self, fields: Mapping[str, Field], samples: int, block: int, pool_bytes: int) -> None:
        self._samples, self._block = samples, block
        row_bytes = max(1, sum(one.row_bytes for one in fields.values()))
        many = -(-samples // block)
        self.places = max(2, min(many, pool_bytes // (block * row_bytes)))
        self.rows = rows = self.places * block
        self._arrays: dict[str, npt.NDArray[Any]] = {
            name: np.empty((rows, *one.shape), one.numpy_dtype) for name, one in fields.items()
        }
        self.bytes = sum(array.nbytes for array in self._arrays.values())
        self._unused = list(range(self.places - 1, -1, -1))
        self._blocks: dict[int, Block] = {}
        self._idle: OrderedDict[int, Block] = OrderedDict()  # blocks that no unit needs, longest unused first
        self.reads = 0

    def wide(self, ids: Ids) -> bool:
        """Whether samples lie in more blocks than half the pool holds: nothing would be read ahead of them."""
        return len(np.unique(ids // self._block)) > self.places // 2

    def plan(self, unit: Unit) -> list[Block] | None:
        """Find places for the blocks that a unit needs.

        A unit whose samples lie in more blocks than the pool holds is left to be read row by row.

        Returns:
            Blocks that have to be read; None while there are too few places.
        """
        numbers, inverse = np.unique(unit.ids // self._block, return_inverse=True)
        if len(numbers) > self.places:
            return []
        wanted = numbers.tolist()
        there = [self._blocks[number] for number in wanted if number in self._blocks]
        idle = sum(not block.users for block in there)
        if len(wanted) - len(there) > len(self._unused) + len(self._idle) - idle:
            return None
        for block in there:
            self._idle.pop(block.number, None)
            block.users += 1
        new = []
        for number in wanted:
            if number not in self._blocks:
                self._blocks[number] = self._make(number)
                new.append(self._blocks[number])
        unit.blocks = [self._blocks[number] for number in wanted]
        places = np.array([block.place for block in unit.blocks], np.int64)
        unit.rows = places[inverse.reshape(-1)] * self._block + unit.ids % self._block
        unit.pool = self._arrays
        self.reads += len(new)
        return new

    def release(self, unit: Unit) -> None:
        """The unit has taken its rows."""
        for block in unit.blocks or ():
            block.users -= 1
            if not block.users:
                self._idle[block.number] = block

    def _make(self, number: int) -> Block:
        if self._unused:
            place = self._unused.pop()
        else:
            old, gone = self._idle.popitem(last=False)
            del self._blocks[old]
            place = gone.place
        first = number * self._block
        ids: Ids = np.arange(first, min(first + self._block, self._samples), dtype=np.int64)
        low = place * self._block
        out = {name: array[low : low + len(ids)] for name, array in self._arrays.items()}
        return Block(number, place, ids, out, users=1)


def _allocate(size: int) -> Memory:
    return np.empty(size, np.uint8)
