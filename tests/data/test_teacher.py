"""A teacher's scores: which column belongs to which negative, and which rows are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ftray.data.dataset import train_set
from ftray.data.readers import read_records
from ftray.errors import DataError

A = {"query": "a", "document": "b"}


def row(*names: str) -> dict[str, Any]:
    """Negatives have their names for texts, scores the number at their end, else 0."""
    cells: dict[str, Any] = {name: f"the {name}" for name in names if "neg" in name[:3]}
    scores = [name for name in names if "score" in name]
    return {**A, **cells, **{name: int(name[-1]) if name[-1].isdigit() else 0 for name in scores}}


@pytest.mark.parametrize(
    ("names", "scores"),
    [
        (("neg_1", "neg_2", "score_2", "score_1"), [0, -1, -2]),
        (("neg_0", "neg_1", "score_1", "score_0"), [0, 0, -1]),
        (("neg", "neg_1", "score", "score_1"), [0, 0, -1]),
        (("neg", "neg_2", "score_1", "score_2"), [0, -1, -2]),
        (("neg_3", "neg_5", "score_5", "score_3"), [0, -3, -5]),
        (("neg_1", "neg_2", "score_0", "score_1", "score_2"), [0, 1, 2]),
        (("neg_1", "neg_2", "score_1", "score_2", "score_3"), [1, 2, 3]),
        (("neg_0", "neg_1", "score_1", "score_2", "score_3"), [1, 2, 3]),
        (("neg_3", "neg_5", "score_0", "score_3", "score_5"), [0, 3, 5]),
        (("neg", "score_1", "score_2"), [1, 2]),
        (("neg_2", "score_1"), [1, 0]),
        (("neg_1", "neg_2", "pos_score", "neg_score_2", "neg_score_1"), [0, 1, 2]),
    ],
)
def test_scores_belong_to_the_negatives_of_their_numbers(
    names: tuple[str, ...], scores: list[int]
) -> None:
    data = train_set(read_records([row(*names)]))
    assert data.scores is not None and data.scores.tolist() == [scores]


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (("neg_1", "neg_2", "score_1", "score_3"), "score_3"),
        (("neg_1", "neg_3", "score_1", "score_2"), "score_2"),
        (("neg_1", "neg_2", "score_2", "score_3"), "score_3"),
        (("neg", "neg_1", "score_1", "score_2"), "score_2"),
        (("neg_1", "neg_2", "score_1", "score_2", "score_4"), "score_4"),
        (("neg_1", "neg_2", "score_2", "score_3", "score_4"), "score_4"),
        (("neg_1", "neg_3", "score_1", "score_2", "score_3"), "score_2"),
        (("neg", "score_1", "score_3"), "score_3"),
        (("neg_1", "neg_2", "pos_score", "neg_score_1", "neg_score_3"), "neg_score_3"),
    ],
)
def test_scores_of_other_numbers_are_refused(names: tuple[str, ...], odd: str) -> None:
    with pytest.raises(DataError, match=f"record: '{odd}' has the number of no negative") as caught:
        read_records([row(*names)])
    assert "1 to n + 1, with the document's score first" in str(caught.value)


def test_numbered_scores_of_a_list_count_from_0_or_1() -> None:
    lists = {**A, "neg": ["c", "d"]}
    for names in (("score_0", "score_1"), ("score_1", "score_2")):
        assert read_records([{**lists, **dict.fromkeys(names, 1)}]).kind == "distillation"
    with pytest.raises(DataError, match="'score_3' has the number of no negative"):
        read_records([{**lists, "score_1": 1, "score_3": 1}])


def test_scores_is_a_name_of_scores() -> None:
    records = read_records([{**A, "neg": ["c", "d"], "scores": [3, 2, 1]}])
    assert records.kind == "distillation"
    assert read_records([{**A, "neg": "c", "Scores": 2}]).kind == "distillation"


@pytest.mark.parametrize(
    ("half", "other"),
    [("pos_score", "negative"), ("neg_score", "document"), ("neg_scores", "document")],
)
def test_half_a_teacher_is_refused(half: str, other: str) -> None:
    rows = [{**A, "neg": "c", half: 1}]
    with pytest.raises(DataError) as caught:
        read_records(rows)
    assert f"'{half}' holds a teacher's score of the " in str(caught.value)
    assert f"{{{other}_score: …}}" in str(caught.value)
    told = {"query": "query", "document": "document", "negative": "neg"}
    assert read_records(rows, columns=told).kind == "triplets"


def test_scores_that_the_user_leaves_out_are_named() -> None:
    rows = [{**A, "neg": "c", "score": 1, "pos_score": 2, "label": "x"}]
    told = {"query": "query", "document": "document", "negative": "neg"}
    said = "triplets without a teacher: the scores of 'score', 'pos_score' are not read"
    assert said in read_records(rows, columns=told).notes


def test_negatives_of_another_name_are_named() -> None:
    rows = [{**A, "negative_1": "c", "negative_2": "d", "hard_negative": "e"}]
    assert (
        "only 'negative_1', 'negative_2' of the negatives are read, not 'hard_negative': columns "
        "of one name with numbers (negative_1, negative_2 …) are read together"
    ) in read_records(rows).notes
    told = {"negative": "hard_negative"}
    assert not any("only" in note for note in read_records(rows, columns=told).notes)


def test_rows_with_equal_margins_are_equal() -> None:
    row = {**A, "neg": ["c", "d"]}
    records = read_records([{**row, "score": [3, 2, 0]}, {**row, "score": [5, 4, 2]}])
    assert "rows that repeat an earlier one: 1" in records.notes
    assert not any("different margins" in note for note in records.notes)
    data = train_set(records)
    assert data.scores is not None
    np.testing.assert_array_equal(data.scores, [[3, 2, 0]])
    one = [read_records([{**row, "score": scores}]) for scores in ([1, 3], [3, 2, 0], [8, 7, 5])]
    assert len({records.fingerprint for records in one}) == 1
    assert read_records([{**row, "score": [1, 2]}]).fingerprint != one[0].fingerprint
