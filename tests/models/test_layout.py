"""Which texts share a forward: every text once, at the least cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.models.layout import FORWARD_COST_TOKENS, Forward, cut_by_length, forwards_of

lengths_of_texts = st.lists(st.integers(1, 512), min_size=1, max_size=80)
quick = settings(max_examples=80, deadline=None, derandomize=True)


def cost(lengths: list[int], buckets: Iterable[list[int]]) -> int:
    """The tokens that are computed, padding included, and the price of each forward."""
    return sum(
        len(bucket) * max(lengths[i] for i in bucket) + FORWARD_COST_TOKENS for bucket in buckets
    )


@quick
@given(lengths=lengths_of_texts)
def test_every_text_is_in_one_bucket(lengths: list[int]) -> None:
    for layout in ("padded", "bucketed"):
        cut = cut_by_length(lengths, layout)  # type: ignore[arg-type]
        assert sorted(itertools.chain(*cut)) == list(range(len(lengths)))
        assert all(cut)


@quick
@given(lengths=lengths_of_texts)
def test_padded_is_one_bucket_in_the_order_given(lengths: list[int]) -> None:
    assert cut_by_length(lengths, "padded") == [list(range(len(lengths)))]


@quick
@given(lengths=lengths_of_texts)
def test_bucketed_never_costs_more_than_padded(lengths: list[int]) -> None:
    bucketed = cut_by_length(lengths, "bucketed")
    assert cost(lengths, bucketed) <= cost(lengths, cut_by_length(lengths, "padded"))


@quick
@given(lengths=lengths_of_texts)
def test_buckets_hold_neighbours_in_length(lengths: list[int]) -> None:
    spans = [
        (min(lengths[i] for i in bucket), max(lengths[i] for i in bucket))
        for bucket in cut_by_length(lengths, "bucketed")
    ]
    assert all(longest < shortest for (_, longest), (shortest, _) in itertools.pairwise(spans))


@quick
@given(lengths=st.lists(st.sampled_from([1, 8, 40, 41, 120, 300, 512]), min_size=1, max_size=10))
def test_bucketed_is_the_cheapest_of_all_cuts(lengths: list[int]) -> None:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    cuts = []
    for size in range(len(lengths)):
        for ends in itertools.combinations(range(1, len(lengths)), size):
            bounds = [0, *ends, len(lengths)]
            cuts.append([order[a:b] for a, b in itertools.pairwise(bounds)])
    least = min(cost(lengths, cut) for cut in cuts)
    assert cost(lengths, cut_by_length(lengths, "bucketed")) == least


def test_short_queries_and_long_documents_do_not_share_a_forward() -> None:
    lengths = [8, 300] * 32
    assert cut_by_length(lengths, "bucketed") == [list(range(0, 64, 2)), list(range(1, 64, 2))]


def test_few_short_texts_are_not_worth_two_forwards() -> None:
    assert len(cut_by_length([5, 9, 30], "bucketed")) == 1


def test_no_texts_are_no_forward() -> None:
    assert cut_by_length([], "bucketed") == cut_by_length([], "padded") == []


def total(forwards: list[Forward]) -> float:
    return sum(forward.cost for forward in forwards)


@quick
@given(lengths=lengths_of_texts)
def test_every_text_is_in_one_row_and_every_row_has_room_for_its_texts(lengths: list[int]) -> None:
    for layout in ("auto", "packed", "bucketed", "padded"):
        forwards = forwards_of(lengths, layout)  # type: ignore[arg-type]
        assert sorted(itertools.chain(*(f.texts for f in forwards))) == list(range(len(lengths)))
        for forward in forwards:
            filled = [sum(lengths[i] for i in row) for row in forward.rows]
            assert all(filled) and max(filled) == forward.width
            assert forward.tokens == len(filled) * forward.width


@quick
@given(lengths=lengths_of_texts)
def test_auto_is_never_dearer_than_any_other_layout(lengths: list[int]) -> None:
    auto = total(forwards_of(lengths, "auto"))
    for layout in ("packed", "bucketed"):
        assert auto <= total(forwards_of(lengths, layout))  # type: ignore[arg-type]


def test_short_texts_are_packed_and_texts_of_one_length_are_not() -> None:
    (short,) = forwards_of([5, 9, 12, 30, 7, 7, 21] * 10, "auto")
    assert short.is_packed and short.tokens < 1.05 * sum([5, 9, 12, 30, 7, 7, 21] * 10)
    (alike,) = forwards_of([100] * 32, "auto")
    assert not alike.is_packed and alike.tokens == 3200
    assert forwards_of([], "auto") == []


def test_a_layout_is_a_function_of_the_lengths() -> None:
    lengths = [3, 50, 8, 8, 20, 64, 11]
    assert forwards_of(lengths, "auto") == forwards_of(list(lengths), "auto")
