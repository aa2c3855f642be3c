"""What is done to every table that was read, whatever its source.

Strip, check, read scores as numbers, guess, describe, and number distinct texts.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.columns import ROLES_OF, Kind, Layout
from ftray.errors import DataError
from ftray.words import counted

__all__ = [
    "check_cells",
    "coded",
    "conflicts",
    "counted",
    "drawn_rows",
    "fingerprint",
    "guessed_kind",
    "quoted",
    "score_conflicts",
    "scores_as_numbers",
    "stripped",
    "summary",
]

Place = Callable[[int], str]
"""A row of the table to its place in the source, as `train.csv, line 17`."""

_EXAMPLES = 3
_QUOTED_CHARS = 60
_LABEL_CHARS = 50
_COMMA = re.compile(r"[-+]?\d+,\d+")
_CELL_NAMES = {"item": "text", "first": "first text", "second": "second text"}


def quoted(text: str) -> str:
    """A text for a message, cut to a readable length."""
    return f"'{text}'" if len(text) <= _QUOTED_CHARS else f"'{text[: _QUOTED_CHARS - 1]}…'"


def stripped(table: pa.Table) -> pa.Table:
    """Cells without outer white space."""
    columns = {name: pc.utf8_trim_whitespace(table[name]) for name in table.column_names}
    return pa.table(columns)


def check_cells(table: pa.Table, layout: Layout, place: Place) -> None:
    """Every row has all of its texts, its label, its id.

    Raises:
        DataError: with the place of the first empty cell.
    """
    firsts: list[tuple[int, str]] = []
    for role in table.column_names:
        column = table[role]
        empty = pc.fill_null(pc.equal(pc.binary_length(column), 0), True)
        row = pc.index(empty, True).as_py()
        if row >= 0:
            firsts.append((row, role))
    if firsts:
        row, role = min(firsts)
        raise DataError(
            f"{place(row)}: the {_CELL_NAMES.get(role, role)} is empty (column "
            f"'{layout.columns[role]}'). Every row needs "
            + " and ".join(f"a {_CELL_NAMES.get(name, name)}" for name in layout.texts)
            + (", and an id where others have one." if role == "id" else ".")
        )


def scores_as_numbers(table: pa.Table, layout: Layout, place: Place) -> pa.Table:
    """The table with the column `score` as float64.

    Raises:
        DataError: with the place and the value of the first score that is not a finite number.
    """
    scores = np.empty(table.num_rows)
    for row, text in enumerate(table["score"].to_pylist()):
        try:
            scores[row] = float(text)
        except ValueError:
            hint = " Decimals are written with a point." if _COMMA.fullmatch(text) else ""
            what = f"{quoted(text)} is not a number"
        else:
            if math.isfinite(scores[row]):
                continue
            what, hint = f"{quoted(text)} is not finite", ""
        raise DataError(
            f"{place(row)}: the score {what} (column '{layout.columns['score']}').{hint}"
        )
    number = table.column_names.index("score")
    return table.set_column(number, "score", pa.chunked_array([scores + 0.0]))  # -0.0 is 0.0


def guessed_kind(table: pa.Table, layout: Layout) -> tuple[Kind, pa.Table, str]:
    """Whether two columns without telling names are item and label, or query and document.

    Labels are short (at most 50 characters on average) and come again (at most half as many
    distinct ones as rows). They stand second; first only if they are single words or numbers there,
    for a query with several documents comes again as well.

    Returns:
        The kind, the table with its role names in their order, and what to say about it.
    """
    roles: tuple[str, str] = ("query", "document")
    place = "second"
    if _are_labels(table["second"]):
        roles = ("item", "label")
    elif _are_labels(table["first"]) and not pc.any(_has_space(table["first"])).as_py():
        roles, place = ("label", "item"), "first"
    kind: Kind = "pairs" if roles[0] == "query" else "labelled"
    names = dict(zip(("first", "second"), roles, strict=True))
    named = table.rename_columns([names.get(name, name) for name in table.column_names])
    rest = [name for name in named.column_names if name not in roles]
    distinct = pc.count_distinct(table[place]).as_py()
    note = (
        f"columns '{layout.columns['first']}', '{layout.columns['second']}' were taken for "
        f"{', '.join(roles)} ({counted(distinct, 'distinct value')} in "
        f"{counted(len(table), 'row')} of the {place}); csv_options.is_labeled = "
        f"{str(kind == 'pairs').lower()} if they are not, or name them with `columns`"
    )
    return kind, named.select([*ROLES_OF[kind], *rest]), note


def _are_labels(column: pa.ChunkedArray) -> bool:
    short = pc.mean(pc.utf8_length(column)).as_py() <= _LABEL_CHARS
    return bool(short and 2 * pc.count_distinct(column).as_py() <= len(column))


def _has_space(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.match_substring_regex(column, r"\s")


def drawn_rows(count: int, share: float) -> pa.Array:
    """A random share of the rows in their order, at least one, always the same."""
    size = max(1, round(share * count))
    drawn = np.random.default_rng(0).choice(count, size, replace=False)
    return pa.array(np.sort(drawn))


_NOUNS: dict[Kind, str] = {
    "labelled": "text",
    "pairs": "pair",
    "scored": "scored pair",
    "items": "text",
}


def summary(table: pa.Table, kind: Kind) -> list[str]:
    """How many rows there are, and how many repeat an earlier one."""
    rows = table.num_rows
    texts = table.select([name for name in table.column_names if name != "id"])
    repeats = rows - texts.group_by(texts.column_names).aggregate([]).num_rows
    notes = [counted(rows, _NOUNS[kind])]
    if kind == "scored":
        span = pc.min_max(table["score"]).as_py()
        notes[0] += f" with scores from {span['min']:g} to {span['max']:g}"
    if kind == "labelled":
        notes[0] += f" with {counted(pc.count_distinct(table['label']).as_py(), 'label')}"
    if repeats:
        notes.append(f"rows that repeat an earlier one: {repeats:,}")
    return notes


def conflicts(table: pa.Table, place: Place, *, allowed: bool) -> list[str]:
    """Texts that stand under two labels.

    Raises:
        DataError: for the first of them, unless `allowed`.
    """
    grouped = pa.TableGroupBy(table, "item", use_threads=False)
    counts = grouped.aggregate([("label", "count_distinct")])
    texts = counts.filter(pc.greater(counts["label_count_distinct"], 1))["item"]
    if not len(texts):
        return []
    if allowed:
        shown = [f"{quoted(t)} ({_labels_of(table, t)})" for t in texts[:_EXAMPLES].to_pylist()]
        more = ", …" if len(texts) > _EXAMPLES else ""
        return [f"{counted(len(texts), 'text')} under two labels or more: {', '.join(shown)}{more}"]
    text = texts[0].as_py()
    rows = np.flatnonzero(pc.equal(table["item"], text).to_numpy())
    labels = [table["label"][int(row)].as_py() for row in rows]
    other = next(i for i, label in enumerate(labels) if label != labels[0])
    raise DataError(
        f"{place(int(rows[other]))}: {quoted(text)} has the label '{labels[other]}', but "
        f"'{labels[0]}' at {place(int(rows[0]))}. Texts under two labels: {len(texts):,}. "
        "csv_options.label_conflicts = 'keep' takes both."
    )


def _labels_of(table: pa.Table, text: str) -> str:
    labels = table.filter(pc.equal(table["item"], text))["label"]
    return ", ".join(pc.unique(labels).to_pylist())


def score_conflicts(table: pa.Table, place: Place, *, allowed: bool) -> list[str]:
    """Pairs that have two scores.

    Raises:
        DataError: for the first of them, unless `allowed`.
    """
    keys = ["query", "document"]
    grouped = pa.TableGroupBy(table, keys, use_threads=False)
    counts = grouped.aggregate([("score", "count_distinct")])
    pairs = counts.filter(pc.greater(counts["score_count_distinct"], 1)).select(keys)
    if not pairs.num_rows:
        return []
    query, document = pairs["query"][0].as_py(), pairs["document"][0].as_py()
    same = pc.and_(pc.equal(table["query"], query), pc.equal(table["document"], document))
    rows = np.flatnonzero(same.to_numpy())
    scores = [table["score"][int(row)].as_py() for row in rows]
    pair = f"{quoted(query)}, {quoted(document)}"
    if allowed:
        shown = ", ".join(f"{score:g}" for score in dict.fromkeys(scores))
        return [f"{counted(pairs.num_rows, 'pair')} with two scores or more: {pair} ({shown})"]
    other = next(i for i, score in enumerate(scores) if score != scores[0])
    raise DataError(
        f"{place(int(rows[other]))}: the pair {pair} has the score {scores[other]:g}, but "
        f"{scores[0]:g} at {place(int(rows[0]))}. Pairs with two scores: {pairs.num_rows:,}. "
        "csv_options.label_conflicts = 'keep' takes both."
    )


def coded(*columns: pa.ChunkedArray) -> tuple[pa.Array, list[npt.NDArray[np.int64]]]:
    """Distinct values over all columns in order of first appearance, and each column's codes."""
    joined = pa.chunked_array([chunk for column in columns for chunk in column.chunks])
    encoded = pc.dictionary_encode(joined.combine_chunks())
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    cuts = np.cumsum([len(column) for column in columns])[:-1]
    return encoded.dictionary, np.split(codes, cuts)


def fingerprint(kind: str, table: pa.Table) -> str:
    """16 hex digits of the SHA-256 of kind, column names and cells, however they are chunked."""
    whole = hashlib.sha256(kind.encode())
    for name in table.column_names:
        lengths, cells = hashlib.sha256(), hashlib.sha256()
        if pa.types.is_floating(table[name].type):
            whole.update(name.encode() + table[name].to_numpy().astype("<f8").tobytes())
            continue
        for chunk in table[name].chunks:
            offsets_buffer, data = chunk.buffers()[1:]
            width = np.int64 if pa.types.is_large_string(chunk.type) else np.int32
            offsets = np.frombuffer(offsets_buffer, width) if offsets_buffer else np.zeros(1, width)
            offsets = offsets[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
            lengths.update(np.diff(offsets).tobytes())
            if data is not None and len(offsets):
                cells.update(memoryview(data)[int(offsets[0]) : int(offsets[-1])])
        whole.update(name.encode() + lengths.digest() + cells.digest())
    return whole.hexdigest()[:16]
