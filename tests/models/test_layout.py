"""Which texts share a forward: every text once, at the least cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.models.layout import FORWARD_COST_TOKENS, cut_by_length

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
