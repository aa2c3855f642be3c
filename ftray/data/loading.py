"""Rows, JSON, Parquet and Arrow tables to one Arrow table whose columns have our names.

Cells come out as strings or nulls, scores too, unchecked; `readers.read_records` cleans them.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ftray.data.arrow_values import cells_of
from ftray.data.columns import Layout
from ftray.data.files import Files
from ftray.data.lists import Unfolding, list_columns, listed_roles
from ftray.data.tables import TableBuilder
from ftray.data.values import Values, is_thing
from ftray.errors import DataError, nearest

__all__ = [
    "Choose",
    "Loaded",
    "Unit",
    "known_encoding",
    "load_json",
    "load_parquet",
    "load_rows",
    "load_table",
    "undecodable",
]

Unit = Literal["line", "row", "record", "index", "file"]
"""How places are counted: all from 1, but the index of a Python list from 0."""

Choose = Callable[[Sequence[str]], Layout]
"""Column names to their roles."""


_LISTED_ROWS = 1000
"""So many rows of Arrow with lists are objects of Python at a time."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A source's rows under our column names.

    Args:
        table: string columns named by `layout`'s roles.
        positions: the line, row or index of each row; None = they count on from the first.
        unit: what `positions` counts.
        notes: what was detected while reading.
        source: what messages call it; None = as it was given.
        files: what addresses among the cells are relative to; None = this process's folder.
    """

    layout: Layout
    table: pa.Table
    unit: Unit
    positions: pa.ChunkedArray | None = None
    notes: tuple[str, ...] = ()
    files: Files | None = None
    source: str | None = None


def load_rows(
    rows: Iterable[tuple[int, Any]],
    choose: Choose,
    *,
    source: str,
    unit: Unit,
    values: Values,
    size: int | None = None,
    listed: frozenset[str] | None = None,
) -> Loaded:
    """Python rows, each with its position: dicts, single values, or tuples of two, maybe scored.

    The first row decides the shape and, of dicts, the names; all others must have the same. So it
    decides which roles hold lists, where `listed` does not say it. For a model that takes features
    alone, a list of numbers is one thing.
    """
    stream = iter(rows)
    head = list(islice(stream, 1))
    if not head:
        raise DataError(f"{source} has no rows.")
    first_place = f"{source}, {unit} {head[0][0]}"
    layout, keys = _row_layout(head[0], choose, first_place, values)
    if listed is None and isinstance(head[0][1], Mapping):
        listed = listed_roles(head[0][1], layout)
    if listed:
        unfolding = Unfolding(layout, listed, head[0][1], first_place)
        rows = _first_rows(chain(head, stream), size)
        table, positions, layout = unfolding.table(rows, values, source=source, unit=unit)
        return Loaded(layout=layout, table=table, unit=unit, positions=positions)
    builder = TableBuilder(tuple(layout.columns))
    width = len(head[0][1]) if isinstance(head[0][1], tuple | list) else 0
    for position, row in _first_rows(chain(head, stream), size):
        place = f"{source}, {unit} {position}"
        builder.add(_row_cells(row, keys, layout, place, values, width=width), position)
    table, positions = builder.finish()
    return Loaded(layout=layout, table=table, unit=unit, positions=positions)


def _first_rows(rows: Iterable[tuple[int, Any]], size: int | None) -> Iterator[tuple[int, Any]]:
    """The first rows; those that one record gives stay together."""
    count, last = 0, None
    for position, row in rows:
        count += position != last
        last = position
        if size is not None and count > size:
            return
        yield position, row


def _row_layout(
    first: tuple[int, Any], choose: Choose, place: str, values: Values
) -> tuple[Layout, Sequence[str] | Sequence[int] | None]:
    """The layout, and where a row's cells are: keys of a dict, places in a tuple, None = itself."""
    row = first[1]
    if isinstance(row, str):
        return choose(["text"]), None
    if is_thing(row) or values.is_vector(row):
        return choose(["item"]), None
    if isinstance(row, Mapping):
        layout = choose([str(name) for name in row])
        return layout, tuple(layout.columns.values())
    names = ["column 1", "column 2"]
    if isinstance(row, tuple | list) and len(row) in (2, 3):
        names += ["score" if _is_scored(row) else "column 3"]
        layout = choose(names[: len(row)])
        return layout, tuple(names.index(name) for name in layout.columns.values())
    what = f"{type(row).__name__} of {len(row)}" if isinstance(row, tuple | list) else repr(row)
    raise DataError(
        f"{place}: {what[:80]} is not a record. Valid: a dict with named texts, a tuple of two "
        "or three texts, or of two and a number, or a text; where a text stands, an image or an "
        "array may."
    )


def _is_scored(row: Sequence[Any]) -> bool:
    return len(row) == 3 and isinstance(row[2], Real) and not isinstance(row[2], bool)


def _row_cells(
    row: Any,
    keys: Sequence[str] | Sequence[int] | None,
    layout: Layout,
    place: str,
    values: Values,
    *,
    width: int,
) -> Iterator[str | None]:
    """One row's cells; `width` is the length of the first row, which tuples must have."""
    if keys is None:
        alike = isinstance(row, str) or is_thing(row) or values.is_vector(row)
    else:
        alike = isinstance(row, Mapping if isinstance(keys[0], str) else tuple | list)
    if not alike:
        raise DataError(
            f"{place}: a {type(row).__name__}, but the first record is of another kind."
        )
    if keys is None:
        return iter((values.cell(row, "item", place),))
    if not isinstance(row, Mapping):
        if len(row) != width:
            raise DataError(f"{place}: a tuple of {len(row)}, but the first record has {width}.")
    elif missing := [key for key in keys if key not in row]:
        raise DataError(
            f"{place}: there is no '{missing[0]}', but the first record has "
            f"{', '.join(repr(key) for key in layout.columns.values())}."
        )
    return (
        values.cell(row[key], role, f"{place}, '{name}'")
        for key, (role, name) in zip(keys, layout.columns.items(), strict=True)
    )


def load_table(
    table: pa.Table, choose: Choose, *, source: str, values: Values, size: int | None = None
) -> Loaded:
    """An Arrow table; integer labels and dictionary columns become strings."""
    layout = choose(table.column_names)
    if table.num_rows == 0:
        raise DataError(f"{source} has no rows.")
    table = table.slice(0, size)
    if listed := list_columns(table.schema, layout):
        rows = enumerate(_dicts(table.select(list(layout.columns.values()))), 1)
        return load_rows(
            rows, lambda _: layout, source=source, unit="row", values=values, listed=listed
        )
    columns = {
        role: cells_of(table.column(name), role, values, source=source, name=name)
        for role, name in layout.columns.items()
    }
    return Loaded(layout=layout, table=pa.table(columns), unit="row")


def _dicts(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as objects of Python, some at a time; tensors are arrays."""
    for batch in table.to_batches(_LISTED_ROWS):
        columns = (
            column.to_numpy_ndarray()
            if isinstance(column.type, pa.FixedShapeTensorType) and not column.null_count
            else column.to_pylist()
            for column in batch.columns
        )
        for row in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, row, strict=True))


def load_parquet(
    path: Path, choose: Choose, *, source: str, values: Values, size: int | None = None
) -> Loaded:
    """A Parquet file, memory-mapped; only the columns with a role are read."""
    try:
        names = pq.read_schema(path, memory_map=True).names
        layout = choose(names)
        wanted = list(layout.columns.values())
        table = pq.read_table(path, columns=wanted, memory_map=True, partitioning=None)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{source} is not a readable Parquet file: {error}") from None
    return load_table(table, lambda _: layout, source=source, values=values, size=size)


def load_json(
    path: Path,
    choose: Choose,
    *,
    source: str,
    values: Values,
    encoding: str = "utf-8",
    size: int | None = None,
) -> Loaded:
    """JSON lines, or one JSON list of records."""
    encoding = known_encoding(encoding)
    load = partial(load_rows, choose=choose, source=source, values=values, size=size)
    try:
        with path.open(encoding=encoding) as file:
            start = file.read(4096).lstrip()
            file.seek(0)
            if start.startswith("[") and path.suffix.lower() == ".json":
                records = _parsed(file.read(), source)
                return load(enumerate(records, 1), unit="record")
            return load(_json_lines(file, source), unit="line")
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
