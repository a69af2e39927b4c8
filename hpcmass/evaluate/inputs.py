"""Read what a model is to be asked about from the files that people have."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hpcmass.errors import DataError, MissingDependency, NotFound
from hpcmass.evaluate.interfaces import Array, FieldSpecLike, Inputs, SignatureLike
from hpcmass.files import storage_errors

Columns: TypeAlias = tuple[list[str] | None, list[Array]]
"""Names of columns, or None where a file has no header, and the columns (n,)."""


def read_inputs(path: Path, signature: SignatureLike) -> Inputs:
    """Read the inputs of a model from a file.

    - `.npy`: one array; `.npz`: arrays by input name (one input: any name, where the file has one array).
    - `.csv` with or without header, `.parquet`: a column an input by name; for a model with one vector or
      image as input exactly as many columns as that has numbers, in order.
    - `.json`: an array as nested lists, or an object of such by input name.
    - `.png`, `.jpg`: one image, of the size that the model takes.

    An array of a single sample gets its first axis.

    Args:
        path: The file.
        signature: What the model takes.

    Returns:
        An array (n, *shape), or where the model has several inputs a dict of these.

    Raises:
        NotFound: There is no such file.
        DataError: It cannot be read, or is not what the model takes.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound("there is no such file", where=path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(sorted(_READERS))
        raise DataError(
            f"cannot be read as input: {path.suffix or 'no suffix'}", where=path, hint=f"known: {known}"
        )
    with storage_errors(path, "read the file"):
        found = reader(path, signature)
    made = {spec.name: _fit(found[spec.name], spec, path) for spec in signature.inputs}
    lengths = {name: len(array) for name, array in made.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the inputs differ in their number of samples: {lengths}", where=path)
    return next(iter(made.values())) if len(made) == 1 else dict(made)


def _fit(array: Array, spec: FieldSpecLike, path: Path) -> Array:
    """An array in the shape that a model takes; numbers are not changed."""
    shape = tuple(spec.shape)
    if array.dtype.kind not in "biuf":
        raise DataError(f"input {spec.name!r} holds no numbers ({array.dtype})", where=path)
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or array.ndim == 0:
        wanted = f"(n{''.join(f', {size}' for size in shape)})"
        raise DataError(f"input {spec.name!r} has shape {array.shape}, the model takes {wanted}", where=path)
    if np.dtype(spec.dtype).kind in "iu" and array.dtype.kind == "f":
        # Text and JSON know one kind of number only.
        if array.size and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
            raise DataError(f"input {spec.name!r} has fractions, the model takes {spec.dtype}", where=path)
        array = array.astype(np.int64)
    return array


def _by_name(found: dict[str, Array], signature: SignatureLike, path: Path) -> dict[str, Array]:
    names = [spec.name for spec in signature.inputs]
    if len(names) == 1 and names[0] not in found and len(found) == 1:
        return {names[0]: next(iter(found.values()))}
    for name in names:
        if name not in found:
            known = ", ".join(list(found)[:10]) or "nothing"
            raise DataError(f"has no input {name!r}", where=path, hint=f"the file has: {known}")
    return found


def _read_npy(path: Path, signature: SignatureLike) -> dict[str, Array]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"is not a plain numpy array ({error})", where=path) from error
    return _by_name({"": array}, signature, path)


def _read_npz(path: Path, signature: SignatureLike) -> dict[str, Array]:
    wanted = {spec.name for spec in signature.inputs}
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError("is not an npz file", where=path)
            names = [name for name in file.files if name in wanted] or list(file.files)
            if not wanted <= set(names) and len(names) != 1:
                return _by_name(dict.fromkeys(names, np.zeros(0)), signature, path)
            return _by_name({name: file[name] for name in names}, signature, path)
    except DataError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds
        raise DataError(f"is not an npz file of plain arrays ({error})", where=path) from error


def _read_json(path: Path, signature: SignatureLike) -> dict[str, Array]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is not JSON ({error})", where=path) from error
    if isinstance(raw, dict) and set(raw) == {"inputs"}:
        raw = raw["inputs"]
    found = raw if isinstance(raw, dict) else {"": raw}
    return _by_name({name: _array(value, name, path) for name, value in found.items()}, signature, path)


def _array(value: Any, name: str, path: Path) -> Array:
    try:
        array = np.array(value)
    except ValueError as error:
        raise DataError(f"input {name!r} is ragged: its lists differ in length", where=path) from error
    return array


def _read_csv(path: Path, signature: SignatureLike) -> dict[str, Array]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"is not a CSV file ({error})", where=path) from error
    if not rows:
        raise DataError("is empty", where=path)
    header = None
    if any(_number(cell) is None for cell in rows[0][1]):
        header = [cell.strip() for cell in rows.pop(0)[1]]
    width = len(header if header is not None else rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise DataError(f"has {len(row)} cells, expected {width}", where=f"{path}:{number}")
    texts = list(zip(*(row for _, row in rows), strict=True)) or [()] * width
    columns = [_numbers(list(cells)) for cells in texts]
    chosen = _table((header, columns), signature, path)
    for name, column in chosen.items():
        if column.dtype.kind == "U":
            bad = next(i for i, cell in enumerate(column.ravel()) if _number(str(cell)) is None)
            number, _ = rows[bad * len(rows) // column.size]
            text = column.ravel()[bad]
            raise DataError(f"input {name!r}: {str(text)!r} is no number", where=f"{path}:{number}")
    return chosen


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _numbers(cells: list[str]) -> Array:
    values = [_number(cell) for cell in cells]
    if any(value is None for value in values):
        return np.array(cells, dtype=np.str_)
    found: NDArray[np.float64] = np.array(values, np.float64)
    return found


def _read_parquet(path: Path, signature: SignatureLike) -> dict[str, Array]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependency(
            "reading Parquet needs pyarrow", hint="pip install 'hpcmass[tables]'", where=path
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"is not a Parquet file ({error})", where=path) from error
    columns = []
    for column in table.columns:
        if column.null_count:
            columns.append(np.array(["null"] * len(column)))
        else:
            array = column.to_numpy()
            columns.append(np.array(array.tolist()) if array.dtype == object else array)
    return _table((list(table.column_names), columns), signature, path)


def _table(columns: Columns, signature: SignatureLike, path: Path) -> dict[str, Array]:
    """Choose the columns of the inputs, by name or, for a single input of many numbers, all of them."""
    names, arrays = columns
    specs = list(signature.inputs)
    if names is not None and all(spec.name in names for spec in specs):
        return {spec.name: arrays[names.index(spec.name)] for spec in specs}
    size = math.prod(specs[0].shape)
    if len(specs) == 1 and len(arrays) == size:
        return {specs[0].name: np.stack(arrays, axis=1).reshape(-1, *specs[0].shape)}
    known = f"it has {len(arrays)} columns" + (f": {', '.join(names[:8])}" if names else " and no header")
    if len(specs) == 1:
        wanted = f"a column {specs[0].name!r}, or exactly the {size} columns of {specs[0].name!r} in order"
    else:
        wanted = f"columns named {', '.join(spec.name for spec in specs)}"
    raise DataError(f"needs {wanted}", where=path, hint=known)


def _read_image(path: Path, signature: SignatureLike) -> dict[str, Array]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependency(
            "reading images needs Pillow", hint="pip install 'hpcmass[images]'", where=path
        ) from error
    if len(signature.inputs) != 1:
        raise DataError("is one image, and the model takes several inputs", where=path)
    spec = signature.inputs[0]
    shape = tuple(spec.shape)
    channels_first = len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4)
    channels = 1 if len(shape) == 2 else shape[0] if channels_first else shape[-1] if len(shape) == 3 else 0
    if channels not in (1, 3, 4):
        raise DataError(f"is an image, and the model takes samples of shape {shape}", where=path)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels]))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, OSError) as error:
        raise DataError(f"is not a whole image ({error})", where=path) from error
    height, width = shape[1:] if channels_first else shape[:2]
    if pixels.shape[:2] != (height, width):
        raise DataError(
            f"is {pixels.shape[1]} x {pixels.shape[0]} pixels, the model takes {width} x {height}",
            where=path,
            hint="scale it as the training images were scaled",
        )
    planes = pixels.reshape(height, width, channels)
    return {spec.name: (planes.transpose(2, 0, 1) if channels_first else planes).reshape(1, *shape)}


_READERS: dict[str, Callable[[Path, SignatureLike], dict[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".png": _read_image,
    ".jpg": _read_image,
    ".jpeg": _read_image,
}
