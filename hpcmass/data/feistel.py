"""A pseudo-random permutation of 0 … n-1 that is computed where it is needed instead of being stored.

A number p is split as (p >> k, p & (2^k - 1)), two halves of about sqrt(n) values each, and the halves take
turns in being mixed into the other by a keyed hash: the low one by exclusive or, the high one by addition
modulo its range m = ceil(n / 2^k). That is a Feistel network over m 2^k >= n numbers, so a bijection whatever
the hash; the less than 2^k numbers that lie outside 0 … n-1 walk on along their cycle until they are inside
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). All of it is arithmetic on 32-bit
words in pieces that stay in the processor's cache: no memory but the answer, and the same cost at any
position.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Positions = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint32]

MAX_N = 1 << 60

# Seen by the tests' chi-squares: six rounds are too few below some hundred numbers, eight below thirty.
ROUNDS = 8
ROUNDS_OF_FEW = 12
_FEW = 1 << 10
AT_ONCE = 1 << 14
_FIRST, _SECOND = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)  # of "lowbias32" (C. Wellons, hash-prospector)
_TWEAK = np.uint32(0x9E3779B1)
_U15, _U16 = np.uint32(15), np.uint32(16)
_HALF = np.uint64(32)


class Permutation:
    """The permutation of 0 … n-1 that a key names."""

    def __init__(self, n: int, key: str) -> None:
        """Prepare.

        Args:
            n: Numbers that are permuted, `MAX_N` at most.
            key: Any text; other keys give other permutations.
        """
        if not 0 <= n <= MAX_N:
            raise ValueError(f"{n} numbers cannot be permuted")
        self.n = n
        self._keys, turn = round_keys(f"{key}/{n}", ROUNDS if n >= _FEW else ROUNDS_OF_FEW)
        self._turn = np.uint64(turn % n if n else 0)
        self._shape = _Shape.of(max(n, 1))

    def range(self, start: int, stop: int) -> Ids:
        """Images of `start` … `stop` - 1.

        Returns:
            int64 array of shape (stop - start,).

        Raises:
            ValueError: Some are outside 0 … n-1.
        """
        if not 0 <= start <= stop <= self.n:
            raise ValueError(f"positions {start} … {stop} are not within 0 … {self.n}")
        out = np.empty(stop - start, np.uint64)
        scratch = _Scratch(len(out))
        count = np.arange(min(len(out), AT_ONCE), dtype=np.uint64)
        for low in range(0, len(out), AT_ONCE):
            part = out[low : low + AT_ONCE]
            np.add(count[: len(part)], np.uint64(start + low), out=part)
            self._in_place(part, scratch)
        return out.view(np.int64)

    def at(self, positions: Ids) -> Ids:
        """Images of any positions within 0 … n-1, shape (b,)."""
        out = positions.astype(np.uint64)
        scratch = _Scratch(len(out))
        for low in range(0, len(out), AT_ONCE):
            self._in_place(out[low : low + AT_ONCE], scratch)
        return out.view(np.int64)

    def _in_place(self, words: Positions, scratch: _Scratch) -> None:
        # Turned round the circle first: few halves alone make poor permutations of a handful of numbers.
        turned = scratch.wide[: len(words)]
        np.add(words, self._turn, out=words)
        np.subtract(words, np.uint64(self.n), out=turned)  # wraps where there is nothing to subtract
        np.minimum(words, turned, out=words)
        _encrypt(words, self._shape, self._keys, None, scratch)


def permute_each(positions: Ids, n: Ids, group: Ids, key: str) -> Ids:
    """Images of positions under permutations of their own: of 0 … n[i]-1, one a group.

    Args:
        positions: Within 0 … n[i]-1, shape (b,).
        n: Numbers that are permuted in the group of each, shape (b,).
        group: Number of the group of each, shape (b,); those of one group have the same `n`.
        key: As for `Permutation`.

    Returns:
        int64 array of shape (b,).
    """
    out = positions.astype(np.uint64)
    scratch = _Scratch(len(out))
    keys, turn = round_keys(key, ROUNDS_OF_FEW)
    for low in range(0, len(out), AT_ONCE):
        part = slice(low, low + AT_ONCE)
        sizes, words = n[part].astype(np.uint64), out[part]
        tweaks = hash_words(group[part].astype(np.uint32) + np.uint32(turn & 0xFFFFFFFF))
        turns = (hash_words(tweaks).astype(np.uint64) * sizes) >> _HALF
        np.remainder(words + turns, sizes, out=words)
        _encrypt(words, _Shape.of_each(sizes), keys, tweaks, scratch)
    return out.view(np.int64)


def round_keys(key: str, rounds: int) -> tuple[Words, int]:
    """Keys of the rounds, 12 at most, and a number of 64 bits, out of a text."""
    digest = hashlib.blake2b(key.encode(), digest_size=64).digest()
    return np.frombuffer(digest, "<u4", rounds).astype(np.uint32), int.from_bytes(digest[-8:], "little")


def hash_words(words: Words) -> Words:
    """A bijective hash of 32-bit words whose bits all depend on all bits; a new array."""
    mixed = words ^ (words >> _U16)
    mixed *= _FIRST
    mixed ^= mixed >> _U15
    mixed *= _SECOND
    mixed ^= mixed >> _U16
    return mixed


@dataclass(frozen=True)
class _Shape:
    """The halves of a network: scalars of one `n`, or an array of each for many."""

    n: Any  # uint64
    wide_bits: Any  # uint64: k, bits of the low half
    top: Any  # uint32: 32 - k
    mask: Any  # uint32: 2^k - 1
    high: Any  # uint32: m, values of the high half
    wide_high: Any  # uint64: m

    @classmethod
    def of(cls, n: int) -> _Shape:
        return cls._made(np.array([n], np.uint64)).take(0)

    @classmethod
    def of_each(cls, n: Positions) -> _Shape:
        return cls._made(n)

    @classmethod
    def _made(cls, n: Positions) -> _Shape:
        # frexp gives the number of bits; where a float rounds up to the next power of two it is one more, the
        # same everywhere.
        bits = np.frexp((n - np.uint64(1)).astype(np.float64))[1].astype(np.uint64)
        k = np.maximum(np.uint64(1), bits // np.uint64(2))
        values = np.uint64(1) << k
        high = (n + values - np.uint64(1)) >> k
        narrow = [one.astype(np.uint32) for one in (np.uint64(32) - k, values - np.uint64(1), high)]
        return cls(n, k, narrow[0], narrow[1], narrow[2], high)

    def take(self, at: Any) -> _Shape:
        """The shapes of some words."""
        if np.ndim(self.n) == 0:
            return self
        return _Shape(*(getattr(self, one.name)[at] for one in fields(self)))


class _Scratch:
    """Memory that the pieces of one call share; fresh pages for each piece would cost as much as the sums."""

    def __init__(self, length: int) -> None:
        length = min(length, AT_ONCE)
        self.high, self.low, self.mixed, self.shifted = (np.empty(length, np.uint32) for _ in range(4))
        self.wide = np.empty(length, np.uint64)


def _encrypt(words: Positions, shape: _Shape, keys: Words, tweaks: Words | None, scratch: _Scratch) -> None:
    """Replace words within 0 … n-1 by their images."""
    _network(words, shape, keys, tweaks, scratch)
    outside = np.flatnonzero(words >= shape.n)
    # As the network is a bijection, the walk ends on its own cycle, and no two words end at the same image.
    while outside.size:
        walking, part = words[outside], shape.take(outside)
        _network(walking, part, keys, None if tweaks is None else tweaks[outside], scratch)
        words[outside] = walking
        outside = outside[walking >= part.n]


def _network(words: Positions, shape: _Shape, keys: Words, tweaks: Words | None, scratch: _Scratch) -> None:
    """One pass of all rounds over `words`, in place."""
    size = len(words)
    high, low, wide = scratch.high[:size], scratch.low[:size], scratch.wide[:size]
    mixed, shifted = scratch.mixed[:size], scratch.shifted[:size]
    np.copyto(low, words, casting="unsafe")
    np.bitwise_and(low, shape.mask, out=low)
    np.right_shift(words, shape.wide_bits, out=wide)
    np.copyto(high, wide, casting="unsafe")
    for number, key in enumerate(keys):
        to_low = number % 2 == 0
        np.add(high if to_low else low, key, out=mixed)
        if tweaks is not None:
            tweaks = tweaks * _TWEAK
            np.bitwise_xor(mixed, tweaks, out=mixed)
        np.multiply(mixed, _FIRST, out=mixed)
        np.right_shift(mixed, _U15, out=shifted)
        np.bitwise_xor(mixed, shifted, out=mixed)
        np.multiply(mixed, _SECOND, out=mixed)
        if to_low:  # the highest bits of the hash are the best mixed
            np.right_shift(mixed, shape.top, out=mixed)
            np.bitwise_xor(low, mixed, out=low)
        else:  # floor(hash m / 2^32) is added modulo m: the difference wraps where nothing is to be subtracted
            np.copyto(wide, mixed)
            np.multiply(wide, shape.wide_high, out=wide)
            np.right_shift(wide, _HALF, out=wide)
            np.copyto(mixed, wide, casting="unsafe")
            np.add(high, mixed, out=high)
            np.subtract(high, shape.high, out=shifted)
            np.minimum(high, shifted, out=high)
    np.copyto(words, high)
    np.left_shift(words, shape.wide_bits, out=words)
    np.bitwise_or(words, low, out=words)
