"""A teacher's scores of documents and their negatives: one form of many, and what they mean.

Only differences within a row mean something: the margins, the document's score less each
negative's. Rows with the same margins are the same to learn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.columns import Layout, numbered_roles, role_of, roles_like
from ftray.data.names import listed, numbers_of
from ftray.data.values import SCORE_ROLES
from ftray.errors import DataError
from ftray.words import counted

__all__ = ["margins", "teacher_scores"]


def margins(table: pa.Table) -> list[npt.NDArray[np.float64]]:
    """How far the teacher puts each negative below its document, `(N,)` for each negative.

    Args:
        table: as `teacher_scores` makes it.
    """
    document, *others = (table[name].to_numpy() for name in roles_like(table.column_names, "score"))
    return [document - other for other in others]


def teacher_scores(table: pa.Table, layout: Layout, source: str) -> pa.Table:
    """The table with a score of the document and of each negative: `score`, `score_2` and so on.

    The margins of n negatives, m1 … mn, are (0, -m1, …, -mn), and a single one, m, is (m, 0).

    Args:
        table: with scores as numbers.
        layout: the names of its columns.
        source: for messages.

    Raises:
        DataError: for another number of scores than of margins or of texts, and for columns of
            scores whose numbers are not those of negatives.
    """
    negatives = roles_like(table.column_names, "negative")
    names = [name for role in SCORE_ROLES for name in roles_like(table.column_names, role)]
    has_document = "document_score" in names
    if has_document:
        names.sort(key=lambda name: role_of(name) != "document_score")
    count, known = len(negatives), len(names)
    are_margins = known == count and not has_document
    called = [layout.columns[name] for name in names]
    if not are_margins and known != count + 1:
        raise DataError(
            f"{source}: {counted(known, 'score')} ({listed(called)}) for "
            f"{counted(count, 'negative')}. Valid: a margin for each negative (the document's "
            "score less the negative's), or a score of the document and of each negative."
        )
    _check_numbers([layout.columns[name] for name in negatives], called[has_document:], source)
    scores = [table[name] for name in names]
    if are_margins:
        zeros = pa.chunked_array([np.zeros(table.num_rows)])
        scores = (
            [scores[0], zeros] if count == 1 else [zeros, *(pc.subtract(0.0, m) for m in scores)]
        )
    kept = table.drop_columns(names)
    at = len(roles_like(kept.column_names, "negative")) + 2
    for number, (name, column) in enumerate(
        zip(numbered_roles("score", count + 1), scores, strict=True)
    ):
        kept = kept.add_column(at + number, name, column)
    return kept


def _check_numbers(negatives: Sequence[str], scores: Sequence[str], source: str) -> None:
    """Numbered scores have the numbers of their negatives, or count on from the document's.

    Negatives without numbers of their own (one column, or a list) count from 0 or from 1.

    Args:
        negatives: columns, n of them.
        scores: columns, n of them, or 1 + n with the document's first.
        source: for messages.

    Raises:
        DataError: with the name of the column that is the odd one.
    """
    count = len(scores)
    own, theirs = numbers_of(negatives), numbers_of(scores)
    if count < 2 or theirs[0] < 0:  # one column, or a list
        return
    valid = [list(range(start, start + count)) for start in (0, 1)]
    if len(own) > 1 and own[0] >= 0:
        runs = own == list(range(own[0], own[0] + len(own)))
        if count == len(own):
            valid = [own]
        elif not runs:
            valid = [[theirs[0], *own]]
    if theirs in valid:
        return
    wanted = next((one for one in valid if one[0] == theirs[0]), valid[-1])
    odd = next(name for name, number in zip(scores, theirs, strict=True) if number not in wanted)
    raise DataError(
        f"{source}: '{odd}' has the number of no negative. There are the scores {listed(scores)} "
        f"and the negatives {listed(negatives)}. Valid: the same numbers; or 0 to n, or 1 to "
        "n + 1, with the document's score first."
    )
