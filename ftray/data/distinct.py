"""Which cells, and which rows, are equal: numbers in order of first appearance.

Tables of many millions of rows lie in files (`tables.TableBuilder`), and Arrow's own dictionaries
would bring all of their strings into memory, several times over. So 64-bit hashes, 8 bytes a cell,
find what may be equal, and only the distinct strings are kept. Strings decide in the end: each cell
is compared with the one it was taken for, so that no collision of hashes ever joins two texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.columns import ROLES_OF, Kind, roles_like
from ftray.data.tables import let_pages_go
from ftray.data.teacher import margins

__all__ = ["Coded", "code", "coded", "numbered", "numbered_rows"]

Numbers = npt.NDArray[np.int64]

_CHUNK_ROWS = 50_000
_BLOCK_KEYS = 1 << 20
_MAX_BYTES = np.iinfo(np.int32).max
_MAX_KEY = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class Coded:
    """The cells of a table of records as numbers.

    Args:
        texts: the distinct texts of all columns, `(T,)`, in order of first appearance, column by
            column.
        columns: which of these each row holds, `(N,)` for each column of texts.
        labels: of labelled texts the distinct labels, `(L,)`, in order of first appearance.
        marks: which of these each row has, `(N,)`; of rows with scores, equal numbers are equal
            scores, or equal margins of a teacher's.
    """

    texts: pa.Array
    columns: tuple[Numbers, ...]
    labels: pa.Array | None = None
    marks: Numbers | None = None

    @property
    def keys(self) -> tuple[Numbers, ...]:
        """All that tells rows apart."""
        return self.columns if self.marks is None else (*self.columns, self.marks)


def code(table: pa.Table, kind: Kind) -> Coded:
    """Number the cells of a table of records, which has no nulls."""
    roles = [role for role in ROLES_OF[kind] if role not in ("label", "score")]
    names = [name for role in roles for name in roles_like(table.column_names, role)]
    texts, columns = coded(*(table[name] for name in names))
    labels, marks = None, None
    if kind == "labelled":
        labels, (marks,) = coded(table["label"])
    elif kind == "scored":
        marks = _numbers(table["score"].to_numpy())
    elif kind == "distillation":
        marks, _ = numbered_rows(*map(_numbers, margins(table)))
    return Coded(texts=texts, columns=tuple(columns), labels=labels, marks=marks)


def _numbers(scores: npt.NDArray[np.float64]) -> Numbers:
    """Equal numbers for equal scores, `(N,)`."""
    return numbered(scores.view(np.int64))[0]


def coded(*columns: pa.ChunkedArray) -> tuple[pa.Array, list[Numbers]]:
    """Distinct values over all columns in order of first appearance, and each column's codes.

    Beside what it returns it needs some 40 bytes a cell. Values of more than 2 GiB are a
    `large_string` array.
    """
    parts = [part for column in columns for part in _parts(column)]
    hashes = np.empty(sum(map(len, columns)), np.int64)
    for rows, part in _placed(parts):
        hashes[rows] = _hashes(part)
    codes, first = numbered(hashes)
    del hashes
    is_first = np.zeros(len(codes), bool)
    is_first[first] = True
    del first
    values = _joined(parts, is_first)
    wrong, strings = _collisions(parts, codes, is_first, values)
    if len(wrong):
        # Equal strings have equal hashes: none of these equals a value that is known already.
        others = pc.dictionary_encode(strings)
        codes[wrong] = len(values) + others.indices.to_numpy()
        values = _joined([values, others.dictionary])
        former = codes
        codes, first = numbered(former)
        values = values.take(pa.array(former[first]))
    return values, np.split(codes, np.cumsum([len(column) for column in columns])[:-1])


def numbered(keys: Numbers) -> tuple[Numbers, Numbers]:
    """Number keys in order of first appearance.

    Equal keys stand in the same block, and blocks are sorted one after the other.

    Args:
        keys: `(n,)`.

    Returns:
        The number of each key, `(n,)`, and where each number first stands, `(distinct,)`.
    """
    earliest = np.empty(len(keys), np.int64)  # where the key of each first stands
    blocks = len(keys) // _BLOCK_KEYS + 1
    for block in range(blocks):
        rows = np.flatnonzero(keys % blocks == block)
        rows = rows[np.argsort(keys[rows], kind="stable")]
        ordered = keys[rows]
        starts = np.flatnonzero(np.append(ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]))
        earliest[rows] = np.repeat(rows[starts], np.diff(starts, append=len(rows)))
    is_first = earliest == np.arange(len(keys))
    numbers = np.cumsum(is_first) - 1
    return numbers[earliest], np.flatnonzero(is_first)


def numbered_rows(*columns: Numbers) -> tuple[Numbers, Numbers]:
    """As `numbered`, of rows; `columns` are numbers of 0 and more, `(n,)` each."""
    keys = columns[0]
    for column in columns[1:]:
        width = int(column.max(initial=0)) + 1
        if int(keys.max(initial=0)) >= _MAX_KEY // width:
            keys, _ = numbered(keys)
        keys = keys * width + column
    return numbered(keys)


def _parts(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """A column in parts that are small enough to become Python strings."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), _CHUNK_ROWS):
            yield chunk.slice(start, _CHUNK_ROWS)


def _placed(parts: Sequence[pa.Array]) -> Iterator[tuple[slice, pa.Array]]:
    """Each part with its place among the cells of all parts; no more than one stays in memory."""
    start = 0
    for part in parts:
        yield slice(start, start + len(part)), part
        start += len(part)
        let_pages_go()


def _hashes(part: pa.Array) -> Numbers:
    """Python's own hash of each string, `(n,)`: SipHash, which nobody can force to collide.

    Its secret key differs from process to process; nothing that is kept depends on it.
    """
    return np.fromiter(map(hash, part.to_pylist()), np.int64, len(part))


def _collisions(
    parts: Sequence[pa.Array], codes: Numbers, is_first: npt.NDArray[np.bool_], values: pa.Array
) -> tuple[Numbers, pa.Array]:
    """The cells that are not equal to the value of their code: where they stand, and the cells."""
    rows, strings = [np.zeros(0, np.int64)], [values.slice(0, 0)]
    for place, part in _placed(parts):
        again = np.flatnonzero(~is_first[place])
        cells = part.take(pa.array(again))
        differ = pc.not_equal(cells, values.take(pa.array(codes[place][again])).cast(cells.type))
        if pc.any(differ).as_py():
            rows.append(place.start + again[differ.to_numpy(zero_copy_only=False)])
            strings.append(cells.filter(differ))
    return np.concatenate(rows), _joined(strings)


def _joined(arrays: Sequence[pa.Array], kept: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Strings end to end, with 64-bit offsets where 32 bits are too few.

    `pa.concat_arrays` needs all of them beside the result; these go one after the other.

    Args:
        arrays: of `n` strings in all.
        kept: which of them are taken, `(n,)`; None = all.
    """
    count = sum(map(len, arrays))
    kept = np.ones(count, bool) if kept is None else kept
    lengths = np.empty(count, np.int32)
    for place, array in _placed(arrays):
        lengths[place] = pc.binary_length(array)
    ends = np.append(0, np.cumsum(lengths[kept], dtype=np.int64))
    del lengths
    data, at = np.empty(ends[-1], np.uint8), 0
    for place, array in _placed(arrays):
        strings = pc.cast(array.filter(pa.array(kept[place])), pa.large_string())
        offsets = np.frombuffer(strings.buffers()[1], np.int64)[strings.offset :]
        if size := int(offsets[len(strings)] - offsets[0]):
            cells = np.frombuffer(strings.buffers()[2], np.uint8)
            data[at : at + size] = cells[int(offsets[0]) :][:size]
            at += size
    kind = pa.StringArray if ends[-1] <= _MAX_BYTES else pa.LargeStringArray
    offsets = ends.astype(np.int32) if kind is pa.StringArray else ends
    return kind.from_buffers(len(ends) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
