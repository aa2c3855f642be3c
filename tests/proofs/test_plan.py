"""The plan: which rows form which step, proven for random data and batch sizes.

The promise, clause by clause, and what shows it; `check_…` are the functions below, which hold for
all three plans unless one is named. tests/data/test_plan.py has the examples with numbers.

- every row appears as documented: `check_random`, `check_classes`, `check_pairs`; and over the
  epochs where one cannot show all: tests/data/test_plan.py (the dominating class, pairs left out)
- conflicts are spread: `check_pairs` (no text twice in a step, no pair left out in vain),
  `check_classes` (no class twice)
- P x K is kept, what deviates is stated: `check_classes`
- no empty epoch and no empty step: `check_steps`, and `check_classes` (somewhere a positive)
- refused is only what cannot be learned from: `made`
- the same steps for every worker count: the tests with `number_of_workers`, and
  test_global_batch.py (what the ranks of a step hold; the plan's functions take no worker)
- a plan made twice gives the same steps, any (epoch, step) can be asked for directly: the tests
  under "a pure function"

Each check is also shown to turn red: `BROKEN` holds what a plan could do wrong.
"""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ftray.config import validated
from ftray.data import plan as plans
from ftray.data.dataset import StepRows, TrainSet, train_set
from ftray.data.plan import ClassBalancedPlan, PairsPlan, Plan, RandomPlan, make_plan, step_sizes
from ftray.data.readers import read_records
from ftray.errors import ConfigError, DataError
from ftray.training.job import prepare
from ftray.training.step import own_texts

Numbers = npt.NDArray[np.int64]

LIGHT = settings(max_examples=120, deadline=None, derandomize=True, database=None)
FEW = settings(LIGHT, max_examples=40)


# ---------------------------------------------------------------- data of every kind


@st.composite
def class_sizes(draw: st.DrawFn) -> list[int]:
    """Rows of each class: balanced, ragged, mostly single rows, or one class above all others."""
    few, many = st.integers(1, 3), st.integers(4, 25)
    kinds = {
        "ragged": st.lists(st.integers(1, 25), min_size=2, max_size=10),
        "balanced": st.builds(lambda n, size: [size] * n, st.integers(2, 9), st.integers(2, 12)),
        "mostly single": st.builds(lambda n, rest: [1] * n + rest, many, st.lists(few, min_size=1)),
        "dominated": st.builds(
            lambda big, rest: [big, *rest], st.integers(60, 200), st.lists(few, min_size=1)
        ),
    }
    kind = draw(st.sampled_from(sorted(kinds)))
    event(kind)
    return draw(st.permutations(draw(kinds[kind]))) if kind != "balanced" else draw(kinds[kind])


@st.composite
def labelled(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The arguments of a plan over classes, or over their rows in random order."""
    sizes = draw(class_sizes())
    classes = np.random.default_rng(7).permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(classes)
    return draw(st.sampled_from(["class", "random"])), {
        "rows": np.arange(n)[:, None],
        "groups": classes,
        "batch_size": draw(batch_sizes(n)),
        "items_per_class": draw(st.integers(2, 9)),
        "seed": draw(st.integers(0, 9)),
    }


@st.composite
def paired(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The arguments of a plan over pairs, few or many of which share a text."""
    queries, documents = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    cell = st.tuples(st.integers(0, queries - 1), st.integers(0, documents - 1))
    pairs = draw(st.lists(cell, min_size=1, max_size=60, unique=True))
    across = draw(st.booleans())  # a query may be another pair's document, or its own
    rows = np.array(pairs) + np.array([0, 0 if across else queries])
    free = draw(st.integers(1, 20))  # pairs that share nothing
    rows = np.concatenate([rows, 100 + np.arange(2 * free).reshape(-1, 2)])
    return "pairs", {
        "rows": rows,
        "groups": np.arange(len(rows)),
        "batch_size": draw(batch_sizes(len(rows))),
        "items_per_class": 4,
        "seed": draw(st.integers(0, 9)),
    }


def batch_sizes(n: int) -> st.SearchStrategy[int]:
    """From the smallest to all rows, and both of these often."""
    return st.one_of(st.sampled_from([2, n]), st.integers(2, n)) if n > 2 else st.just(2)


def cannot_be_learned_from(sampler: str, groups: Numbers, batch_size: int, **_: Any) -> bool:
    """The reasons for which a plan may be refused."""
    counts = np.unique(groups, return_counts=True)[1]
    if len(counts) < 2 or batch_size > len(groups):
        return True
    return sampler == "class" and (batch_size < 4 or counts.max() == 1)


def made(sampler: str, arguments: dict[str, Any]) -> Plan | None:
    """The plan; None where there is a reason to refuse it, and it is refused."""
    if cannot_be_learned_from(sampler, **arguments):
        with pytest.raises((ConfigError, DataError)):
            make_plan(sampler, **arguments)  # type: ignore[arg-type]
        return None
    return make_plan(sampler, **arguments)  # type: ignore[arg-type]


def steps_of(plan: Plan, epoch: int) -> list[list[int]]:
    return [plan.rows(epoch, step).tolist() for step in range(plan.steps_per_epoch)]


# ---------------------------------------------------------------- the promises


def check_steps(plan: Plan, n: int, epoch: int) -> list[list[int]]:
    """Steps there are, none of them empty, none with a row twice, none beyond the batch size.

    What an epoch does not show is what it says it leaves out.
    """
    steps = steps_of(plan, epoch)
    assert steps, "an empty epoch"
    for step in steps:
        assert 1 <= len(step) <= plan.batch_size
        assert len(set(step)) == len(step)
    seen = set(itertools.chain(*steps))
    assert seen <= set(range(n))
    assert plan.left_out(epoch) == n - len(seen)
    return steps


def check_random(plan: Plan, n: int, epoch: int) -> None:
    """Every row once; all steps are whole but the last two, which share what is left evenly."""
    steps = check_steps(plan, n, epoch)
    assert sorted(itertools.chain(*steps)) == list(range(n))
    sizes = [len(step) for step in steps]
    assert set(sizes[:-2]) <= {plan.batch_size}
    if len(sizes) > 1:
        assert 0 <= sizes[-2] - sizes[-1] <= 1
        assert 2 * sizes[-1] >= plan.batch_size


def check_classes(
    plan: Plan, classes: Numbers, batch_size: int, items_per_class: int, epoch: int
) -> None:
    """P classes, K rows of each; a class with fewer rows gives all, and no other gives fewer.

    P x K is as near to the batch size as whole rows allow. Rows of a class that fits into the steps
    all come; of one that does not, as many as fit. Somewhere in the epoch a text has a positive.
    """
    steps = check_steps(plan, len(classes), epoch)
    sizes = dict(zip(*(a.tolist() for a in np.unique(classes, return_counts=True)), strict=True))
    p = min(len(sizes), max(batch_size // items_per_class, 2))
    k = batch_size // p
    assert k >= 2 and batch_size - p < p * k <= batch_size
    for step in steps:
        held = Counter(classes[step].tolist())
        assert len(held) == p, "a step without its P classes"
        assert held == {c: min(k, sizes[c]) for c in held}, "a class without its K rows"
    shown = Counter(classes[sorted(set(itertools.chain(*steps)))].tolist())
    for c, size in sizes.items():
        assert shown[c] == min(size, len(steps) * k), "a row of a class left out in vain"
    assert any(max(Counter(classes[step].tolist()).values()) > 1 for step in steps)


def check_pairs(plan: Plan, pairs: Numbers, epoch: int) -> None:
    """Every pair at most once, no text twice in a step, and no pair left out in vain.

    A pair is left out only if each step is either full or holds one of its texts already.
    """
    n = len(pairs)
    steps = check_steps(plan, n, epoch)
    assert all(count == 1 for count in Counter(itertools.chain(*steps)).values())
    texts = [[text for row in step for text in set(pairs[row].tolist())] for step in steps]
    assert all(len(set(step)) == len(step) for step in texts), "two pairs share a text"
    room = step_sizes(n, plan.batch_size).tolist()
    assert all(len(step) <= size for step, size in zip(steps, room, strict=True))
    for row in set(range(n)) - set(itertools.chain(*steps)):
        for step, held, size in zip(steps, texts, room, strict=True):
            assert len(step) == size or set(pairs[row].tolist()) & set(held), "left out in vain"


def check(sampler: str, plan: Plan, arguments: dict[str, Any], epoch: int) -> None:
    if sampler == "random":
        check_random(plan, len(arguments["rows"]), epoch)
    elif sampler == "pairs":
        check_pairs(plan, arguments["rows"], epoch)
    else:
        k = arguments["items_per_class"]
        check_classes(plan, arguments["groups"], arguments["batch_size"], k, epoch)


@LIGHT
@given(data=labelled(), epoch=st.integers(0, 4))
def test_labelled_rows_come_as_documented(data: Any, epoch: int) -> None:
    plan = made(*data)
    if plan is not None:
        check(data[0], plan, data[1], epoch)


@LIGHT
@given(data=paired(), epoch=st.integers(0, 4))
def test_pairs_come_as_documented(data: Any, epoch: int) -> None:
    plan = made(*data)
    if plan is not None:
        check("pairs", plan, data[1], epoch)
        check("random", make_plan("random", **data[1]), data[1], epoch)


EXTREMES: dict[str, list[int]] = {
    "two rows and a class beside": [2, 1],
    "the smallest balanced": [2, 2],
    "fifty of one row, one of two": [1] * 50 + [2],
    "one of a thousand, one of one": [1000, 1],
    "one of a thousand among single rows": [1000, *[1] * 30],
    "more classes than a batch has room for": [3] * 80,
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("sampler", ["class", "random"])
@pytest.mark.parametrize("batch", [2, 3, 4, 5, 7, 32, "all rows"])
def test_extreme_distributions_have_whole_steps(name: str, sampler: str, batch: Any) -> None:
    classes = np.repeat(np.arange(len(EXTREMES[name])), EXTREMES[name])
    arguments = {
        "rows": np.arange(len(classes))[:, None],
        "groups": classes,
        "batch_size": len(classes) if batch == "all rows" else batch,
        "items_per_class": 4,
        "seed": 0,
    }
    plan = made(sampler, arguments)
    for epoch in range(3 if plan is not None else 0):
        check(sampler, plan, arguments, epoch)  # type: ignore[arg-type]


# ---------------------------------------------------------------- a pure function


@FEW
@given(
    data=st.one_of(labelled(), paired()),
    places=st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1, exclude_max=True)), max_size=12),
)
def test_any_step_can_be_asked_for_directly(data: Any, places: Any) -> None:
    """In any order, of one plan, of its copy, and of a plan just made."""
    plan = made(*data)
    if plan is None:
        return
    steps = [steps_of(plan, epoch) for epoch in range(7)]
    used = made(*data)
    copy = pickle.loads(pickle.dumps(used))
    for epoch, where in places:
        step = int(where * plan.steps_per_epoch)
        fresh = made(*data)
        for one in (used, copy, fresh):
            assert one is not None and one.rows(epoch, step).tolist() == steps[epoch][step]


@FEW
@given(data=st.one_of(labelled(), paired()))
def test_an_epoch_far_away_is_asked_for_directly(data: Any) -> None:
    plan = made(*data)
    if plan is not None:
        check(data[0], plan, data[1], 10**7)


@pytest.mark.parametrize("sampler", ["class", "random", "pairs"])
def test_only_seed_epoch_and_step_decide(sampler: str) -> None:
    """The global generators of numpy, Python and torch have no say, and none is moved."""
    import random

    arguments: dict[str, Any] = {
        "rows": np.random.default_rng(0).integers(0, 60, (200, 2)),
        "groups": np.arange(200) % 13,
        "batch_size": 24,
        "items_per_class": 4,
        "seed": 5,
    }
    arguments["rows"] = np.unique(arguments["rows"], axis=0)
    arguments["groups"] = arguments["groups"][: len(arguments["rows"])]
    want = steps_of(make_plan(sampler, **arguments), 3)  # type: ignore[arg-type]
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    assert steps_of(make_plan(sampler, **arguments), 3) == want  # type: ignore[arg-type]
    drawn = np.random.rand(), random.random(), torch.rand(()).item()
    np.random.seed(1)
    random.seed(1)
    torch.manual_seed(1)
    assert drawn == (np.random.rand(), random.random(), torch.rand(()).item())
    other = make_plan(sampler, **{**arguments, "seed": 6})  # type: ignore[arg-type]
    assert steps_of(other, 3) != want


# ---------------------------------------------------------------- whatever the workers


class Rank:
    """A rank of a world that does not exist."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


class Whole:
    """An encoder that tells what each rank was given."""

    def cost(self, content: Any) -> int:
        return len(content)

    def collate(self, items: Any, layout: str, draws: Any = None) -> Any:
        return list(items)


def trained_on(data: TrainSet, plan: Plan, epoch: int, world_size: int, micro: Any) -> list[Any]:
    """The steps of an epoch as a world sees them: rows, labels, and the texts of all its ranks."""
    steps = []
    for step in range(plan.steps_per_epoch):
        rows: StepRows = data.step_rows(plan.rows(epoch, step), roles_differ=False)
        texts = Counter()
        for rank in range(world_size):
            own = own_texts(Whole(), rows, "padded", Rank(rank, world_size), micro)  # type: ignore[arg-type]
            texts.update(text for part in own.micro_batches for text in part.features)
        steps.append((rows.rows.tolist(), rows.labels.tolist(), rows.columns.tolist(), texts))
    return steps


@FEW
@given(data=labelled(), epoch=st.integers(0, 2), micro=st.one_of(st.none(), st.integers(1, 9)))
def test_every_number_of_workers_trains_the_same_global_steps(
    data: Any, epoch: int, micro: int | None
) -> None:
    sampler, arguments = data
    groups = arguments["groups"].tolist()
    rows = [{"item": f"text {i} " * (1 + i % 3), "label": f"c{c}"} for i, c in enumerate(groups)]
    train = train_set(read_records(rows))
    worlds = []
    for world_size in range(1, 6):
        plan = made(sampler, {**arguments, "rows": train.rows, "groups": train.groups})
        if plan is None:
            return
        worlds.append(trained_on(train, plan, epoch, world_size, micro))
    assert all(world == worlds[0] for world in worlds[1:])
    for numbers, _, _, texts in worlds[0]:  # and each text of the step, once
        assert texts == Counter(("", rows[i]["item"].strip()) for i in numbers)


@pytest.mark.parametrize("loss", ["SupConLoss", "ArcFaceLoss"])
def test_a_fit_has_the_same_plan_for_every_number_of_workers(
    tmp_path: Path, tiny_model: Path, labelled_rows: Any, loss: str
) -> None:
    jobs = [
        prepare(
            validated(
                {
                    "model": str(tiny_model),
                    "train_data": labelled_rows,
                    "loss": loss,
                    "val_split": 0.2,
                    "num_workers": workers,
                    "device": device,
                }
            ),
            str(tmp_path),
        )
        for workers, device in ((0, "auto"), (1, "auto"), (4, "cpu"), (64, "cuda"), ("auto", "cpu"))
    ]
    for job in jobs[1:]:
        for plan, first in ((job.plan(), jobs[0].plan()), (job.val_plan(), jobs[0].val_plan())):
            assert plan is not None and first is not None
            assert type(plan) is type(first) and plan.steps_per_epoch == first.steps_per_epoch
            assert [steps_of(plan, e) for e in range(3)] == [steps_of(first, e) for e in range(3)]


# ---------------------------------------------------------------- each check can fail


def last_step_takes_the_rest(n_rows: int, batch_size: int) -> Numbers:
    whole, rest = divmod(n_rows, batch_size)
    return np.array([batch_size] * whole + [rest] * (rest > 0))


def last_rows_are_dropped(plan: Any, epoch: int) -> Any:
    steps, left_out = PREPARE[type(plan)](plan, epoch)
    return [*steps[:-1], steps[-1][:-1]], left_out


def last_step_is_empty(plan: Any, epoch: int) -> Any:
    steps, left_out = PREPARE[type(plan)](plan, epoch)
    return [*steps[:-1], steps[-1][:0]], left_out + len(steps[-1])


def rows_are_dealt_at_random(plan: Any, epoch: int) -> Any:
    steps, left_out = PREPARE[type(plan)](plan, epoch)
    every = np.random.default_rng(epoch).permutation(np.concatenate(steps))
    return np.split(every, np.cumsum([len(step) for step in steps])[:-1]), left_out


def a_pair_is_left_out_in_vain(plan: Any, epoch: int) -> Any:
    steps, left_out = PREPARE[type(plan)](plan, epoch)
    return [steps[0][1:], *steps[1:]], left_out + 1


def epochs_are_drawn_in_turn(plan: Any, epoch: int) -> Any:
    plan.turn = getattr(plan, "turn", -1) + 1
    return PREPARE[type(plan)](plan, plan.turn)


def passes_meet_in_an_epoch(plan: Any, c: int, epoch: int, count: int) -> Numbers:
    number, offset = divmod(epoch * count, len(plan._members[c]))
    both = np.concatenate([plan._pass(c, number), plan._pass(c, number + 1)])
    return np.asarray(both[offset : offset + count])


def chunks_stay_short(plan: Any, c: int, epoch: int) -> Any:
    members, k = plan._members[c], plan.items_per_class
    if len(members) > plan.steps_per_epoch * k:
        return CHUNKS(plan, c, epoch)
    return [members[i : i + k] for i in range(0, len(members), k)], 0


CHUNKS = ClassBalancedPlan._chunks


PREPARE: dict[type, Callable[[Any, int], Any]] = {
    kind: kind._prepare for kind in (RandomPlan, ClassBalancedPlan, PairsPlan)
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "random": {"rows": np.arange(61)[:, None], "groups": np.arange(61) % 5},
    "class": {
        "rows": np.arange(61)[:, None],
        "groups": np.repeat(np.arange(5), [5, 7, 9, 13, 27]),
    },
    "pairs": {
        "rows": np.concatenate(
            [
                np.stack([np.arange(30) % 9, 50 + np.arange(30) // 2], axis=1),
                100 + np.arange(62).reshape(-1, 2),
            ]
        ),
        "groups": np.arange(61),
    },
}
KINDS = {"random": RandomPlan, "class": ClassBalancedPlan, "pairs": PairsPlan}
BROKEN: list[tuple[str, str, Callable[..., Any]]] = [
    ("random", "step_sizes", last_step_takes_the_rest),
    ("random", "_prepare", last_rows_are_dropped),
    ("random", "_prepare", last_step_is_empty),
    ("random", "_prepare", epochs_are_drawn_in_turn),
    ("class", "_prepare", last_rows_are_dropped),
    ("class", "_prepare", last_step_is_empty),
    ("class", "_prepare", rows_are_dealt_at_random),
    ("class", "_prepare", epochs_are_drawn_in_turn),
    ("class", "_window", passes_meet_in_an_epoch),
    ("class", "_chunks", chunks_stay_short),
    ("pairs", "_prepare", last_rows_are_dropped),
    ("pairs", "_prepare", last_step_is_empty),
    ("pairs", "_prepare", rows_are_dealt_at_random),
    ("pairs", "_prepare", a_pair_is_left_out_in_vain),
    ("pairs", "_prepare", epochs_are_drawn_in_turn),
]


def prove(sampler: str) -> None:
    """What the tests above prove, for one example."""
    arguments = {**EXAMPLES[sampler], "batch_size": 12, "items_per_class": 4, "seed": 1}
    plan = make_plan(sampler, **arguments)  # type: ignore[arg-type]
    for epoch in range(4):
        check(sampler, plan, arguments, epoch)
    steps = [steps_of(plan, epoch) for epoch in range(4)]
    other = make_plan(sampler, **arguments)  # type: ignore[arg-type]
    for epoch in (2, 0, 3, 1):
        assert steps_of(other, epoch) == steps[epoch]


@pytest.mark.parametrize(
    ("sampler", "what", "broken"), BROKEN, ids=[f"{s}-{b.__name__}" for s, _, b in BROKEN]
)
def test_a_plan_that_breaks_a_promise_is_noticed(
    sampler: str, what: str, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove(sampler)
    monkeypatch.setattr(plans if what == "step_sizes" else KINDS[sampler], what, broken)
    with pytest.raises(AssertionError):
        prove(sampler)
