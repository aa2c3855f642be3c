"""What is done to every table that was read, whatever its source.

Strip, check, read scores as numbers, guess, and describe.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.columns import ROLES_OF, Kind, Layout, role_of
from ftray.data.distinct import Coded, coded, numbered_rows
from ftray.data.tables import let_pages_go
from ftray.data.teacher import margins
from ftray.data.values import SCORE_ROLES
from ftray.errors import DataError
from ftray.media import modalities_of, shown
from ftray.words import counted

__all__ = [
    "check_cells",
    "counted",
    "drawn_rows",
    "fingerprint",
    "guessed_kind",
    "guessed_three",
    "noun_of_records",
    "quoted",
    "scores_as_numbers",
    "stripped",
    "summary",
]

Numbers = npt.NDArray[np.int64]

Place = Callable[[int], str]
"""A row of the table to its place in the source, as `train.csv, line 17`."""

_QUOTED_CHARS = 60
_LABEL_CHARS = 50
_COMMA = re.compile(r"[-+]?\d+,\d+")
_NUMBER = r"^[-+]?(\d+[.,]?\d*|[.,]\d+)([eE][-+]?\d+)?$"


def quoted(text: str) -> str:
    """A text for a message, cut to a readable length; the name of what is no text."""
    text = shown(pa.array([text]))[0].as_py()
    return f"'{text}'" if len(text) <= _QUOTED_CHARS else f"'{text[: _QUOTED_CHARS - 1]}…'"


def stripped(table: pa.Table) -> pa.Table:
    """Cells without outer white space; chunks that have none stay where they are."""
    columns = {
        name: pa.chunked_array(list(map(_trimmed, table[name].chunks)), table[name].type)
        for name in table.column_names
    }
    return pa.table(columns)


def _trimmed(chunk: pa.Array) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(chunk)
    same = pc.equal(pc.binary_length(trimmed), pc.binary_length(chunk))
    let_pages_go()
    return chunk if pc.all(same).as_py() else trimmed


def check_cells(
    table: pa.Table, layout: Layout, place: Place, noun: Callable[[str, pa.ChunkedArray], str]
) -> None:
    """Every row has all of its texts, its label, its id.

    Args:
        table: string columns by role.
        layout: their names.
        place: a row's place in the source.
        noun: a column's role and cells to what one cell is called, by what the column holds.

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
        called = {name: _called(name, noun(name, table[name])) for name in table.column_names}
        raise DataError(
            f"{place(row)}: the {called[role]} is empty (column '{layout.columns[role]}'). Every "
            "row needs "
            + " and ".join(_with_article(called[name]) for name in layout.texts)
            + (", and an id where others have one." if role == "id" else ".")
        )


def _called(role: str, noun: str) -> str:
    """What messages call a cell: by its role, or by what it holds where the role tells less."""
    if role == "item":
        return noun
    if role in ("first", "second", "third"):
        return f"{role} {noun}"
    return role_of(role).replace("_", " ")


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun.startswith(("i", "a")) else f"a {noun}"


def scores_as_numbers(table: pa.Table, layout: Layout, place: Place) -> pa.Table:
    """The table with the columns of scores as float64.

    Raises:
        DataError: with the place and the value of the first score that is not a finite number.
    """
    for number, name in enumerate(table.column_names):
        if role_of(name) in SCORE_ROLES:
            numbers = _as_numbers(table[name], layout.columns[name], place)
            table = table.set_column(number, name, pa.chunked_array([numbers]))
    return table


def _as_numbers(column: pa.ChunkedArray, name: str, place: Place) -> npt.NDArray[np.float64]:
    scores = np.empty(len(column))
    texts = chain.from_iterable(chunk.to_pylist() for chunk in column.chunks)
    for row, text in enumerate(texts):
        try:
            scores[row] = float(text)
        except ValueError:
            hint = " Decimals are written with a point." if _COMMA.fullmatch(text) else ""
            what = f"{quoted(text)} is not a number"
        else:
            if math.isfinite(scores[row]):
                continue
            what, hint = f"{quoted(text)} is not finite", ""
        raise DataError(f"{place(row)}: the score {what} (column '{name}').{hint}")
    return scores + 0.0  # -0.0 is 0.0


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
    distinct = len(coded(table[place])[0])
    note = (
        f"columns '{layout.columns['first']}', '{layout.columns['second']}' were taken for "
        f"{', '.join(roles)} ({counted(distinct, 'distinct value')} in "
        f"{counted(len(table), 'row')} of the {place}); csv_options.is_labeled = "
        f"{str(kind == 'pairs').lower()} if they are not, or name them with `columns`"
    )
    return kind, named.select([*ROLES_OF[kind], *rest]), note


def guessed_three(table: pa.Table, layout: Layout) -> tuple[Kind, pa.Table, Layout, str]:
    """Whether three columns without names are triplets, or two texts and their score.

    Most cells of a column of scores are numbers. One that is not is an error then, for
    `scores_as_numbers` to find.

    Returns:
        The kind, table and layout with its role names, and what to say about it.
    """
    third = table["third"]
    numbers = pc.sum(pc.match_substring_regex(third, _NUMBER)).as_py()
    kind: Kind = "scored" if 2 * numbers > len(third) else "triplets"
    names = dict(zip(("first", "second", "third"), ROLES_OF[kind], strict=True))
    columns = {names.get(role, role): name for role, name in layout.columns.items()}
    shown = ", ".join(f"'{layout.columns[place]}'" for place in names)
    what = "numbers" if kind == "scored" else "texts"
    return (
        kind,
        table.rename_columns([names.get(name, name) for name in table.column_names]),
        replace(layout, kind=kind, columns=columns),
        f"columns {shown} were taken for {', '.join(ROLES_OF[kind])} (the third holds {what}); "
        "name them with `columns` if they are not",
    )


def _are_labels(column: pa.ChunkedArray) -> bool:
    short = pc.mean(pc.utf8_length(column)).as_py() <= _LABEL_CHARS
    return bool(short and 2 * len(coded(column)[0]) <= len(column))


def _has_space(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.match_substring_regex(column, r"\s")


def drawn_rows(count: int, share: float) -> pa.Array:
    """A random share of the rows in their order, at least one, always the same."""
    size = max(1, round(share * count))
    drawn = np.random.default_rng(0).choice(count, size, replace=False)
    return pa.array(np.sort(drawn))


_THINGS = {"image": "image", "points": "point cloud", "features": "vector"}
_NOUNS: dict[Kind, str] = {
    "labelled": "text",
    "pairs": "pair",
    "triplets": "triplet",
    "distillation": "triplet",
    "scored": "scored pair",
    "items": "text",
}


def noun_of_records(kind: Kind, cells: Coded) -> str:
    """What one record is called, or its item where that is no text."""
    held = modalities_of(cells.texts)
    if _NOUNS[kind] != "text" or held <= {"text"}:
        return _NOUNS[kind]
    return _THINGS.get(next(iter(held)), "item") if len(held) == 1 else "item"


def summary(table: pa.Table, kind: Kind, cells: Coded) -> list[str]:
    """How many rows there are, and how many repeat an earlier one."""
    rows = table.num_rows
    repeats = rows - len(numbered_rows(*cells.keys)[1])
    notes = [counted(rows, noun_of_records(kind, cells))]
    if len(cells.columns) > 3:
        notes[0] += f" with {len(cells.columns) - 2} negatives each"
    if kind == "distillation":
        known = margins(table)
        low, high = min(m.min() for m in known), max(m.max() for m in known)
        joint = "and" if len(cells.columns) > 3 else "with"
        notes[0] += f" {joint} a teacher's margins from {low:g} to {high:g}"
    if kind == "scored":
        span = pc.min_max(table["score"]).as_py()
        notes[0] += f" with scores from {span['min']:g} to {span['max']:g}"
    if cells.labels is not None:
        notes[0] += f" with {counted(len(cells.labels), 'label')}"
    if repeats:
        notes.append(f"rows that repeat an earlier one: {repeats:,}")
    return notes


def fingerprint(kind: Kind, table: pa.Table) -> str:
    """16 hex digits of the SHA-256 of kind, column names and cells, however they are chunked.

    A teacher's scores count by their margins.
    """
    whole = hashlib.sha256(kind.encode())
    names = table.column_names
    if kind == "distillation":
        names = [name for name in names if role_of(name) != "score"]
        for margin in margins(table):
            whole.update(b"margin" + margin.astype("<f8").tobytes())
    for name in names:
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
            let_pages_go()
        whole.update(name.encode() + lengths.digest() + cells.digest())
    return whole.hexdigest()[:16]
