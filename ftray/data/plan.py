"""Which rows form step *s* of epoch *e*.

A plan is a pure function of (seed, epoch, step, batch size, data): it knows no worker, no rank and
no state. After O(rows) preparation per epoch, any step is addressed directly.

Random numbers come from `numpy.random.default_rng((seed, epoch, ...))`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ftray.errors import ConfigError, DataError

__all__ = ["ClassBalancedPlan", "PairsPlan", "Plan", "RandomPlan", "make_plan"]

Rows = npt.NDArray[np.int64]
Sampler = Literal["class", "random", "pairs"]

TRADES_PER_STEP = 10


class Plan(Protocol):
    """The steps of every epoch."""

    batch_size: int
    steps_per_epoch: int

    def rows(self, epoch: int, step: int) -> Rows:
        """Row numbers of one step, `(b,)` with 1 <= b <= batch_size, all distinct."""
        ...

    def left_out(self, epoch: int) -> int:
        """How many rows the epoch does not show (they come in later epochs)."""
        ...


def step_sizes(n_rows: int, batch_size: int) -> Rows:
    """Rows of each step: `batch_size`, but the last two share what is left evenly.

    A last step of one or two rows would have next to no negatives.
    """
    steps = math.ceil(n_rows / batch_size)
    sizes = np.full(steps, batch_size)
    tail = n_rows - batch_size * (steps - 1)
    if steps > 1:
        both = batch_size + tail
        sizes[-2:] = both - both // 2, both // 2
    else:
        sizes[-1] = tail
    return sizes


class _EpochwisePlan(ABC):
    """Keeps the last prepared epoch, so that its steps are addressed directly."""

    def __init__(self, batch_size: int, steps_per_epoch: int, seed: int) -> None:
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self._epoch = -1
        self._steps: list[Rows] = []
        self._left_out = 0

    def rows(self, epoch: int, step: int) -> Rows:
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")
        self._open(epoch)
        return self._steps[step]

    def left_out(self, epoch: int) -> int:
        self._open(epoch)
        return self._left_out

    def _open(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._steps, self._left_out = self._prepare(epoch)
            self._epoch = epoch

    @abstractmethod
    def _prepare(self, epoch: int) -> tuple[list[Rows], int]:
        """All steps of an epoch, and how many rows they leave out."""


class RandomPlan(_EpochwisePlan):
    """Every row once per epoch in random order; see `step_sizes` for the last two steps."""

    def __init__(self, n_rows: int, batch_size: int, seed: int) -> None:
        super().__init__(batch_size, math.ceil(n_rows / batch_size), seed)
        self.n_rows = n_rows

    def _prepare(self, epoch: int) -> tuple[list[Rows], int]:
        order = np.random.default_rng((self.seed, epoch)).permutation(self.n_rows)
        return np.split(order, np.cumsum(step_sizes(self.n_rows, self.batch_size))[:-1]), 0


class ClassBalancedPlan(_EpochwisePlan):
    """Each step holds P classes with K rows each.

    P is `batch_size // items_per_class`, but at least 2 and at most the number of classes; K is
    `batch_size // P`, so that P·K is the batch size, or as near below it as whole rows allow. Each
    class is cut into chunks of K rows; a last short chunk is topped up with other rows of its
    class. The chunks are dealt over `ceil(chunks / P)` steps so that no step holds a class twice
    and classes meet at random, and steps with fewer than P classes are filled with chunks of other
    classes: rows of small classes come more than once in an epoch. A class with more chunks than
    there are steps shows only that many per epoch and goes on from there in the next one
    (`left_out` counts its other rows). A class with fewer than K rows gives all it has, and is the
    only one to give fewer.
    """

    def __init__(
        self, classes: npt.NDArray[np.int64], batch_size: int, items_per_class: int, seed: int
    ) -> None:
        order = np.argsort(classes, kind="stable")
        starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
        self._members: list[Rows] = np.split(order, starts[1:])
        self.classes_per_step = min(len(self._members), max(batch_size // items_per_class, 2))
        self.items_per_class = max(batch_size // self.classes_per_step, 1)
        chunks = sum(math.ceil(len(m) / self.items_per_class) for m in self._members)
        super().__init__(batch_size, max(math.ceil(chunks / self.classes_per_step), 1), seed)

    def _prepare(self, epoch: int) -> tuple[list[Rows], int]:
        rng = np.random.default_rng((self.seed, epoch))
        class_order = rng.permutation(len(self._members)).tolist()
        held: list[list[int]] = [[] for _ in range(self.steps_per_epoch)]
        chunks: dict[int, Iterator[Rows]] = {}
        left_out, position = 0, 0
        for c in class_order:
            own, hidden = self._chunks(c, epoch)
            chunks[c] = iter(own)
            left_out += hidden
            for _ in own:
                held[position % self.steps_per_epoch].append(c)
                position += 1
        _mix(held, rng)
        steps = [[next(chunks[c]) for c in classes] for classes in held]
        spare = 0
        for step, classes in zip(steps, held, strict=True):
            while len(step) < self.classes_per_step:
                c = class_order[spare % len(class_order)]
                spare += 1
                if c not in classes:
                    step.append(self._extra_chunk(c, epoch, spare))
                    classes.append(c)
        return [np.concatenate(step) for step in steps], left_out

    def _chunks(self, c: int, epoch: int) -> tuple[list[Rows], int]:
        """The chunks of class `c` in `epoch`, and how many of its rows they leave out."""
        members, k = self._members[c], self.items_per_class
        most = self.steps_per_epoch * k
        if len(members) > most:
            window = self._window(c, epoch, most)
            return [window[i : i + k] for i in range(0, most, k)], len(members) - most
        order = members[np.random.default_rng((self.seed, epoch, c)).permutation(len(members))]
        chunks = [order[i : i + k] for i in range(0, len(order), k)]
        missing = k - len(chunks[-1])
        if missing and len(chunks) > 1:
            chunks[-1] = np.concatenate([chunks[-1], order[:missing]])
        return chunks, 0

    def _extra_chunk(self, c: int, epoch: int, number: int) -> Rows:
        members = self._members[c]
        rng = np.random.default_rng((self.seed, epoch, c, number))
        return members[rng.permutation(len(members))[: self.items_per_class]]

    def _window(self, c: int, epoch: int, count: int) -> Rows:
        """`count` different rows of class c, of shuffled passes over it that follow one another.

        An epoch takes up where the one before ended, and may end one pass and begin the next: of
        the next it then takes rows that it has not shown.
        """
        n = len(self._members[c])
        number, offset = divmod(epoch * count, n)
        rows = self._pass(c, number)[offset : offset + count]
        if len(rows) < count:
            following = self._pass(c, number + 1)
            following = following[~np.isin(following, rows)]
            rows = np.concatenate([rows, following[: count - len(rows)]])
        return rows

    def _pass(self, c: int, number: int) -> Rows:
        members = self._members[c]
        return members[np.random.default_rng((self.seed, c, number)).permutation(len(members))]


def _mix(held: list[list[int]], rng: np.random.Generator) -> None:
    """Let steps trade classes at random, in place; each keeps its number, and none twice.

    Dealt one after the other, the same classes would meet in several steps of an epoch and others
    in none: each class would be contrasted with few of the others. (The trades are those of the
    curveball algorithm, Strona et al. 2014.)
    """
    for _ in range(TRADES_PER_STEP):
        order = rng.permutation(len(held)).tolist()
        for a, b in zip(order[::2], order[1::2], strict=False):
            in_a, in_b = set(held[a]), set(held[b])
            only_a = [c for c in held[a] if c not in in_b]
            only_b = [c for c in held[b] if c not in in_a]
            pool = rng.permutation(only_a + only_b).tolist()
            both = [c for c in held[a] if c in in_b]
            held[a], held[b] = both + pool[: len(only_a)], both + pool[len(only_a) :]


class PairsPlan(_EpochwisePlan):
    """Pairs in random order, rows that share a text spread over different steps.

    A row conflicts with another when they have a text in common (as query or as document). Rows
    with conflicts are placed first, each in the next step with room that holds neither of its
    texts; the others are spread evenly over the room that is left. A row for which there is no such
    step is left out of this epoch (`left_out` counts it): the surplus of a text with more rows than
    there are steps, which comes first in a later epoch, and, where most texts have nearly as many
    rows as there are steps, now and then another one. No step is empty. The losses mask what shares
    a text all the same, so correctness never hangs on this.
    """

    def __init__(self, pairs: npt.NDArray[np.int64], batch_size: int, seed: int) -> None:
        super().__init__(batch_size, math.ceil(len(pairs) / batch_size), seed)
        self._pairs = pairs
        counts = np.bincount(pairs.ravel()) if len(pairs) else np.zeros(0, np.int64)
        own = 1 + (pairs[:, 0] == pairs[:, 1])
        self._conflicting = (counts[pairs[:, 0]] > own) | (counts[pairs[:, 1]] > own)
        self._turn = _turns(pairs, counts)

    def _prepare(self, epoch: int) -> tuple[list[Rows], int]:
        n_steps, n = self.steps_per_epoch, len(self._pairs)
        order = np.random.default_rng((self.seed, epoch)).permutation(n)
        turn, size = self._turn
        # in how many epochs it is a row's turn; rows whose turn it is now come in random order,
        # so that where two frequent texts meet no row loses to the same others in every epoch
        waits = (turn - epoch * n_steps) % np.maximum(size, 1) // n_steps
        hard = order[self._conflicting[order]]
        hard = hard[np.argsort(np.where(size > n_steps, waits, 0)[hard], kind="stable")]
        room = step_sizes(n, self.batch_size)
        steps: list[list[int]] = [[] for _ in range(n_steps)]
        texts: list[set[int]] = [set() for _ in range(n_steps)]
        placed: Counter[int] = Counter()
        left_out, cursor = 0, 0
        for row in hard.tolist():
            query, document = self._pairs[row].tolist()
            if n_steps in (placed[query], placed[document]):  # it is in all steps already
                left_out += 1
                continue
            for probe in range(n_steps):
                at = (cursor + probe) % n_steps
                if room[at] and query not in texts[at] and document not in texts[at]:
                    steps[at].append(row)
                    texts[at].update((query, document))
                    placed.update({query, document})
                    room[at] -= 1
                    cursor = at + 1
                    break
            else:
                left_out += 1
        free = order[~self._conflicting[order]]
        fills = _spread(free, room, np.array([len(step) for step in steps]))
        return [
            np.concatenate([np.asarray(step, dtype=np.int64), fill])
            for step, fill in zip(steps, fills, strict=True)
        ], left_out


def _turns(pairs: Rows, counts: Rows) -> tuple[Rows, Rows]:
    """For each row, its place among the rows of its more frequent text, and how many those are."""
    if not len(pairs):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    heavy = np.where(counts[pairs[:, 0]] >= counts[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    order = np.argsort(heavy, kind="stable")
    starts = np.flatnonzero(np.diff(heavy[order], prepend=-1))
    sizes = np.diff(np.append(starts, len(heavy)))
    place = np.empty(len(heavy), np.int64)
    place[order] = np.arange(len(heavy)) - np.repeat(starts, sizes)
    size = np.empty(len(heavy), np.int64)
    size[order] = np.repeat(sizes, sizes)
    return place, size


def _spread(free: Rows, room: Rows, held: Rows) -> list[Rows]:
    """Deal `free` over the steps' `room`, to those that hold least first."""
    step = np.repeat(np.arange(len(room)), room)
    level = np.arange(len(step)) - np.repeat(np.cumsum(room) - room - held, room)
    taken = np.sort(step[np.lexsort((step, level))[: len(free)]])
    return np.split(free, np.searchsorted(taken, np.arange(1, len(room))))


def make_plan(
    sampler: Sampler,
    *,
    rows: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    batch_size: int,
    items_per_class: int,
    seed: int,
    what: str = "training",
    negatives: bool = True,
) -> Plan:
    """The plan of one data set.

    Args:
        sampler: "class", "random" or "pairs".
        rows: text numbers of each row, `(N, C)`; C = 1 labelled, 2 pairs.
        groups: `(N,)` class (labelled) or connected group of equal texts (pairs).
        batch_size: rows of a whole step.
        items_per_class: K of a class-balanced step.
        seed: makes the plan.
        what: "training" or "validation", for messages.
        negatives: whether rows of other groups are the only negatives; scored pairs have none, and
            triplets bring theirs.

    Raises:
        DataError: for fewer than two groups: there would be no negatives; for a class-balanced
            plan of single rows: there would be no positives.
        ConfigError: for a batch larger than the data, or a class batch that holds no two classes.
    """
    n_groups = len(np.unique(groups))
    if negatives and n_groups < 2:
        form = "class" if rows.shape[1] == 1 else "group of pairs that share texts"
        raise DataError(
            f"The {len(rows)} {what} rows form {n_groups} {form}: at least two are needed, "
            "else no text is anything's negative and there is nothing to learn."
        )
    if batch_size > len(rows):
        raise ConfigError(
            f"batch_size = {batch_size}, but there are only {len(rows)} {what} rows. Give a "
            f"batch_size of at most {len(rows)}, or leave it out: the default shrinks to the data."
        )
    if sampler == "class":
        if n_groups == len(rows):
            raise DataError(
                f"Each of the {n_groups} classes has one {what} row: no text is anything's "
                "positive and there is nothing to learn. Give several texts for a class. If text "
                "and label have changed places, or if the columns are pairs of texts, name them "
                "with `columns`: {item: …, label: …}, or {query: …, document: …}."
            )
        if batch_size < 2 * min(items_per_class, 2):
            raise ConfigError(
                f"batch_size = {batch_size} cannot hold two classes of two rows each; "
                "give at least 4, or sampler: random"
            )
        return ClassBalancedPlan(groups, batch_size, items_per_class, seed)
    if sampler == "pairs":
        return PairsPlan(rows, batch_size, seed)
    return RandomPlan(len(rows), batch_size, seed)
