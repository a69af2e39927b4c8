"""The sample order: a pure function of (kind, n, seed, epoch, position), never of the number of ranks.

The `global` order is a pseudo-random permutation of 0 … n-1 that is computed where it is needed instead
of being stored: a keyed Feistel network over the next power of two, with cycle walking back into 0 … n-1
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002). Any position of any epoch costs
the same, in no memory beyond the answer, so that a run resumes anywhere on any number of ranks.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

KINDS = ("sequential", "global")

_ROUNDS = 6
# Below 2^8 a Feistel network has too few different halves to look random; walking from 2^8 is cheap.
_MIN_BITS = 8
_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))


def epoch_ids(kind: str, n: int, seed: int, epoch: int, start: int, stop: int) -> Ids:
    """The sample ids at positions `start` to `stop` of one epoch.

    Args:
        kind: `sequential` (0, 1, 2 …) or `global` (a random permutation of all samples).
        n: Samples in the dataset.
        seed: Seed of the order.
        epoch: Number of the epoch; every epoch has its own permutation.
        start: First position, 0 at least.
        stop: End position (not included), `n` at most.

    Returns:
        int64 array of shape (stop - start,).

    Raises:
        ValueError: An unknown kind, or positions outside 0 … n.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown order {kind!r}: choose from {', '.join(KINDS)}")
    _check_range(n, start, stop)
    if kind == "sequential":
        return np.arange(start, stop, dtype=np.int64)
    return permutation(n, f"epoch/{seed}/{epoch}", start, stop)


def permutation(n: int, key: str, start: int, stop: int) -> Ids:
    """Images of `start` … `stop` - 1 under the pseudo-random permutation of 0 … n-1 that `key` names.

    Returns:
        int64 array of shape (stop - start,).
    """
    _check_range(n, start, stop)
    bits = max((n - 1).bit_length(), _MIN_BITS) if n else _MIN_BITS
    digest = hashlib.blake2b(f"{key}/{n}".encode(), digest_size=8 * _ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    words = np.arange(start, stop, dtype=np.uint64)
    _encrypt(words, bits, round_keys)
    # A value outside 0 … n-1 is encrypted again until it lies inside: as the network is a bijection,
    # the walk ends on its own cycle, and no two positions end at the same id.
    outside = np.flatnonzero(words >= np.uint64(n))
    while outside.size:
        walking = words[outside]
        _encrypt(walking, bits, round_keys)
        words[outside] = walking
        outside = outside[walking >= np.uint64(n)]
    return words.view(np.int64)


def rank_slice(start: int, stop: int, rank: int, size: int) -> tuple[int, int]:
    """The contiguous part of positions `start` … `stop` that is `rank`'s of `size`.

    Sizes differ by one at most, the first ranks having the larger ones; with fewer positions than ranks
    the last ranks have none.

    Raises:
        ValueError: `rank` is not within 0 … size-1, or `stop` lies before `start`.
    """
    if not 0 <= rank < size:
        raise ValueError(f"rank {rank} is not within 0 … {size - 1}")
    if stop < start:
        raise ValueError(f"the range {start} … {stop} ends before it starts")
    base, larger = divmod(stop - start, size)
    low = start + rank * base + min(rank, larger)
    return low, low + base + (1 if rank < larger else 0)


def _check_range(n: int, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= n:
        raise ValueError(f"positions {start} … {stop} are not within 0 … {n}")


def _encrypt(words: _Words, bits: int, round_keys: _Words) -> None:
    """Encrypt in place, each word within 0 … 2^bits-1: halves take turns in being mixed into the other."""
    low_bits = bits // 2
    high_bits = bits - low_bits
    low_mask = np.uint64((1 << low_bits) - 1)
    mixed = np.empty_like(words)
    shifted = np.empty_like(words)
    for number, round_key in enumerate(round_keys):
        from_low = number % 2 == 0
        if from_low:
            np.bitwise_and(words, low_mask, out=mixed)
        else:
            np.right_shift(words, np.uint64(low_bits), out=mixed)
        np.add(mixed, round_key, out=mixed)
        for multiplier in _MULTIPLIERS:
            np.multiply(mixed, multiplier, out=mixed)
            np.right_shift(mixed, np.uint64(32), out=shifted)
            np.bitwise_xor(mixed, shifted, out=mixed)
        # The lowest bits after the last fold are well mixed; take as many as the other half has.
        if from_low:
            np.bitwise_and(mixed, np.uint64((1 << high_bits) - 1), out=mixed)
            np.left_shift(mixed, np.uint64(low_bits), out=mixed)
        else:
            np.bitwise_and(mixed, low_mask, out=mixed)
        np.bitwise_xor(words, mixed, out=words)
