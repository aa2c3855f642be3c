"""The normal form of training data: distinct texts, groups, the items of a step, and the split."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.data.dataset import TrainSet, train_set
from ftray.data.readers import read_records
from ftray.errors import DataError

quick = settings(max_examples=100, deadline=None, derandomize=True)


def labelled(*rows: tuple[str, str]) -> TrainSet:
    return train_set(read_records([{"item": text, "label": label} for text, label in rows]))


def pairs(*rows: tuple[str, str]) -> TrainSet:
    return train_set(read_records([{"query": a, "document": b} for a, b in rows]))


def cells(data: TrainSet) -> list[tuple[str, ...]]:
    texts = data.texts.to_pylist()
    return [tuple(texts[i] for i in row) for row in data.rows]


def step(data: TrainSet, *rows: int, roles_differ: bool = False) -> Any:
    return data.step_rows(np.array(rows), roles_differ=roles_differ)


# ---------------------------------------------------------------- the normal form


def test_equal_rows_are_one_row_and_the_notes_say_so() -> None:
    data = labelled(("a", "x"), ("b", "y"), ("a", "x"), ("a", "x"))
    assert (data.kind, cells(data), data.groups.tolist()) == ("labelled", [("a",), ("b",)], [0, 1])
    assert data.n_groups == 2
    assert "rows that repeat an earlier one: 2" in data.notes


def test_equal_pairs_are_one_pair_but_a_turned_pair_is_another() -> None:
    data = pairs(("a", "b"), ("b", "a"), ("a", "b"))
    assert cells(data) == [("a", "b"), ("b", "a")]
    assert data.texts.to_pylist() == ["a", "b"]
    assert "rows that repeat an earlier one: 1" in data.notes


def test_text_under_two_labels_is_one_text_in_two_rows() -> None:
    data = labelled(("a", "x"), ("b", "y"), ("a", "y"))
    assert data.texts.to_pylist() == ["a", "b"]
    assert (data.rows[:, 0].tolist(), data.groups.tolist()) == ([0, 1, 0], [0, 1, 1])


def test_texts_without_labels_cannot_be_learnt_from() -> None:
    with pytest.raises(DataError, match=r"eval_data .* has one column of texts. To learn from, it"):
        train_set(read_records(["a", "b"]), where="eval_data")


def test_pairs_that_are_linked_by_texts_form_one_group() -> None:
    data = pairs(("q1", "d1"), ("q2", "d2"), ("q1", "d3"), ("d3", "e"), ("q3", "d4"))
    first, second, third, fourth, fifth = data.groups.tolist()
    assert first == third == fourth
    assert len({first, second, fifth}) == 3
    assert data.n_groups == 3
    assert "pairs that share texts form 3 groups, the largest with 3 of 5 pairs" in data.notes


cell = st.sampled_from("abcdefghij")


@quick
@given(rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=20))
def test_groups_are_the_connected_components(rows: list[tuple[str, str]]) -> None:
    data = pairs(*rows)
    component = {text: {text} for pair in rows for text in pair}
    for a, b in rows:  # merge by hand
        merged = component[a] | component[b]
        for text in merged:
            component[text] = merged
    for i, (a, _) in enumerate(cells(data)):
        for j, (b, _) in enumerate(cells(data)):
            assert (data.groups[i] == data.groups[j]) == (b in component[a])
    assert sorted(set(data.groups.tolist())) == list(range(data.n_groups))


# ---------------------------------------------------------------- a step


def test_step_encodes_a_text_once_in_whatever_column_it_stands() -> None:
    data = pairs(("a", "b"), ("c", "a"), ("a", "d"))
    rows = step(data, 1, 0, 2)
    assert rows.texts == [("", "c"), ("", "a"), ("", "b"), ("", "d")]
    assert rows.columns.tolist() == [[0, 1], [1, 2], [1, 3]]
    assert rows.text_ids.tolist() == data.rows[[1, 0, 2]].tolist()
    assert rows.rows.tolist() == [1, 0, 2]


def test_step_encodes_a_text_for_each_role_where_roles_differ() -> None:
    data = pairs(("a", "b"), ("c", "a"))
    rows = step(data, 0, 1, roles_differ=True)
    assert rows.texts == [("query", "a"), ("document", "b"), ("query", "c"), ("document", "a")]
    assert rows.columns.tolist() == [[0, 1], [2, 3]]
    assert rows.text_ids[0, 0] == rows.text_ids[1, 1]  # still known to be one text


def test_step_of_pairs_labels_every_text_with_its_group() -> None:
    data = pairs(("a", "b"), ("c", "d"), ("a", "e"))
    for roles_differ in (False, True):
        rows = step(data, 0, 1, 2, roles_differ=roles_differ)
        label = {rows.texts[i][1]: g for i, g in zip(rows.label_items, rows.labels, strict=True)}
        assert label["a"] == label["b"] == label["e"] == data.groups[0]
        assert label["c"] == label["d"] == data.groups[1]
        assert sorted(rows.label_items.tolist()) == list(range(len(rows.texts)))


def test_step_of_labelled_rows_has_no_roles() -> None:
    data = labelled(("a", "x"), ("b", "y"))
    rows = step(data, 1, 0, roles_differ=True)
    assert rows.texts == [("", "b"), ("", "a")]
    assert (rows.columns.tolist(), rows.labels.tolist()) == ([[0], [1]], [1, 0])


def test_step_gives_a_text_under_two_labels_both_but_encodes_it_once() -> None:
    data = labelled(("a", "x"), ("b", "y"), ("a", "y"))
    rows = step(data, 0, 1, 2)
    assert rows.texts == [("", "a"), ("", "b")]
    assert rows.label_items.tolist() == [0, 1, 0]
    assert rows.labels.tolist() == [0, 1, 1]


@quick
@given(
    rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=20),
    roles_differ=st.booleans(),
    seed=st.integers(0, 99),
)
def test_columns_of_a_step_lead_back_to_the_rows(
    rows: list[tuple[str, str]], roles_differ: bool, seed: int
) -> None:
    data = pairs(*rows)
    taken = np.random.default_rng(seed).permutation(len(data))[: 1 + len(data) // 2]
    rows_of_step = data.step_rows(taken, roles_differ=roles_differ)
    texts = [text for _, text in rows_of_step.texts]
    assert [tuple(texts[i] for i in row) for row in rows_of_step.columns] == [
        cells(data)[row] for row in taken
    ]
    assert len(set(rows_of_step.texts)) == len(rows_of_step.texts)
    if not roles_differ:
        assert len(set(texts)) == len(texts)


# ---------------------------------------------------------------- the split


def classes_of(*sizes: int) -> TrainSet:
    return labelled(
        *((f"text {c} {i}", f"class {c}") for c, n in enumerate(sizes) for i in range(n))
    )


@quick
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 9),
)
def test_split_takes_its_share_of_each_class_two_rows_at_a_time(
    sizes: list[int], share: float, seed: int
) -> None:
    data = classes_of(*sizes)
    couples = sum(n // 2 for n in sizes)
    try:
        train, val = data.split(share, seed)
    except DataError:
        assert couples * min(share, 1 - share) < 1
        return
    assert sorted(cells(train) + cells(val)) == sorted(cells(data))
    assert abs(len(val) / 2 - share * couples) <= 1
    held = Counter(val.groups.tolist())
    assert all(count % 2 == 0 for count in held.values())
    assert all(abs(held[c] / 2 - share * (n // 2)) <= 1 for c, n in enumerate(sizes))


@quick
@given(
    sizes=st.lists(st.integers(1, 10), min_size=2, max_size=12),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 9),
)
def test_split_never_parts_a_group_of_pairs(sizes: list[int], share: float, seed: int) -> None:
    data = pairs(*((f"query {g}", f"{g} {i}") for g, n in enumerate(sizes) for i in range(n)))
    try:
        train, val = data.split(share, seed)
    except DataError:
        assert min(sizes) > share * len(data)
        return
    assert sorted(cells(train) + cells(val)) == sorted(cells(data))
    assert not set(train.groups.tolist()) & set(val.groups.tolist())
    assert 1 <= len(val) <= share * len(data)


def test_split_is_drawn_from_the_seed() -> None:
    data = classes_of(20, 20)
    assert cells(data.split(0.2, 1)[1]) == cells(data.split(0.2, 1)[1])
    assert cells(data.split(0.2, 1)[1]) != cells(data.split(0.2, 2)[1])


def test_parts_of_a_split_number_their_classes_as_the_whole() -> None:
    data = classes_of(2, 2, 2, 2)
    train, val = data.split(0.5, 0)
    assert train.n_groups == val.n_groups == 4  # also where a class lies in one part alone
    for part in (train, val):
        for (text,), group in zip(cells(part), part.groups, strict=True):
            assert text.split()[1] == str(group)


def test_one_large_group_does_not_keep_the_small_ones_from_being_held_out() -> None:
    rows = [("q", f"d{i}") for i in range(80)] + [(f"a{i}", f"b{i}") for i in range(20)]
    data = pairs(*rows)
    for seed in range(20):
        assert len(data.split(0.1, seed)[1]) == 10


def test_split_that_empties_a_side_is_an_error() -> None:
    with pytest.raises(DataError, match=r"val_split = 0.1 of 3 rows leaves one side without rows"):
        pairs(("q", "a"), ("q", "b"), ("q", "c")).split(0.1, 0)
    with pytest.raises(DataError, match=r"give another share, or eval_data"):
        pairs(("q", "a"), ("q", "b")).split(0.9, 0)
