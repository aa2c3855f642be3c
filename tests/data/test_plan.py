"""Which rows form a step: what each sampler promises, for any data."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.data.plan import ClassBalancedPlan, PairsPlan, Plan, RandomPlan, make_plan
from ftray.errors import ConfigError, DataError

Numbers = npt.NDArray[np.int64]

quick = settings(max_examples=150, deadline=None, derandomize=True)


def epoch_of(plan: Plan, epoch: int) -> list[list[int]]:
    return [plan.rows(epoch, step).tolist() for step in range(plan.steps_per_epoch)]


def labels(*sizes: int) -> Numbers:
    """Class 0 with the first number of rows, and so on; the rows of a class are not neighbours."""
    classes = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(7).permutation(classes)


def assert_sound_steps(plan: Plan, epoch: int) -> None:
    for step in epoch_of(plan, epoch):
        assert 1 <= len(step) <= plan.batch_size
        assert len(set(step)) == len(step)


# ---------------------------------------------------------------- random


@quick
@given(n=st.integers(1, 200), batch=st.integers(1, 64), seed=st.integers(0, 99))
def test_random_plan_shows_every_row_once_per_epoch(n: int, batch: int, seed: int) -> None:
    plan = RandomPlan(n, batch, seed)
    steps = epoch_of(plan, 3)
    assert sorted(itertools.chain(*steps)) == list(range(n))
    assert all(len(step) == batch for step in steps[:-2])
    if len(steps) > 1:  # the last two share what is left: no step of one or two rows
        assert 0 <= len(steps[-2]) - len(steps[-1]) <= 1
    assert plan.left_out(3) == 0


def test_random_plan_shuffles_anew_in_each_epoch_and_for_each_seed() -> None:
    first = epoch_of(RandomPlan(100, 10, seed=0), 0)
    assert first != epoch_of(RandomPlan(100, 10, seed=0), 1)
    assert first != epoch_of(RandomPlan(100, 10, seed=1), 0)
    assert first == epoch_of(RandomPlan(100, 10, seed=0), 0)


# ---------------------------------------------------------------- classes


class_sizes = st.lists(st.integers(1, 40), min_size=2, max_size=12)
class_batches = st.tuples(st.integers(4, 48), st.integers(2, 8))


def class_plan(sizes: list[int], batch: tuple[int, int], seed: int = 0) -> ClassBalancedPlan:
    return ClassBalancedPlan(labels(*sizes), batch[0], batch[1], seed)


@quick
@given(sizes=class_sizes, batch=class_batches, epoch=st.integers(0, 3))
def test_class_plan_holds_p_classes_with_k_rows_each(
    sizes: list[int], batch: tuple[int, int], epoch: int
) -> None:
    classes = labels(*sizes)
    plan = class_plan(sizes, batch)
    p, k = plan.classes_per_step, plan.items_per_class
    assert p == min(len(sizes), max(batch[0] // batch[1], 2))
    assert k == batch[0] // p
    assert_sound_steps(plan, epoch)
    for step in epoch_of(plan, epoch):
        counts = Counter(classes[step].tolist())
        assert len(counts) == p
        for c, count in counts.items():
            assert count == min(k, sizes[c])


@quick
@given(sizes=class_sizes, batch=class_batches, epoch=st.integers(0, 3))
def test_class_plan_shows_every_row_of_a_class_that_fits(
    sizes: list[int], batch: tuple[int, int], epoch: int
) -> None:
    classes = labels(*sizes)
    plan = class_plan(sizes, batch)
    seen = set(itertools.chain(*epoch_of(plan, epoch)))
    most = plan.steps_per_epoch * plan.items_per_class
    for c, size in enumerate(sizes):
        assert len(set(np.flatnonzero(classes == c).tolist()) & seen) == min(size, most)
    assert plan.left_out(epoch) == len(classes) - len(seen)


@quick
@given(big=st.integers(60, 300), small=st.integers(1, 12), batch=class_batches)
def test_rows_of_a_dominating_class_take_turns_over_epochs(
    big: int, small: int, batch: tuple[int, int]
) -> None:
    plan = class_plan([big, small], batch)
    most = plan.steps_per_epoch * plan.items_per_class
    epochs = -(-big // most) + 1
    seen = {row for e in range(epochs) for step in epoch_of(plan, e) for row in step}
    assert seen == set(range(big + small))


def test_class_of_a_thousand_beside_a_class_of_ten() -> None:
    classes = labels(1000, 10)
    plan = ClassBalancedPlan(classes, 64, 4, seed=0)
    steps = epoch_of(plan, 0)
    counts = [Counter(classes[step].tolist()) for step in steps]
    assert counts == [{0: 32, 1: 10}] * 17
    assert plan.left_out(0) == 1000 - 17 * 32
    both = set(itertools.chain(*steps, *epoch_of(plan, 1)))
    assert len(both) == 1010


def test_with_fewer_classes_than_p_each_gives_more_rows() -> None:
    classes = labels(100, 100, 100)
    plan = ClassBalancedPlan(classes, 64, 4, seed=0)
    assert (plan.classes_per_step, plan.items_per_class) == (3, 21)
    for step in epoch_of(plan, 0):
        assert Counter(classes[step].tolist()) == {0: 21, 1: 21, 2: 21}


def test_batch_larger_than_all_rows_of_its_classes_takes_them_all() -> None:
    plan = ClassBalancedPlan(labels(2, 3), 64, 4, seed=0)
    assert [sorted(step) for step in epoch_of(plan, 0)] == [[0, 1, 2, 3, 4]]


def test_class_plan_meets_other_rows_together_in_each_epoch() -> None:
    plan = ClassBalancedPlan(labels(*[8] * 20), 16, 4, seed=0)
    assert epoch_of(plan, 0) != epoch_of(plan, 1)
    assert epoch_of(plan, 0) != epoch_of(ClassBalancedPlan(labels(*[8] * 20), 16, 4, seed=1), 0)


# ---------------------------------------------------------------- pairs


@st.composite
def pair_graphs(draw: st.DrawFn) -> tuple[Numbers, int]:
    """Distinct pairs over few texts, so that many share one; texts may stand in both columns."""
    queries = draw(st.integers(1, 12))
    documents = draw(st.integers(1, 12))
    cells = st.tuples(st.integers(0, queries - 1), st.integers(0, documents - 1))
    pairs = draw(st.lists(cells, min_size=1, max_size=60, unique=True))
    shift = draw(st.sampled_from([queries, 0]))  # 0: a query may be another's document
    array = np.array(pairs, dtype=np.int64) + np.array([0, shift])
    return array, draw(st.integers(1, min(16, len(array))))


@quick
@given(graph=pair_graphs(), epoch=st.integers(0, 3))
def test_no_two_pairs_of_a_step_share_a_text(graph: tuple[Numbers, int], epoch: int) -> None:
    pairs, batch = graph
    plan = PairsPlan(pairs, batch, seed=0)
    assert_sound_steps(plan, epoch)
    for step in epoch_of(plan, epoch):
        texts = [text for row in step for text in set(pairs[row].tolist())]
        assert len(texts) == len(set(texts))


@quick
@given(graph=pair_graphs(), epoch=st.integers(0, 3))
def test_every_pair_comes_once_or_is_counted_as_left_out(
    graph: tuple[Numbers, int], epoch: int
) -> None:
    pairs, batch = graph
    plan = PairsPlan(pairs, batch, seed=0)
    shown = list(itertools.chain(*epoch_of(plan, epoch)))
    assert len(shown) == len(set(shown))
    assert len(shown) + plan.left_out(epoch) == len(pairs)


@quick
@given(graph=pair_graphs(), seed=st.integers(0, 9))
def test_pairs_left_out_come_in_later_epochs(graph: tuple[Numbers, int], seed: int) -> None:
    pairs, batch = graph
    plan = PairsPlan(pairs, batch, seed)
    missing = set(range(len(pairs)))
    for epoch in range(300):
        missing -= set(itertools.chain(*epoch_of(plan, epoch)))
        if not missing:
            return
    pytest.fail(f"rows {sorted(missing)} never come")


def test_pairs_without_a_common_text_are_all_shown() -> None:
    pairs = np.arange(60).reshape(30, 2)
    plan = PairsPlan(pairs, 8, seed=0)
    assert [len(step) for step in epoch_of(plan, 0)] == [8, 8, 7, 7]
    assert sorted(itertools.chain(*epoch_of(plan, 0))) == list(range(30))
    assert plan.left_out(0) == 0


def test_pair_whose_texts_are_equal_is_no_conflict_with_itself() -> None:
    plan = PairsPlan(np.array([[0, 0], [1, 2], [3, 3]]), 3, seed=0)
    assert sorted(plan.rows(0, 0).tolist()) == [0, 1, 2]


def test_documents_of_one_query_take_turns() -> None:
    pairs = np.stack([np.zeros(20, np.int64), np.arange(1, 21)], axis=1)
    plan = PairsPlan(pairs, 5, seed=0)
    assert plan.steps_per_epoch == 4
    epochs = [epoch_of(plan, epoch) for epoch in range(5)]
    assert all(len(step) == 1 for steps in epochs for step in steps)
    assert plan.left_out(0) == 16
    assert sorted(row for steps in epochs for step in steps for row in step) == list(range(20))


def test_surplus_of_a_frequent_text_leaves_no_step_nearly_empty() -> None:
    frequent = np.stack([np.arange(500), np.full(500, 500)], axis=1)
    others = np.arange(501, 1501).reshape(500, 2)
    plan = PairsPlan(np.concatenate([frequent, others]), 10, seed=0)
    sizes = [len(step) for step in epoch_of(plan, 0)]
    assert (plan.left_out(0), sum(sizes)) == (400, 600)
    assert set(sizes) == {6}


def test_pair_of_two_frequent_texts_is_not_always_the_last_to_be_placed() -> None:
    # five queries with twenty documents; document 50 is the first of four and the fourth of one
    own = itertools.count(100)
    pairs = np.array(
        [
            (query, 50 if place == (0 if query < 4 else 3) else next(own))
            for query in range(5)
            for place in range(20)
        ]
    )
    plan = PairsPlan(pairs, 25, seed=0)
    seen = {row for e in range(100) for step in epoch_of(plan, e) for row in step}
    assert seen == set(range(100))


# ---------------------------------------------------------------- all plans


PLANS: dict[str, Any] = {
    "random": lambda: RandomPlan(50, 8, seed=3),
    "class": lambda: ClassBalancedPlan(labels(30, 5, 9, 1), 12, 4, seed=3),
    "pairs": lambda: PairsPlan(
        np.unique(np.random.default_rng(0).integers(0, 9, (60, 2)), axis=0), 8, seed=3
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_steps_can_be_asked_for_in_any_order(name: str) -> None:
    plan, other = PLANS[name](), PLANS[name]()
    in_order = {(e, s): plan.rows(e, s) for e in range(4) for s in range(plan.steps_per_epoch)}
    order = list(in_order)
    np.random.default_rng(1).shuffle(order)
    for epoch, step in order:
        np.testing.assert_array_equal(other.rows(epoch, step), in_order[epoch, step])


@pytest.mark.parametrize("name", PLANS)
def test_step_beyond_the_epoch_is_an_error(name: str) -> None:
    plan = PLANS[name]()
    for step in (-1, plan.steps_per_epoch):
        with pytest.raises(IndexError, match=f"step {step} of an epoch of"):
            plan.rows(0, step)


# ---------------------------------------------------------------- what cannot be planned


def plan_of(sampler: Any, rows: Numbers, groups: Numbers, **options: int) -> Plan:
    given = {"batch_size": 4, "items_per_class": 2, "seed": 0, **options}
    return make_plan(sampler, rows=rows, groups=groups, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["class", "random"])
def test_one_class_is_an_error(sampler: str) -> None:
    with pytest.raises(DataError, match="The 6 training rows form 1 class: at least two"):
        plan_of(sampler, np.arange(6)[:, None], np.zeros(6, np.int64))


def test_one_query_that_has_all_documents_is_an_error() -> None:
    pairs = np.stack([np.zeros(6, np.int64), np.arange(1, 7)], axis=1)
    with pytest.raises(DataError, match="form 1 group of pairs that share texts"):
        plan_of("pairs", pairs, np.zeros(6, np.int64))


def test_batch_larger_than_the_data_is_an_error_that_names_the_largest() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 7, .* only 6 training rows.* at most 6"):
        plan_of("random", np.arange(6)[:, None], np.arange(6), batch_size=7)


def test_class_batch_without_room_for_two_classes_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 3 .* at least 4, or sampler: random"):
        plan_of("class", np.arange(6)[:, None], np.arange(6) % 2, batch_size=3)


def test_sampler_decides_the_plan() -> None:
    pairs = np.arange(12).reshape(6, 2)
    assert isinstance(plan_of("random", pairs, np.arange(6)), RandomPlan)
    assert isinstance(plan_of("pairs", pairs, np.arange(6)), PairsPlan)
    assert isinstance(plan_of("class", pairs[:, :1], np.arange(6) % 2), ClassBalancedPlan)


def test_classes_of_one_row_each_have_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="Each of the 6 classes has one training row"):
        make_plan(
            "class",
            rows=np.arange(6)[:, None],
            groups=np.arange(6),
            batch_size=4,
            items_per_class=2,
            seed=0,
        )


def test_a_class_meets_many_others_within_an_epoch() -> None:
    """77 classes of 20 rows, 16 of 4 a step: each class stands in 5 steps of 15 others."""
    classes = np.repeat(np.arange(77), 20)
    plan = ClassBalancedPlan(classes, 64, 4, seed=0)
    for epoch in range(3):
        met: dict[int, set[int]] = {c: set() for c in range(77)}
        sets = set()
        for step in range(plan.steps_per_epoch):
            found = np.unique(classes[plan.rows(epoch, step)]).tolist()
            sets.add(tuple(found))
            for c in found:
                met[c] |= set(found) - {c}
        assert len(sets) == plan.steps_per_epoch
        # 5 draws of 15 among 76 meet 51 on average; dealt in a row it would be 15
        assert 45 < np.mean([len(others) for others in met.values()]) < 57
