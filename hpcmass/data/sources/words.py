"""Arrays of text, which become class numbers: the words in their order, numbered from 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.errors import DataError

MAX_CLASSES = 100_000
_BLOCK_BYTES = 4 << 20

Words = tuple[str, ...]
Texts = npt.NDArray[np.str_]


def is_text(dtype: np.dtype[Any]) -> bool:
    """Whether an array of this type holds text, of a fixed length."""
    return dtype.kind in "US" and dtype.itemsize > 0


def as_text(values: npt.NDArray[Any], name: str, where: object) -> Texts:
    """Text as numpy compares it, whether it was stored as characters or as bytes (UTF-8).

    Raises:
        DataError: Bytes are not UTF-8.
    """
    try:
        if values.dtype.kind == "S":
            if (values.view(np.uint8) < 0x80).all():
                return values.astype(np.str_)
            return np.char.decode(values, "utf-8")
        return values.astype(np.str_, copy=False)
    except UnicodeDecodeError as error:
        raise DataError(f"array {name} holds bytes that are no UTF-8 text ({error})", where=where) from error


def find_words(read: Callable[[int, int], Texts], n: int, width: int, name: str, where: object) -> Words:
    """All words of a field.

    Args:
        read: Gives texts start … stop, shape (stop - start,).
        n: Number of samples.
        width: Bytes of one.
        name: The field, for the message.
        where: The file, for the message.

    Raises:
        DataError: There are too many for classes, or one is empty.
    """
    found: set[str] = set()
    for start, stop in _blocks(n, width):
        texts = read(start, stop)
        missing = np.flatnonzero(texts == "")
        if len(missing):
            raise DataError(
                f"field {name}, sample {start + int(missing[0])}: the text is missing",
                where=where, hint="fill it in, or leave the field out by naming the fields to take",
                field=name,
            )  # fmt: skip
        found.update(np.unique(texts).tolist())
        if len(found) > MAX_CLASSES:
            raise DataError(
                f"field {name} holds more than {MAX_CLASSES} different texts",
                where=where, hint="leave it out by naming the fields to take",
                field=name,
            )  # fmt: skip
    return tuple(sorted(found))


def numbers(texts: Texts, words: Words, name: str, where: object) -> npt.NDArray[np.int64]:
    """Class numbers of texts.

    Raises:
        DataError: One is none of the words: the file has changed.
    """
    known = np.array(words)
    places = np.searchsorted(known, texts)
    if len(texts) and (known[np.minimum(places, len(known) - 1)] != texts).any():
        raise DataError(f"field {name} has changed while it was read", where=where, field=name)
    return places.astype(np.int64, copy=False)


def _blocks(n: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _BLOCK_BYTES // max(1, width))
    for start in range(0, n, rows):
        yield start, min(start + rows, n)
