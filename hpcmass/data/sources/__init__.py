"""Where samples come from: one module a kind of file, each giving fields, a number of samples and blocks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from hpcmass.data.sources.base import Progress, Source, SourceField, Unread
from hpcmass.errors import DataError, MissingDependency, NotFound

__all__ = ["Progress", "Source", "SourceField", "Unread", "open_source"]

_KINDS = {
    ".npy": "npy",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".nc": "hdf5",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def open_source(
    paths: str | Path | Sequence[str | Path],
    *,
    fields: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    stack: Sequence[str] = (),
    resize: tuple[int, int] | None = None,
) -> Source | Unread:
    """Open what is to be sharded, of the kind that its name says.

    Args:
        paths: One `.npz`, HDF5, `.csv` or `.parquet` file, a folder of images, or one or more `.npy`
            files, each `path` or `field=path`.
        fields: Names of the fields to take; None: all.
        optional: Names (in lower case) taken beside `fields` where they are found.
        stack: Table columns that become one vector field `x`.
        resize: (height, width) that images are scaled to.

    Returns:
        A source, or one that must be spilled first (compressed `.npz`, CSV, Parquet).

    Raises:
        NotFound: There is no such file.
        DataError: The kind is not known, or the content is not what can be sharded.
        MissingDependency: The package that reads this kind is not installed.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not given:
        raise DataError("no input is named")
    plain = [_plain_path(one) for one in given]
    for path in plain:
        if not path.exists():
            raise NotFound("there is no such file or folder", where=path)
    path = plain[0]
    kind = "images" if path.is_dir() else _KINDS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(_KINDS)
        raise DataError(f"of the kind {path.suffix or '?'} is not known", where=path, hint=f"known: {known}")
    if stack and kind not in ("csv", "parquet"):
        raise DataError("columns can be stacked in tables only", where=path)
    if resize is not None and (kind != "images" or min(resize) < 1):
        raise DataError("only images can be scaled, to a height and width of 1 at least", where=path)
    if optional and kind == "images":
        fields = None  # there are but the image and its label
    if kind == "npy":
        for other in plain:
            if other.suffix.lower() != ".npy":
                raise DataError("is not an .npy file as the others are", where=other)
        return _module("arrays").open_npy(given, fields, optional)  # type: ignore[no-any-return]
    if len(given) > 1:
        raise DataError("only .npy files can be given together, one a field", where=plain[1])
    if kind == "npz":
        return _module("arrays").open_npz(path, fields, optional)  # type: ignore[no-any-return]
    if kind == "hdf5":
        return _module("hdf5").open_hdf5(path, fields, optional)  # type: ignore[no-any-return]
    if kind == "images":
        return _module("images", "images").open_images(path, fields, resize)  # type: ignore[no-any-return]
    table = _module("table", "tables")
    names = None if fields is None else tuple(fields)
    return table.TableUnread(path, kind, names, tuple(stack), tuple(optional))  # type: ignore[no-any-return]


def _plain_path(given: str | Path) -> Path:
    """The path in `path` or `field=path`; a file that exists under the whole text is meant as it is."""
    if Path(given).exists() or "=" not in str(given):
        return Path(given)
    return Path(str(given).partition("=")[2])


def _module(name: str, extra: str | None = None) -> Any:
    """A source module, imported when it is needed: its reader may be an optional package."""
    try:
        return import_module(f"hpcmass.data.sources.{name}")
    except ImportError as error:
        hint = f"pip install 'hpcmass[{extra}]'" if extra else None
        raise MissingDependency(f"the package {error.name} is not installed", hint=hint) from error
