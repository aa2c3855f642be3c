"""Contract 1: `batch_size` is the whole step, whatever the number of workers.

The rows of a step are a pure function of (seed, epoch, step), and the ranks' shares of its distinct
texts make the whole, none of them twice.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.data import plan as plans
from ftray.data.dataset import StepRows, TrainSet, train_set
from ftray.data.plan import Plan, Sampler, make_plan
from ftray.data.readers import read_records
from ftray.training import step as steps
from ftray.training.step import OwnTexts, own_texts

WORLD_SIZES = range(1, 6)
LIGHT = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[TrainSet, Sampler]:
    """Classes of uneven sizes, some texts under two labels."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=2, max_size=7))
    rows = [
        (f"text {c} {i}" * (1 + i % 3), f"class {c}") for c, n in enumerate(sizes) for i in range(n)
    ]
    again = draw(st.lists(st.integers(0, len(rows) - 1), max_size=5))
    rows += [(rows[i][0], "class 0") for i in again]
    data = train_set(read_records([{"item": text, "label": label} for text, label in rows]))
    return data, draw(st.sampled_from(["class", "random"]))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[TrainSet, Sampler]:
    """Pairs over few texts, so that many share one, on the same side or across."""
    n = draw(st.integers(4, 25))
    number = st.integers(0, n)
    drawn = draw(st.lists(st.tuples(number, number), min_size=2, max_size=30))
    drawn += [(n + 1, n + 2), (n + 3, n + 4)]  # at least two groups
    rows = [{"query": f"text {q}", "document": f"text {d}"} for q, d in drawn]
    return train_set(read_records(rows)), "pairs"


@st.composite
def runs(draw: st.DrawFn) -> tuple[TrainSet, Callable[[], Plan]]:
    """A data set, and a maker of its plan."""
    data, sampler = draw(st.one_of(labelled(), pairs()))
    batch_size = draw(st.integers(min(4, len(data)), min(len(data), 20)))
    if sampler == "class" and batch_size < 4:
        sampler = "random"
    k, seed = draw(st.integers(2, 4)), draw(st.integers(0, 99))

    def make() -> Plan:
        return make_plan(
            sampler,
            rows=data.rows,
            groups=data.groups,
            batch_size=batch_size,
            items_per_class=k,
            seed=seed,
        )

    return data, make


class Rank:
    """A rank of a world that does not exist."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


class Collected:
    """An encoder that keeps what it is given to collate."""

    def cost(self, content: Any) -> int:
        return len(content)

    def collate(self, items: Any, layout: str, draws: Any = None) -> Any:
        return list(items)


def _items(own: OwnTexts) -> list[Any]:
    """What a rank was given to collate."""
    return [item for micro in own.micro_batches for item in micro.features]  # type: ignore[attr-defined]


def check_shares(rows: StepRows) -> None:
    """The ranks' texts make the step's distinct texts, none on two ranks, for every world size."""
    assert len(set(rows.texts)) == len(rows.texts)
    for world_size in WORLD_SIZES:
        own = [
            own_texts(Collected(), rows, "padded", Rank(rank, world_size))  # type: ignore[arg-type]
            for rank in range(world_size)
        ]
        assert Counter(item for one in own for item in _items(one)) == Counter(rows.texts)
        for rank, one in enumerate(own):
            assert [share.tolist() for share in one.shares] == [s.tolist() for s in own[0].shares]
            assert _items(one) == [rows.texts[i] for i in one.shares[rank]]
        counts = [len(_items(one)) for one in own]
        assert max(counts) - min(counts) <= 1


@LIGHT
@given(run=runs(), roles_differ=st.booleans(), epoch=st.integers(0, 3))
def test_the_shares_of_all_ranks_are_the_distinct_texts_of_the_step(
    run: Any, roles_differ: bool, epoch: int
) -> None:
    data, make = run
    plan = make()
    for step in range(plan.steps_per_epoch):
        numbers = plan.rows(epoch, step)
        rows = data.step_rows(numbers, roles_differ=roles_differ)
        cells = data.texts.take(data.rows[numbers].ravel()).to_pylist()
        assert [rows.texts[i][1] for i in rows.columns.ravel()] == cells
        check_shares(rows)


@LIGHT
@given(run=runs(), order=st.randoms(use_true_random=False))
def test_the_rows_of_a_step_do_not_depend_on_what_was_asked_before(run: Any, order: Any) -> None:
    make = run[1]
    plan = make()
    places = [(epoch, step) for epoch in range(4) for step in range(plan.steps_per_epoch)]
    want = {place: plan.rows(*place).tolist() for place in places}
    order.shuffle(places)
    used = make()
    for place in places:
        assert used.rows(*place).tolist() == want[place]
    for place in places[:3]:
        assert make().rows(*place).tolist() == want[place], "a fresh object gives other rows"


@LIGHT
@given(run=runs())
def test_a_step_has_at_most_batch_size_rows_each_once(run: Any) -> None:
    data, make = run
    plan = make()
    for epoch in range(3):
        numbers = [plan.rows(epoch, step).tolist() for step in range(plan.steps_per_epoch)]
        assert all(1 <= len(rows) <= plan.batch_size for rows in numbers)
        assert all(len(set(rows)) == len(rows) for rows in numbers)
        seen = Counter(row for rows in numbers for row in rows)
        if not isinstance(plan, plans.ClassBalancedPlan):
            assert set(seen.values()) == {1}
        assert set(seen) <= set(range(len(data)))
        assert len(seen) == len(data) - plan.left_out(epoch)


def test_seeds_and_epochs_give_different_orders() -> None:
    rows = np.arange(400).reshape(-1, 2)
    found = set()
    for sampler in ("class", "random", "pairs"):
        for seed, epoch in ((0, 0), (0, 1), (1, 0)):
            plan = make_plan(
                sampler,
                rows=rows,
                groups=np.arange(200) // 10,
                batch_size=16,
                items_per_class=4,
                seed=seed,
            )
            found.add((sampler, tuple(plan.rows(epoch, 0).tolist())))
    assert len(found) == 9


def test_the_plan_knows_no_workers() -> None:
    """Equal for every number of workers, since nothing tells it how many there are."""
    known = set(inspect.signature(make_plan).parameters)
    for method in (Plan.rows, Plan.left_out, TrainSet.step_rows):
        known |= set(inspect.signature(method).parameters)
    assert known == {
        *("self", "sampler", "rows", "groups", "batch_size", "items_per_class", "seed", "what"),
        *("epoch", "step", "roles_differ", "negatives"),
    }
    source = inspect.getsource(plans)
    for word in ("torch", "ray", "environ", "world_size"):
        assert f"import {word}" not in source and f".{word}" not in source


# Mutations: what samplers of other frameworks do to make shares equal.


def drops_what_does_not_divide(sizes: Any, world_size: int) -> list[np.ndarray]:
    n = len(sizes) // world_size * world_size
    return [np.arange(rank, n, world_size) for rank in range(world_size)]


def repeats_to_fill_up(sizes: Any, world_size: int) -> list[np.ndarray]:
    n = -(-len(sizes) // world_size) * world_size
    return [np.arange(rank, n, world_size) % len(sizes) for rank in range(world_size)]


def every_rank_takes_all(sizes: Any, world_size: int) -> list[np.ndarray]:
    return [np.arange(len(sizes)) for _ in range(world_size)]


@pytest.mark.parametrize(
    "mutation", [drops_what_does_not_divide, repeats_to_fill_up, every_rank_takes_all]
)
def test_another_way_of_dealing_is_noticed(mutation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"item": f"text {i}", "label": "ab"[i % 2]} for i in range(7)]
    rows = train_set(read_records(records)).step_rows(np.arange(7), roles_differ=False)
    check_shares(rows)
    monkeypatch.setattr(steps, "deal", mutation)
    with pytest.raises(AssertionError):
        check_shares(rows)
