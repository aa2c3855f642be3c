"""Lists in the rows of a source: several positives, several negatives, and a teacher's scores.

A row with several positives becomes one row for each. Lists of negatives become columns, as many as
the row with the fewest has: a step needs the same number of every row.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa

from ftray.data.columns import Layout, numbered_roles, role_of, roles_like
from ftray.data.tables import TableBuilder
from ftray.data.values import SCORE_ROLES, Values
from ftray.errors import DataError
from ftray.words import counted

__all__ = ["Unfolding", "check_no_lists", "list_columns", "listed_roles"]

_PLURALS = ("negatives", "hard_negatives")
_EACH_DOCUMENT = ("document", "document_score")
"""Roles whose lists become rows; those of others become columns."""
_KINDS = ("pairs", "triplets", "distillation")
_SAMPLE_ROWS = 200
_MOST = 0.9
"""If so many cells are lists, none was meant as a text."""


def listed_roles(row: Mapping[str, Any], layout: Layout) -> frozenset[str]:
    """The roles whose cells are lists of several things, by the first row.

    A list of numbers is one thing, a vector, and so are lists of lists, which are its pixels or
    points; not of a score, and not in a column that is called `negatives`. An array of texts is a
    list as well.
    """
    if layout.kind not in _KINDS:
        return frozenset()
    return frozenset(
        role
        for role, name in layout.columns.items()
        if role_of(role) in ("document", "negative", *SCORE_ROLES)
        and _holds_several(row.get(name), role, name)
    )


def _holds_several(value: Any, role: str, name: str) -> bool:
    held = _as_list(value)
    if held is None:
        return False
    if role_of(role) in SCORE_ROLES or not held:
        return True
    if isinstance(held[0], list | tuple) or _ndim(value) > 1:
        return name.lower() in _PLURALS
    return not isinstance(held[0], Real)


def _as_list(value: Any) -> Sequence[Any] | None:
    """A list or tuple, or what an array holds; None = neither."""
    if isinstance(value, list | tuple):
        return value
    if _ndim(value) > 0:
        held: list[Any] = value.tolist() if value.ndim == 1 else list(value)
        return held
    return None


def _ndim(value: Any) -> int:
    """The dimensions of an array of NumPy's; 0 of anything else."""
    return value.ndim if isinstance(value, np.ndarray) else 0


def list_columns(schema: pa.Schema, layout: Layout) -> frozenset[str]:
    """The same of the columns of an Arrow table, by their types."""
    row = {name: _like(schema.field(name).type) for name in layout.columns.values()}
    return listed_roles(row, layout)


def _like(kind: pa.DataType) -> Any:
    """A value whose nesting is that of a type."""
    if isinstance(kind, pa.BaseExtensionType):  # a tensor is one thing
        return None
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if is_list or pa.types.is_fixed_size_list(kind):
        return [_like(kind.value_type)]
    return 0 if pa.types.is_integer(kind) or pa.types.is_floating(kind) else ""


def check_no_lists(table: pa.Table, layout: Layout, source: str) -> None:
    """Refuse lists that were written as texts: `['a', 'b']` in a CSV file, or read from one.

    Args:
        table: string columns by role.
        layout: the names of its columns.
        source: for messages.

    Raises:
        DataError: for the first column whose cells are nearly all lists of texts.
    """
    for role in table.column_names:
        if role_of(role) not in ("document", "negative", "second", "third"):
            continue
        cells = [text for text in table[role].slice(0, _SAMPLE_ROWS).to_pylist() if text]
        lists = sum(map(_is_written_list, cells))
        if lists and lists >= _MOST * len(cells):
            shown = cells[0] if len(cells[0]) <= 40 else f"{cells[0][:39]}…"
            raise DataError(
                f"{source}: the column '{layout.columns[role]}' holds lists written as texts, such "
                f"as {shown}. Lists need JSON or Parquet, or Python's own; in CSV give a column "
                "to each: negative_1, negative_2 …"
            )


def _is_written_list(text: str) -> bool:
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        held = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(held, list) and bool(held) and all(isinstance(one, str) for one in held)


class Unfolding:
    """Makes flat rows of rows with lists.

    Args:
        layout: the roles of the source's columns.
        listed: the roles that hold lists.
        first: the first row, which tells how many negatives there are at most.
        place: where it stands.

    Raises:
        DataError: for scores that do not fit the negatives.
    """

    def __init__(
        self, layout: Layout, listed: frozenset[str], first: Mapping[str, Any], place: str
    ) -> None:
        self._layout = layout
        self._listed = listed
        self._roles = tuple(dict.fromkeys(map(role_of, layout.columns)))
        self._sources = self._documents = 0
        self._counts: dict[int, int] = {}
        for role in listed:
            if len(roles_like(layout.columns, role_of(role))) > 1:
                raise DataError(
                    f"{place}: '{layout.columns[role]}' holds a list beside other columns of the "
                    f"role {role_of(role)}. Valid: one list, or a column for each."
                )
        cells = self._cells(first, place)
        self._scores = "score" if "score" in cells else "negative_score"
        self._extra = 0  # one, if there is a score of the document among those of a row
        if layout.kind == "distillation":
            self._extra = len(cells[self._scores]) - len(cells["negative"])
            if self._extra not in ((0, 1) if self._scores == "score" else (0,)):
                raise self._misfit(cells, place)
        self._widths = {
            role: 1 if role in _EACH_DOCUMENT else len(cells[role]) for role in self._roles
        }

    def table(
        self, rows: Iterable[tuple[int, Any]], values: Values, *, source: str, unit: str
    ) -> tuple[pa.Table, pa.ChunkedArray, Layout]:
        """Read all rows.

        Args:
            rows: each with its position, the first one too.
            values: makes cells.
            source: for messages.
            unit: what positions count.

        Returns:
            String columns by role, the position of each row, and the roles of these columns.

        Raises:
            DataError: with the place of the row that is wrong.
        """
        names = {
            role: names
            for base in self._roles
            for role, names in zip(
                numbered_roles(base, self._widths[base]), self._names(base), strict=True
            )
        }
        builder = TableBuilder(tuple(names))
        for position, row in rows:
            place = f"{source}, {unit} {position}"
            for flat in self._flat(row, place):
                cells = (
                    values.cell(value, role, f"{place}, '{name}'")
                    for value, (role, name) in zip(flat, names.items(), strict=True)
                )
                builder.add(cells, position)
        table, positions = builder.finish()
        kept = self._kept(names)
        notes = (*self._layout.notes, *self._notes())
        layout = replace(self._layout, columns=kept, notes=notes)
        return table.select(list(kept)), positions, layout

    def _names(self, role: str) -> list[str]:
        """What messages call the columns of a role: `neg[0]`, `neg[1]` where they were a list."""
        own = [self._layout.columns[name] for name in roles_like(self._layout.columns, role)]
        if role not in self._listed or role in _EACH_DOCUMENT:
            return own
        return [f"{own[0]}[{place}]" for place in range(self._widths[role])]

    def _cells(self, row: Any, place: str) -> dict[str, Sequence[Any]]:
        """The values of each role: of lists, or of all its columns."""
        if not isinstance(row, Mapping):
            raise DataError(
                f"{place}: a {type(row).__name__}, but the first record is of another kind."
            )
        cells: dict[str, Any] = {role: [] for role in self._roles}
        for role, name in self._layout.columns.items():
            if name not in row:
                known = ", ".join(repr(one) for one in self._layout.columns.values())
                raise DataError(f"{place}: there is no '{name}', but the first record has {known}.")
            if role not in self._listed:
                cells[role_of(role)].append(row[name])
                continue
            held = _as_list(row[name])
            if held is None:
                what = "nothing" if row[name] is None else f"a {type(row[name]).__name__}"
                raise DataError(f"{place}: '{name}' holds {what}, but others a list.")
            if not held:
                raise DataError(
                    f"{place}: the list of '{name}' is empty. Every row needs one {role} or more."
                )
            cells[role] = held
        return cells

    def _flat(self, row: Any, place: str) -> Iterator[list[Any]]:
        """A row for each document, with as many negatives as the first row of all has."""
        cells = self._cells(row, place)
        documents = cells["document"]
        negatives = len(cells.get("negative", ()))
        self._check(cells, documents, negatives, place)
        self._counts[negatives] = self._counts.get(negatives, 0) + 1
        self._sources += 1
        self._documents += len(documents)
        for number, document in enumerate(documents):
            own = {**cells, "document": [document]}
            if "document_score" in self._listed:
                own["document_score"] = [cells["document_score"][number]]
            yield [
                value for role, width in self._widths.items() for value in _fitted(own[role], width)
            ]

    def _check(
        self, cells: Mapping[str, Sequence[Any]], documents: Sequence[Any], count: int, place: str
    ) -> None:
        """Scores belong to the documents and the negatives of their row."""
        if self._layout.kind != "distillation":
            return
        each = "document_score" in self._listed
        if len(documents) > 1 and not each:
            raise DataError(
                f"{place}: {len(documents)} documents, and scores for one: give a list of "
                "document_score (or pos_scores), and one of negative_score (or neg_scores)."
            )
        if each and len(cells["document_score"]) != len(documents):
            raise DataError(
                f"{place}: {counted(len(cells['document_score']), 'score')} for "
                f"{counted(len(documents), 'document')}."
            )
        if len(cells[self._scores]) != count + self._extra:
            raise self._misfit(cells, place)

    def _misfit(self, cells: Mapping[str, Sequence[Any]], place: str) -> DataError:
        valid = {"score": "a margin for each negative, or a score of the document and of each"}
        return DataError(
            f"{place}: {counted(len(cells[self._scores]), 'score')} for "
            f"{counted(len(cells['negative']), 'negative')}. Valid: "
            f"{valid.get(self._scores, 'a score of each negative')}; the same in every row."
        )

    def _kept(self, names: Mapping[str, str]) -> dict[str, str]:
        """The columns that all rows fill."""
        fewest = min(self._counts)
        widths = {"negative": fewest, self._scores: fewest + self._extra}
        kept: dict[str, str] = {}
        for base in self._roles:
            roles = roles_like(names, base)
            kept |= {role: names[role] for role in roles[: widths.get(base, len(roles))]}
        return kept

    def _notes(self) -> Iterator[str]:
        if self._documents > self._sources:
            yield (
                f"{counted(self._sources, 'row')} with {self._documents:,} documents in lists: "
                "each document is a row of its own"
            )
        fewest = min(self._counts)
        longer = sum(rows for count, rows in self._counts.items() if count > fewest)
        if longer:
            yield (
                f"{longer:,} of {counted(self._sources, 'row')} have more negatives than the "
                f"others: of each the first {fewest} {'is' if fewest == 1 else 'are'} taken"
            )


def _fitted(values: Sequence[Any], width: int) -> list[Any]:
    """So many of them, with nothing where there are fewer."""
    return [*values[:width], *[None] * (width - len(values))]
