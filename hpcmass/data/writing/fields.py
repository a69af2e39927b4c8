"""What a producer says of its fields, and what it hands over, held against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcmass.data.manifest import Field
from hpcmass.data.ragged import Ragged, check_given
from hpcmass.data.roles import resolve_roles
from hpcmass.data.sources.base import SourceField
from hpcmass.errors import DataError

Rows = dict[str, Any]
"""By field an array (b, *shape), or a `Ragged`."""


def make_fields(
    given: Mapping[str, Any],
    *,
    inputs: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    meta: Sequence[str] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> tuple[Field, ...]:
    """Fields from what numpy takes for a type: `"float32"`, or `("uint8", (3, 32, 32))` with a shape.

    A shape that begins with None makes the field ragged: `("uint16", (None,))`, `("float32", (None, 3))`.

    Raises:
        DataError: A type is none that can be stored, or a role or class name does not fit.
        NameNotAllowed: A field's name may not be used.
    """
    found = []
    for name, said in given.items():
        if isinstance(said, (list, np.ndarray)):
            raise DataError(f"field {name}: {said!r:.80} is no type", hint='write ("uint8", (3, 32, 32))')
        ragged = (
            isinstance(said, tuple) and len(said) == 2 and isinstance(said[1], tuple) and said[1][:1] == (None,)
        )
        try:
            dtype = np.dtype((said[0], said[1][1:]) if ragged else said)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"field {name}: numpy knows no type {said!r:.80} ({error})", hint='write ("uint8", (3, 32, 32))'
            ) from error
        base, shape = dtype.subdtype or (dtype, ())
        if base.kind not in "biuf" or base.itemsize > 8 or min(shape, default=1) < 1:
            raise DataError(
                f"field {name}: {dtype} cannot be stored",
                hint="integers, booleans and floats of up to 64 bits can, in shapes without a zero",
            )
        found.append(SourceField(name, base.newbyteorder("="), tuple(shape), ragged=ragged))
    fields = resolve_roles(found, inputs=inputs, targets=targets, meta=meta)
    left = [name for name in given if name not in {one.name for one in fields}]
    if left:
        raise DataError(
            f"the fields {', '.join(left)} have no role", hint="name them as inputs, targets or meta"
        )
    return tuple(_with_classes(one, classes) for one in fields) if classes else fields


def _with_classes(one: Field, classes: Mapping[str, Sequence[str]]) -> Field:
    if one.name not in classes:
        return one
    if one.shape != () or np.dtype(one.dtype).kind not in "iu":
        raise DataError(f"field {one.name} has classes, and is {one.dtype} of shape {list(one.shape)}")
    return replace(one, classes=[str(name) for name in classes[one.name]])


def as_rows(fields: Sequence[Field], batch: Mapping[str, Any], where: Path) -> tuple[Rows, int]:
    """A batch as arrays of the fields' types, and how many samples it has.

    Raises:
        DataError: A field is missing or too many, or its values do not fit type, shape or classes.
    """
    if batch.keys() != {one.name for one in fields}:
        wanted = ", ".join(one.name for one in fields)
        raise DataError(f"a sample has the fields {', '.join(map(str, batch))}, not {wanted}", where=where)
    rows: Rows = {}
    count = -1
    for one in fields:
        if one.ragged:
            rows[one.name] = _as_ragged(one, batch[one.name], where)
            count = _same_count(one, len(rows[one.name]), count, where)
            continue
        values = np.asarray(batch[one.name])
        if values.ndim < 1 or values.shape[1:] != one.shape:
            raise DataError(
                f"field {one.name} has shape {list(values.shape)}, which is no number of samples "
                f"of shape {list(one.shape)}",
                where=where,
                hint="`write` takes one sample, `write_batch` several along a first axis",
            )
        count = _same_count(one, len(values), count, where)
        if one.classes is not None and values.dtype.kind == "U":
            values = _numbered(one, one.classes, values, where)
        rows[one.name] = _cast(one, values, where)
    return rows, count


def _numbered(one: Field, classes: Sequence[str], names: npt.NDArray[Any], where: Path) -> npt.NDArray[Any]:
    """The numbers of classes that are given by name."""
    number = {name: place for place, name in enumerate(classes)}
    words = names.tolist()
    unknown = next((word for word in words if word not in number), None)
    if unknown is not None:
        raise DataError(
            f"field {one.name} has no class {unknown!r}",
            where=where,
            hint=f"it has {', '.join(map(repr, classes[:10]))}",
            field=one.name,
        )
    return np.array([number[word] for word in words], np.int64)


def _same_count(one: Field, mine: int, count: int, where: Path) -> int:
    if count >= 0 and mine != count:
        raise DataError(f"field {one.name} has {mine} samples, and another has {count}", where=where)
    return mine


def _as_ragged(one: Field, given: Any, where: Path) -> Ragged:
    """Samples of a ragged field: a list of arrays, or a tuple (values, offsets), or a `Ragged`."""
    if isinstance(given, Ragged):
        given = given.values, given.offsets
    if isinstance(given, tuple) and len(given) == 2:
        values = np.asarray(given[0])
        _check_shape(one, values, where)
        offsets = check_given(one.name, np.asarray(given[1]), len(values), where)
        return Ragged(_cast(one, values, where), offsets)
    if not isinstance(given, list):
        raise DataError(
            f"field {one.name} is ragged, and was given {type(given).__name__}",
            where=where,
            hint="give a list of arrays, one a sample, or a tuple (values, offsets)",
        )
    parts = []
    for sample in given:
        values = np.asarray(sample)
        values = values.reshape(0, *one.shape).astype(one.numpy_dtype) if values.shape == (0,) else values
        _check_shape(one, values, where)
        parts.append(_cast(one, values, where))
    return Ragged.of(parts, one.numpy_dtype, one.shape)


def _check_shape(one: Field, values: npt.NDArray[Any], where: Path) -> None:
    if values.ndim < 1 or values.shape[1:] != one.shape or values.dtype.kind not in "biuf":
        raise DataError(
            f"field {one.name} has {values.dtype} of shape {list(values.shape)}, which is no number of values "
            f"of shape {list(one.shape)}",
            where=where,
        )


def _rounded(values: npt.NDArray[Any], want: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        return values.astype(want)


def _cast(one: Field, values: npt.NDArray[Any], where: Path) -> npt.NDArray[Any]:
    """The values as the field's type, where none changes by more than a float's rounding."""
    have, want = values.dtype, one.numpy_dtype
    if have != want:
        fits = np.can_cast(have, want, "safe")
        if not fits and want.kind in "iu" and have.kind in "iu" and values.size:
            limits = np.iinfo(want)
            fits = int(values.min()) >= limits.min and int(values.max()) <= limits.max
        elif not fits:
            fits = not values.size or (want.kind == "f" and have.kind in "iuf")
        if not fits:
            raise DataError(
                f"field {one.name} is {one.dtype}, and was given {have} values that do not fit", where=where
            )
        cast = _rounded(values, want)
        if want.kind == "f" and bool((np.isinf(cast) & np.isfinite(values)).any()):
            raise DataError(
                f"field {one.name} is {one.dtype}, and was given {have} values beyond its range", where=where
            )
        values = cast
    if one.classes is not None and values.size:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= len(one.classes):
            raise DataError(
                f"field {one.name} has the classes 0 … {len(one.classes) - 1}, "
                f"and was given {low if low < 0 else high}",
                where=where,
                hint="a data set with other classes is one of its own",
                field=one.name,
            )
    return values
