"""Tables: CSV and Parquet through Arrow, read in batches and spilled into plain arrays, a file a column."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from hpcmass.data.ragged import OFFSETS, Ragged
from hpcmass.data.sources.arrays import ArrayFile, array_source
from hpcmass.data.sources.base import Progress, Source
from hpcmass.data.sources.words import MAX_CLASSES
from hpcmass.errors import CorruptError, DataError
from hpcmass.files import check_name, storage_errors

_BLOCK_BYTES = 1 << 22
_BATCH_ROWS = 1 << 14
_CONVERSION = re.compile(r"column #(\d+)(?:.*?Row #(\d+))?.*?conversion error to (\w+): (.*)", re.DOTALL)


@dataclass(frozen=True)
class TableUnread:
    """A CSV or Parquet file.

    Attributes:
        path: The file.
        kind: `csv` or `parquet`.
        names: Columns to take as fields (the name `x` standing for the stacked ones), or None for all.
        stack: Columns that become one vector field `x`, in this order.
        optional: Columns (in lower case) that are taken beside `names` where they are found.
    """

    path: Path
    kind: str
    names: tuple[str, ...] | None = None
    stack: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def spill(self, scratch: Path, progress: Progress | None) -> Source:
        """Copy the wanted columns into one file a field.

        Raises:
            DataError: A value is missing or does not fit its column; the message names row and column.
            CorruptError: The file is not such a table.
        """
        if self.kind == "parquet":
            return self._spill(scratch, self._parquet(progress))
        # Arrow fixes a column's type by the first block; whole numbers may turn out to be decimals later.
        floats: set[str] = set()
        while True:
            attempt = scratch / f"attempt-{len(floats)}"
            with storage_errors(scratch, "write the file"):
                attempt.mkdir()
            try:
                return self._spill(attempt, self._csv(floats, progress))
            except _NotWhole as error:
                floats.add(error.column)

    def _columns(self, present: Sequence[str]) -> list[str]:
        """Columns to read: the stacked ones and the wanted others."""
        twice = [name for number, name in enumerate(present) if name in present[:number]]
        if twice:
            raise DataError(f"has two columns called {twice[0]!r}", where=self.path)
        others = [name for name in present if name not in self.stack]
        if self.names is not None:
            wanted = [name for name in self.names if not (name == "x" and self.stack)]
            found = [name for name in others if name.lower() in self.optional and name not in wanted]
            others = [name for name in wanted if name not in self.stack] + found
        for name in [*self.stack, *others]:
            if name not in present:
                raise DataError(
                    f"has no column {name!r}", where=self.path, hint=f"there are: {', '.join(present)}"
                )
        if self.stack and "x" in others:
            raise DataError("has a column x, the name of the stacked columns", where=self.path)
        for name in others:
            check_name(name, "column")
        return [*self.stack, *others]

    def _csv(self, floats: set[str], progress: Progress | None) -> Iterator[pa.RecordBatch]:
        with storage_errors(self.path, "read the file"):
            total = self.path.stat().st_size
            with open(self.path, "rb") as file:
                header = file.readline()
        if not header.strip():
            raise DataError("is empty; the first line must name the columns", where=self.path)
        try:
            with pa.csv.open_csv(io.BytesIO(header), read_options=_csv_read()) as names_only:
                present = names_only.schema.names
        except pa.ArrowInvalid as error:
            raise CorruptError(f"is not a readable CSV table ({error})", where=self.path) from error
        columns = self._columns(present)
        convert = pa.csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(floats, pa.float64()), strings_can_be_null=True
        )
        done = 0
        try:
            with pa.csv.open_csv(self.path, read_options=_csv_read(), convert_options=convert) as reader:
                for batch in reader:
                    yield batch
                    done += batch.nbytes
                    if progress:
                        progress("read", min(done, total), total)
        except pa.ArrowInvalid as error:
            self._explain(error, present, floats)

    def _explain(self, error: Exception, present: Sequence[str], floats: set[str]) -> None:
        match = _CONVERSION.search(str(error))
        if match is None:
            raise CorruptError(f"is not a readable CSV table ({error})", where=self.path) from error
        column = present[int(match[1])]
        if match[3] == "int64" and column not in floats:
            raise _NotWhole(column) from error
        where = f"{self.path}:{match[2]}" if match[2] else self.path
        raise DataError(
            f"column {column}, line {match[2] or '?'}: not a {match[3]} as in the rows before: {match[4]}",
            where=where,
            hint="correct the value, or leave the column out",
        ) from error

    def _parquet(self, progress: Progress | None) -> Iterator[pa.RecordBatch]:
        with contextlib.ExitStack() as stack:
            try:
                with storage_errors(self.path, "read the file"):
                    open(self.path, "rb").close()
                file = stack.enter_context(pa.parquet.ParquetFile(self.path))
                columns = self._columns(list(file.schema_arrow.names))
                done, total = 0, file.metadata.num_rows
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns, use_threads=False):
                    yield batch.select(columns)
                    done += batch.num_rows
                    if progress:
                        progress("read", done, total)
            except (pa.ArrowInvalid, OSError) as error:
                raise CorruptError(f"is not a readable Parquet table ({error})", where=self.path) from error

    def _spill(self, scratch: Path, batches: Iterator[pa.RecordBatch]) -> Source:
        spilled: dict[str, _Column] = {}
        rows = 0
        with contextlib.ExitStack() as stack, storage_errors(scratch, "write the file"):
            for batch in batches:
                values = {
                    name: self._values(batch.column(index), name, rows, spilled)
                    for index, name in enumerate(batch.schema.names)
                }
                if self.stack:
                    values = {"x": self._stacked(values, spilled)} | {
                        name: one for name, one in values.items() if name not in self.stack
                    }
                for name in [name for name, one in values.items() if isinstance(one, Ragged)]:
                    ends = spilled.setdefault(name + OFFSETS, _Column())
                    lists = values[name]
                    offsets = lists.offsets + ends.last
                    ends.last = int(offsets[-1])
                    values |= {name: lists.values, name + OFFSETS: offsets[1:] if ends.rows else offsets}
                for name, one in values.items():
                    column = spilled.setdefault(name, _Column())
                    if column.file is None:
                        column.path = scratch / f"{sum(one.file is not None for one in spilled.values())}.bin"
                        column.file = stack.enter_context(open(column.path, "xb", buffering=0))
                        column.dtype, column.shape = one.dtype, one.shape[1:]
                    data = np.ascontiguousarray(one, dtype=column.dtype).reshape(-1).view(np.uint8).data
                    column.rows += len(one)
                    while data:
                        data = data[column.file.write(data) :]
                rows += batch.num_rows
        if not rows:
            raise DataError("holds no rows", where=self.path)
        arrays, classes = {}, {}
        for name, column in spilled.items():
            if column.file is None:
                continue
            codes = None
            if column.codes:
                order = sorted(column.codes)
                number = {text: place for place, text in enumerate(order)}
                codes = tuple(number[text] for text in column.codes)
                classes[name] = tuple(order)
            arrays[name] = ArrayFile(column.path, 0, column.dtype, (column.rows, *column.shape), codes=codes)
        return array_source(self.kind, arrays, [self.path], None, classes)

    def _values(self, column: Any, name: str, first_row: int, spilled: dict[str, _Column]) -> Any:
        """The numbers of a column's batch, or a `Ragged` of its lists.

        Text becomes numbers in the order of its first appearance.
        """
        if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            return self._lists(column, name, first_row)
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if pa.types.is_dictionary(column.type):
            column, text = column.cast(column.type.value_type), True
        if column.null_count:
            self._missing(pc.is_null(column), name, first_row)
        if pa.types.is_floating(column.type):
            values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
            if np.isnan(values).any():
                self._missing(pc.is_nan(column), name, first_row)
            return values
        if text and name not in self.stack:
            codes = spilled.setdefault(name, _Column()).codes
            encoded = column.dictionary_encode()
            places = [codes.setdefault(word, len(codes)) for word in encoded.dictionary.to_pylist()]
            if len(codes) > MAX_CLASSES:
                raise DataError(
                    f"column {name} holds more than {MAX_CLASSES} different texts",
                    where=self.path,
                    hint="leave it out by naming the columns to take",
                )
            coded: npt.NDArray[Any] = np.asarray(places, np.int64)[encoded.indices.to_numpy()]
            return coded
        if not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
            hint = "leave it out by naming the columns to take"
            raise DataError(f"column {name} holds {column.type}, not numbers", where=self.path, hint=hint)
        numbers: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return numbers

    def _lists(self, column: Any, name: str, first_row: int) -> Ragged:
        """A column of lists of numbers."""
        if column.null_count:
            self._missing(pc.is_null(column), name, first_row)
        kind, flat = column.type.value_type, column.flatten()
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            hint = "leave it out by naming the columns to take"
            raise DataError(
                f"column {name} holds {column.type}, no lists of numbers", where=self.path, hint=hint
            )
        if flat.null_count:
            row = first_row + 1
            raise DataError(
                f"column {name}: a list from row {row} on lacks a value", where=self.path,
                hint="fill it in, or leave the column out",
            )  # fmt: skip
        offsets = np.asarray(column.offsets.to_numpy(), np.int64)
        return Ragged(flat.to_numpy(zero_copy_only=False), offsets - offsets[0])

    def _missing(self, mask: Any, name: str, first_row: int) -> None:
        row = first_row + int(np.flatnonzero(mask.to_numpy(zero_copy_only=False))[0]) + 1
        line = f" (line {row + 1})" if self.kind == "csv" else ""
        raise DataError(
            f"column {name}, row {row}{line}: the value is missing",
            where=self.path,
            hint="fill it in, remove the row, or leave the column out",
            row=row,
            column=name,
        )

    def _stacked(self, values: dict[str, npt.NDArray[Any]], spilled: dict[str, _Column]) -> npt.NDArray[Any]:
        parts = [values[name] for name in self.stack]
        # Whole and decimal columns together are decimals; so are those whose type the first batch fixed.
        kind = np.result_type(*parts)
        if "x" in spilled and spilled["x"].dtype != kind:
            kind = spilled["x"].dtype
        return np.stack(parts, axis=1).astype(kind)


class _NotWhole(Exception):
    """A column that began with whole numbers goes on with something else."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


@dataclass
class _Column:
    """A field on its way into its scratch file."""

    codes: dict[str, int] = field(default_factory=dict)
    file: IO[bytes] | None = None
    path: Path = Path()
    dtype: np.dtype[Any] = np.dtype(np.float64)  # noqa: RUF009
    shape: tuple[int, ...] = ()
    rows: int = 0
    last: int = 0  # of offsets: the end of the last list


def _csv_read() -> Any:
    return pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
