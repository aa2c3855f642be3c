"""Rows, JSON, Parquet and Arrow tables to one Arrow table whose columns have our names.

Cells come out as strings or nulls, scores too, unchecked and unstripped; `readers.read_records`
cleans them.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ftray.data.columns import Layout
from ftray.errors import DataError, nearest
from ftray.media import NO_BLOBS, Blobs

__all__ = [
    "Choose",
    "Loaded",
    "TableBuilder",
    "Unit",
    "known_encoding",
    "load_json",
    "load_parquet",
    "load_rows",
    "load_table",
    "undecodable",
]

Unit = Literal["line", "row", "record", "index"]
"""How places are counted: lines, rows and records from 1; the index of a Python list from 0."""

Choose = Callable[[Sequence[str]], Layout]
"""Column names to their roles."""

_CHUNK_ROWS = 50_000


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source's rows under our column names.

    Args:
        table: string columns named by `layout`'s roles.
        positions: the line, row or index of each row; None = they count on from the first.
        unit: what `positions` counts.
        notes: what was detected while reading.
        blobs: contents of things that are no texts, and lie in no file.
    """

    layout: Layout
    table: pa.Table
    unit: Unit
    positions: pa.ChunkedArray | None = None
    notes: tuple[str, ...] = ()
    blobs: Blobs = NO_BLOBS


class TableBuilder:
    """Rows of cells to Arrow columns, with at most one chunk of rows in Python objects."""

    def __init__(self, roles: Sequence[str]) -> None:
        self.rows = 0
        self._roles = tuple(roles)
        self._cells: list[list[str | None]] = [[] for _ in self._roles]
        self._chunks: list[list[pa.Array]] = [[] for _ in self._roles]
        self._positions: list[int] = []
        self._position_chunks: list[pa.Array] = []

    def add(self, cells: Iterable[str | None], position: int) -> None:
        """Append one row, which stands at `position` of the source."""
        for column, cell in zip(self._cells, cells, strict=True):
            column.append(cell)
        self._positions.append(position)
        self.rows += 1
        if len(self._positions) == _CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        for chunks, cells in zip(self._chunks, self._cells, strict=True):
            chunks.append(pa.array(cells, pa.string()))
            cells.clear()
        self._position_chunks.append(pa.array(self._positions, pa.int64()))
        self._positions.clear()

    def finish(self) -> tuple[pa.Table, pa.ChunkedArray]:
        """The table, and the position of each of its rows."""
        self._flush()
        columns = [pa.chunked_array(chunks, pa.string()) for chunks in self._chunks]
        return (
            pa.table(dict(zip(self._roles, columns, strict=True))),
            pa.chunked_array(self._position_chunks, pa.int64()),
        )


def load_rows(
    rows: Iterable[tuple[int, Any]],
    choose: Choose,
    *,
    source: str,
    unit: Unit,
    size: int | None = None,
) -> Loaded:
    """Python rows, each with its position: dicts, texts, or tuples of two texts and maybe a score.

    The first row decides the shape and, of dicts, the names; all others must have the same.
    """
    stream = iter(rows)
    head = list(islice(stream, 1))
    if not head:
        raise DataError(f"{source} has no rows.")
    layout, keys = _row_layout(head[0], choose, f"{source}, {unit} {head[0][0]}")
    builder = TableBuilder(tuple(layout.columns))
    width = len(head[0][1])
    for position, row in islice(chain(head, stream), size):
        place = f"{source}, {unit} {position}"
        builder.add(_row_cells(row, keys, layout, place, width=width), position)
    table, positions = builder.finish()
    return Loaded(layout=layout, table=table, unit=unit, positions=positions)


def _row_layout(
    first: tuple[int, Any], choose: Choose, place: str
) -> tuple[Layout, Sequence[str] | Sequence[int] | None]:
    """The layout, and where a row's cells are: keys of a dict, places in a tuple, None = itself."""
    row = first[1]
    if isinstance(row, str):
        return choose(["text"]), None
    if isinstance(row, Mapping):
        layout = choose([str(name) for name in row])
        return layout, tuple(layout.columns.values())
    names = ["column 1", "column 2", "score"]
    if isinstance(row, tuple | list) and (len(row) == 2 or _is_scored(row)):
        layout = choose(names[: len(row)])
        return layout, tuple(names.index(name) for name in layout.columns.values())
    what = f"{type(row).__name__} of {len(row)}" if isinstance(row, tuple | list) else repr(row)
    raise DataError(
        f"{place}: {what[:80]} is not a record. Valid: a dict with named texts, a tuple of two "
        "texts, or of two and a number, or a text."
    )


def _is_scored(row: Sequence[Any]) -> bool:
    return len(row) == 3 and isinstance(row[2], Real) and not isinstance(row[2], bool)


def _row_cells(
    row: Any,
    keys: Sequence[str] | Sequence[int] | None,
    layout: Layout,
    place: str,
    *,
    width: int,
) -> Iterator[str | None]:
    """One row's cells; `width` is the length of the first row, which tuples must have."""
    if keys is None:
        alike = isinstance(row, str)
    else:
        alike = isinstance(row, Mapping if isinstance(keys[0], str) else tuple | list)
    if not alike:
        raise DataError(
            f"{place}: a {type(row).__name__}, but the first record is of another kind."
        )
    if keys is None:
        return iter((row,))
    if not isinstance(row, Mapping):
        if len(row) != width:
            raise DataError(f"{place}: a tuple of {len(row)}, but the first record has {width}.")
    elif missing := [key for key in keys if key not in row]:
        raise DataError(
            f"{place}: there is no '{missing[0]}', but the first record has "
            f"{', '.join(repr(key) for key in layout.columns.values())}."
        )
    return (_cell(row[key], f"{place}, '{name}'") for key, name in _cells_of(keys, layout))


def _cells_of(keys: Sequence[Any], layout: Layout) -> Iterator[tuple[Any, str]]:
    return zip(keys, layout.columns.values(), strict=True)


def _cell(value: Any, place: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value != value:
        return None  # pandas writes a missing cell as NaN
    if isinstance(value, int | float) or type(value).__module__ == "numpy":
        return str(value)
    raise DataError(f"{place}: {type(value).__name__} is not a text.")


def load_table(table: pa.Table, choose: Choose, *, source: str) -> Loaded:
    """An Arrow table; integer labels and dictionary columns become strings."""
    layout = choose(table.column_names)
    columns: dict[str, pa.ChunkedArray] = {}
    for role, name in layout.columns.items():
        column = table.column(name)
        if not (_is_textual(column.type) or (role == "score" and pa.types.is_decimal(column.type))):
            needed = "numbers" if role == "score" else "texts or whole numbers"
            raise DataError(
                f"{source}: column '{name}' holds {column.type}, and {role} must be {needed}."
            )
        columns[role] = column.cast(pa.string())
    if table.num_rows == 0:
        raise DataError(f"{source} has no rows.")
    return Loaded(layout=layout, table=pa.table(columns), unit="row")


def _is_textual(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_textual(kind.value_type)
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_floating,  # whole numbers beside missing cells, as pandas writes them
        pa.types.is_boolean,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def load_parquet(path: Path, choose: Choose, *, source: str) -> Loaded:
    """A Parquet file, memory-mapped; only the columns with a role are read."""
    try:
        names = pq.read_schema(path, memory_map=True).names
        wanted = list(choose(names).columns.values())
        table = pq.read_table(path, columns=wanted, memory_map=True, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source} is not a readable Parquet file: {error}") from None
    layout = choose(names)
    loaded = load_table(table, lambda _: layout, source=source)
    return Loaded(layout=layout, table=loaded.table, unit="row")


def load_json(
    path: Path, choose: Choose, *, source: str, encoding: str = "utf-8", size: int | None = None
) -> Loaded:
    """JSON lines, or one JSON list of records."""
    encoding = known_encoding(encoding)
    try:
        with path.open(encoding=encoding) as file:
            start = file.read(4096).lstrip()
            file.seek(0)
            if start.startswith("[") and path.suffix.lower() == ".json":
                records = _parsed(file.read(), source)
                return load_rows(
                    enumerate(records, 1), choose, source=source, unit="record", size=size
                )
            lines = _json_lines(file, source)
            return load_rows(lines, choose, source=source, unit="line", size=size)
    except UnicodeError:
        hint = "Name the file's own encoding with csv_options.encoding."
        raise undecodable(path, encoding, source, hint) from None


def _json_lines(file: Iterable[str], source: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _parsed(line, source, number)


def _parsed(text: str, source: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source}, line {line or error.lineno}: not valid JSON ({error.msg}). Valid: one "
            "record a line, or a .json file that holds one list of records."
        ) from None


def known_encoding(name: str) -> str:
    """Python's name of an encoding; UTF-8 is read with or without a byte order mark."""
    try:
        known = codecs.lookup(name).name
        "".encode(known)  # not all are of texts: hex is not
    except (LookupError, ValueError):
        raise DataError(
            f"csv_options.encoding: there is no encoding '{name}'."
            + nearest(name, ("utf-8", "utf-16", "cp1252", "latin-1", "shift_jis", "gb18030"))
        ) from None
    return "utf-8-sig" if known == "utf-8" else known


def undecodable(path: Path, encoding: str, source: str, hint: str) -> DataError:
    """The error for a file that `encoding` cannot decode, with the line of the first bad byte."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    shown = ""
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 16)
            try:
                line += decoder.decode(block, final=not block).count("\n")
            except UnicodeDecodeError as error:
                good = error.object[: error.start].decode(encoding, errors="ignore")
                line += good.count("\n")
                shown = f" (byte 0x{error.object[error.start]:02x})"
                break
            except UnicodeError as error:  # of the whole: UTF-16 without its byte order mark
                shown = f" ({error})"
                break
            if not block:
                break
    return DataError(
        f"{source}, line {line}: not {encoding.removesuffix('-sig')} text{shown}. {hint}"
    )
