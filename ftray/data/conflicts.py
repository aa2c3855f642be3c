"""What contradicts itself in the records of a source: it is said, or refused with both places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.data.cleaning import Place, noun_of_records, quoted
from ftray.data.columns import Kind, role_of
from ftray.data.distinct import Coded, numbered_rows
from ftray.data.teacher import margins
from ftray.errors import DataError
from ftray.words import counted

__all__ = ["conflicts_in"]

Numbers = npt.NDArray[np.int64]

_EXAMPLES = 3
_JUDGED = ("query", "document", "negative")


def conflicts_in(
    kind: Kind, table: pa.Table, cells: Coded, place: Place, *, allowed: bool
) -> list[str]:
    """What to say of contradictions: labels, scores, documents that are negatives as well.

    Args:
        kind: of the records.
        table: their columns.
        cells: the same as numbers.
        place: a row's place in the source.
        allowed: whether they are kept.

    Raises:
        DataError: for the first of them, unless `allowed`.
    """
    notes = []
    for find in _FINDERS.get(kind, ()):
        notes += find(table, cells, place, allowed=allowed)
    return notes


def _labels(table: pa.Table, cells: Coded, place: Place, *, allowed: bool) -> list[str]:
    """Texts that stand under two labels.

    Raises:
        DataError: for the first of them, unless `allowed`.
    """
    assert cells.labels is not None and cells.marks is not None
    items, names = cells.columns[0], cells.labels
    kept, several = _contested(items, cells.marks)
    if not len(several):
        return []
    if allowed:
        shown = []
        for item in several[:_EXAMPLES]:
            under = names.take(pa.array(cells.marks[kept[items[kept] == item]])).to_pylist()
            shown.append(f"{quoted(cells.texts[int(item)].as_py())} ({', '.join(under)})")
        more = ", …" if len(several) > _EXAMPLES else ""
        what = counted(len(several), noun_of_records("labelled", cells))
        return [f"{what} under two labels or more: {', '.join(shown)}{more}"]
    first, other = kept[items[kept] == several[0]][:2].tolist()
    text = quoted(cells.texts[int(several[0])].as_py())
    raise DataError(
        f"{place(other)}: {text} has the label '{table['label'][other].as_py()}', but "
        f"'{table['label'][first].as_py()}' at {place(first)}. Texts under two labels: "
        f"{len(several):,}. csv_options.label_conflicts = 'keep' takes both."
    )


def _scores(table: pa.Table, cells: Coded, place: Place, *, allowed: bool) -> list[str]:
    """Pairs, or triplets, that have two scores.

    Raises:
        DataError: for the first of them, unless `allowed`.
    """
    assert cells.marks is not None
    pairs, _ = numbered_rows(*cells.columns)
    kept, several = _contested(pairs, cells.marks)
    if not len(several):
        return []
    rows = kept[pairs[kept] == several[0]].tolist()
    noun, what, columns, two = "pair", "score", [table["score"]], "two scores or more"
    if len(cells.columns) > 2:
        noun, columns, two = "triplet", margins(table), "different margins"
        what = "margin" if len(columns) == 1 else "margins"
    scores = [" / ".join(f"{float(column[row]):g}" for column in columns) for row in rows]
    names = [name for name in table.column_names if role_of(name) in _JUDGED]
    pair = ", ".join(quoted(table[name][rows[0]].as_py()) for name in names)
    if allowed:
        shown = ", ".join(scores)
        return [f"{counted(len(several), noun)} with {two}: {pair} ({shown})"]
    raise DataError(
        f"{place(rows[1])}: the {noun} {pair} has the {what} {scores[1]}, but {scores[0]} at "
        f"{place(rows[0])}. {noun.capitalize()}s with {two}: {len(several):,}. "
        "csv_options.label_conflicts = 'keep' takes both."
    )


def _triplets(table: pa.Table, cells: Coded, place: Place, *, allowed: bool) -> list[str]:
    """Texts that are a document and a negative of the same query.

    Raises:
        DataError: for the first of them, unless `allowed`.
    """
    query, document, *negatives = cells.columns
    rows = table.num_rows
    others = [document, *negatives]
    pairs, _ = numbered_rows(np.tile(query, len(others)), np.concatenate(others))
    kept, several = _contested(pairs, np.repeat([0, *[1] * len(negatives)], rows))
    if not len(several):
        return []
    first, other = (kept[pairs[kept] == several[0]] % rows).tolist()
    text, asked = (quoted(table[name][first].as_py()) for name in ("document", "query"))
    if allowed:
        what = counted(len(several), "text")
        return [f"{what} both document and negative of one query: {text} of {asked}"]
    raise DataError(
        f"{place(other)}: {text} is the negative of {asked}, but its document at {place(first)}. "
        f"Texts that are both: {len(several):,}. "
        "csv_options.label_conflicts = 'keep' takes both."
    )


def _contested(keys: Numbers, marks: Numbers) -> tuple[Numbers, Numbers]:
    """Where each distinct (key, mark) first stands, and the keys that have two marks or more."""
    _, kept = numbered_rows(keys, marks)
    return kept, np.flatnonzero(np.bincount(keys[kept]) > 1)


_FINDERS = {
    "labelled": (_labels,),
    "triplets": (_triplets,),
    "distillation": (_triplets, _scores),
    "scored": (_scores,),
}
