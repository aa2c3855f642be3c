"""Columns of Arrow to columns of cells, without a Python object for each number or byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.columns import role_of
from ftray.data.values import LISTS, SCORE_ROLES, Values, is_plain_role, plain
from ftray.errors import DataError
from ftray.media import MARK

__all__ = ["cells_of", "check_marks"]

Place = Callable[[int], str]
"""A row to its place in the source."""


def cells_of(
    column: pa.ChunkedArray, role: str, values: Values, *, source: str, name: str
) -> pa.ChunkedArray:
    """A column's cells: strings, and references to what is no text.

    Args:
        column: texts or numbers; and, unless the role is a label, a score or an id: binary,
            struct{bytes, path}, lists of numbers, tensors.
        role: its role.
        values: keeps the contents.
        source: whose column it is, for messages.
        name: its name.

    Raises:
        DataError: for another type, or a value that cannot be what it is taken for.
    """

    def place(row: int) -> str:
        return f"{source}, row {row + 1}, '{name}'"

    kind = column.type
    is_score = role_of(role) in SCORE_ROLES
    if _is_textual(kind) or (is_score and pa.types.is_decimal(kind)):
        cells = column.cast(pa.string())
        check_marks(cells, place)
        return cells
    if is_plain_role(role) or not _holds_things(kind):
        needed = "numbers" if is_score else "texts or whole numbers"
        if not is_plain_role(role):
            needed += ", images (binary or struct{bytes, path}), or lists of numbers"
        hint = ""
        if role == "label" and _holds_things(kind):
            hint = " If they are the items, name both with `columns`, as {item: …, label: …}."
        elif _is_list(kind):
            hint = f" {LISTS}"
        raise DataError(
            f"{source}: column '{name}' holds {kind}, and {role} must be {needed}.{hint}"
        )
    cells, row = [], 0
    for chunk in column.chunks:
        found = list(_chunk_cells(chunk, row, role, values, place))
        cells.append(pa.array(found, pa.string()))
        row += len(chunk)
    return pa.chunked_array(cells, pa.string())


def check_marks(cells: pa.ChunkedArray, place: Place) -> None:
    """No text holds U+0000, which starts a reference.

    Raises:
        DataError: for the first that does.
    """
    found = pc.index(pc.match_substring(cells, MARK), True).as_py()
    if found >= 0:
        plain(cells[found].as_py(), place(found))


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


def _holds_things(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_things(kind.storage_type)
    if _is_list(kind):
        inner = kind.value_type
        return pa.types.is_integer(inner) or pa.types.is_floating(inner) or _holds_list(inner)
    return _is_binary(kind) or _is_stored(kind)


def _holds_list(kind: pa.DataType) -> bool:
    return _is_list(kind) and _holds_things(kind)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests)


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in tests) or kind == pa.binary_view()


def _is_stored(kind: pa.DataType) -> bool:
    """Whether it is struct{bytes, path}, as Hugging Face stores images."""
    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _chunk_cells(
    chunk: pa.Array, start: int, role: str, values: Values, place: Place
) -> Iterator[str | None]:
    if isinstance(chunk.type, pa.FixedShapeTensorType):
        arrays = chunk.to_numpy_ndarray() if not chunk.null_count else chunk.storage
        if isinstance(arrays, np.ndarray):
            return (values.array(one, role, place(start + i)) for i, one in enumerate(arrays))
    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
    if _is_binary(chunk.type):
        return (
            values.encoded(memoryview(scalar.as_buffer()), role, place(start + i))
            if scalar.is_valid
            else None
            for i, scalar in enumerate(chunk.cast(pa.large_binary()))
        )
    if _is_stored(chunk.type):
        fields = dict(zip([field.name for field in chunk.type], chunk.flatten(), strict=True))
        data, paths = fields["bytes"], fields["path"]
        return (
            values.stored(
                memoryview(one.as_buffer()) if one.is_valid else None,
                path,
                role,
                place(start + i),
            )
            for i, (one, path) in enumerate(zip(data, paths.to_pylist(), strict=True))
        )
    return (
        None if array is None else values.array(array, role, place(start + i))
        for i, array in enumerate(_arrays(chunk))
    )


def _arrays(chunk: pa.Array) -> Iterator[Any]:
    """The arrays of a list column; None where there is none."""
    if _is_list(chunk.type.value_type):
        for scalar in chunk:
            yield _nested(scalar.values) if scalar.is_valid else None
        return
    for scalar in chunk:
        yield scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None


def _nested(rows: pa.Array) -> Any:
    """Lists of lists as one array; it has no columns where their lengths differ."""
    try:
        array = np.asarray(rows.to_pylist())
        return array if array.dtype.kind in "biuf" else array.astype(float)
    except (ValueError, TypeError):
        return np.empty((len(rows), 0))
