"""Rows of cells to an Arrow table that may be larger than memory."""

from __future__ import annotations

import mmap
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc

from ftray.errors import DataError

__all__ = ["TableBuilder", "let_pages_go"]

_CHUNK_ROWS = 50_000
_CHUNK_CHARACTERS = 1 << 24
_HELD_BYTES = 1 << 25
_POSITION = "position"
_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def let_pages_go() -> None:
    """Give the pages of mapped tables back to the system, which has them in the file.

    They are read again when they are needed; without this a pass over a table leaves all of it
    among the memory of the process.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        for pages in list(_MAPPED):
            pages.madvise(mmap.MADV_DONTNEED)


class TableBuilder:
    """Rows of cells to Arrow columns, stripped, in bounded memory.

    At most one chunk of rows is in Python objects. What is more than `_HELD_BYTES` of Arrow goes to
    an unnamed temporary file, and the table is then a view of that.
    """

    def __init__(self, roles: Sequence[str]) -> None:
        self.rows = 0
        self._roles = tuple(roles)
        fields = [*((role, pa.string()) for role in self._roles), (_POSITION, pa.int64())]
        self._schema = pa.schema(fields)
        self._cells: list[list[str | None]] = [[] for _ in self._roles]
        self._positions: list[int] = []
        self._characters = 0
        self._batches: list[pa.RecordBatch] = []
        self._file: _TemporaryTable | None = None

    def add(self, cells: Iterable[str | None], position: int) -> None:
        """Append one row, which stands at `position` of the source."""
        for column, cell in zip(self._cells, cells, strict=True):
            column.append(cell)
            self._characters += len(cell or "")
        self._positions.append(position)
        self.rows += 1
        if len(self._positions) == _CHUNK_ROWS or self._characters > _CHUNK_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        columns = [pc.utf8_trim_whitespace(pa.array(cells, pa.string())) for cells in self._cells]
        positions = pa.array(self._positions, pa.int64())
        self._batches.append(pa.record_batch([*columns, positions], schema=self._schema))
        for cells in self._cells:
            cells.clear()
        self._positions.clear()
        self._characters = 0
        if sum(batch.nbytes for batch in self._batches) > _HELD_BYTES:
            self._file = self._file or _TemporaryTable(self._schema)
            self._file.write(self._batches)
            self._batches.clear()

    def finish(self) -> tuple[pa.Table, pa.ChunkedArray]:
        """The table, and the position of each of its rows."""
        self._flush()
        if self._file is None:
            table = pa.Table.from_batches(self._batches, self._schema)
        else:
            self._file.write(self._batches)
            table = self._file.mapped()
        return table.select(self._roles), table[_POSITION]


class _TemporaryTable:
    """A table in a file that nobody else sees, and that is gone when nobody reads it any more.

    Raises:
        DataError: where there is no room for it.
    """

    def __init__(self, schema: pa.Schema) -> None:
        with _needing_room():
            self._file = tempfile.TemporaryFile()
            self._writer = pa.ipc.new_file(self._file, schema)

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Append batches."""
        with _needing_room():
            for batch in batches:
                self._writer.write(batch)

    def mapped(self) -> pa.Table:
        """All batches, as pages of the file; Arrow gives back what it used to make them."""
        with _needing_room():
            self._writer.close()
            self._file.flush()
        pages = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        _MAPPED.add(pages)
        self._file.close()
        pa.default_memory_pool().release_unused()
        return pa.ipc.open_file(pa.py_buffer(pages)).read_all()


@contextmanager
def _needing_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The folder for temporary files, '{tempfile.gettempdir()}', cannot take the data: "
            f"{error}. The environment variable TMPDIR names another one."
        ) from None
