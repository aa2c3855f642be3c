"""Before the first step: what frozen weights make of each distinct thing, computed once.

The ranks share the work and exchange what they have, for a step may deal any thing to any rank. The
batches are cut the same way whatever the number of workers, and computed in full precision: so are
those of evaluations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftray.data.dataset import TrainSet
from ftray.evaluation.encode import evaluating
from ftray.evaluation.spec import EvaluationSpec, Side, batches_of
from ftray.media import Content
from ftray.models.ahead import ahead
from ftray.models.base import Encoder, Features, Item
from ftray.models.frozen import KeptFeatures
from ftray.models.layout import Layout
from ftray.models.onednn import with_onednn
from ftray.runtime.base import Collectives
from ftray.training.reduce import gather_rows
from ftray.words import counted

__all__ = ["MAX_BYTES", "FeatureMaker"]

MAX_BYTES = 2 * 10**9
"""How much memory the features may take, on each worker."""
BATCH = 64
AT_A_TIME = 8192
"""Rows of the data that are looked at together, so that what is too much is never all in memory."""
NOUNS = {"text": "text", "image": "image", "points": "point cloud", "features": "vector"}
TASK = "Encoding what is frozen"

ONCE = "Frozen: {} of the {} data are encoded once, up to the weights that are trained ({})"
TOO_MUCH = "Frozen, but encoded in every step: what is made of the {} data takes more than {}"
NO_ROOM = (
    "Frozen, but encoded at each evaluation: for what is made of '{}' there is no room left in {}"
)
STOPPED = "The run is to stop: what is frozen is not encoded"
VARIES = "Frozen, but encoded in every step: {}, which are not the same twice (augmentation)"


@dataclass(frozen=True, kw_only=True)
class FeatureMaker:
    """Computes features, on all ranks together; every rank calls it.

    Attributes:
        encoder: with its weights, the same on every rank.
        collectives: the other ranks.
        layout: as in a step.
        data_workers: processes that decode.
        on_progress: takes task, batches done, and batches in all.
        is_stopped: asked between rounds of batches, by all ranks at the same time: whether the run
            is to stop. Then nothing is kept.
    """

    encoder: Encoder
    collectives: Collectives
    layout: Layout
    data_workers: int
    on_progress: Callable[[str, int, int], None]
    is_stopped: Callable[[], bool]

    def made(
        self, sets: Mapping[str, TrainSet], evaluations: Iterable[EvaluationSpec] = ()
    ) -> tuple[KeptFeatures, list[str]]:
        """The features of what is fixed, and what the log should say.

        Args:
            sets: what steps encode, training and validation, by these names; of none if that is
                too much.
            evaluations: what is encoded besides, each of them left out if it is too much.
        """
        roles_differ = self.encoder.roles_differ
        kept, nothing = (KeptFeatures(roles_differ=roles_differ) for _ in range(2))
        with evaluating(self.encoder):
            chosen = _Chosen(self.encoder, kept.key, self._width)
            large = [
                name
                for name, data in sets.items()
                if not chosen.add(_items_of_steps(data, roles_differ))
            ]
            notes = [VARIES.format(" and ".join(sorted(chosen.varying)))] if chosen.varying else []
            if large:
                return nothing, [*notes, TOO_MUCH.format(" and ".join(large), _bytes(MAX_BYTES))]
            if not chosen.items:
                return nothing, notes
            words = _counted(chosen.items.values())
            for spec in evaluations:
                if not chosen.add(item for side in spec.sides for item in _items_of_side(side)):
                    notes.append(NO_ROOM.format(spec.name, _bytes(MAX_BYTES)))
            branches: dict[str, list[Item]] = {}
            for item in chosen.items.values():
                branches.setdefault(self.encoder.branch_of_content(item[1]), []).append(item)
            for branch, own in branches.items():
                with with_onednn(self.encoder, len(own)):
                    table = self._table(own)
                if table is None:
                    return nothing, [STOPPED]
                kept.add(branch, own, table)
        return kept, [*notes, ONCE.format(words, " and ".join(sets), _bytes(kept.size))]

    def _of(self, items: Sequence[Item]) -> Tensor:
        return self.encoder.fixed_features(self.encoder.collate(items, self.layout))

    def _width(self, item: Item) -> int:
        """Bytes of the features of a thing, and of all of its branch."""
        return self._of([item]).nbytes

    def _table(self, items: Sequence[Item]) -> Tensor | None:
        """Features `(n, F)` of things of one branch, on the CPU; None if the run is to stop."""
        rank, world_size = self.collectives.rank, self.collectives.world_size
        batches = batches_of([self.encoder.cost(content) for _, content in items], BATCH)

        def collated(number: int) -> Features:
            return self.encoder.collate([items[i] for i in batches[number]], self.layout)

        nothing = self._of(items[:1])[:0]
        table = nothing.new_zeros((len(items), nothing.shape[1]), device="cpu")
        mine = range(rank, len(batches), world_size)
        with closing(ahead(collated, mine, self.data_workers)) as ready:
            for start in range(0, len(batches), world_size):
                if self.is_stopped():
                    return None
                here = batches[start : start + world_size]
                has_own = rank < len(here)
                own = self.encoder.fixed_features(next(ready)) if has_own else nothing
                order = torch.from_numpy(np.concatenate(here))
                table[order] = self._gathered(own, here).cpu()
                self.on_progress(TASK, min(start + world_size, len(batches)), len(batches))
        return table

    def _gathered(self, own: Tensor, batches: Sequence[npt.NDArray[np.int64]]) -> Tensor:
        """The features of one batch of each rank, one after the other."""
        ends = np.cumsum([0, *map(len, batches)])
        shares = [np.arange(*ends[i : i + 2]) for i in range(len(batches))]
        shares += [np.zeros(0, np.int64)] * (self.collectives.world_size - len(batches))
        return gather_rows(own, shares, self.collectives)


class _Chosen:
    """The distinct things whose features are kept, as long as there is room for them.

    Args:
        encoder: whose features.
        key: of a thing.
        width: bytes of the features of a thing.

    Attributes:
        items: by their keys.
        varying: the names of what is frozen, and is not kept as it is another thing in each step.
    """

    def __init__(
        self, encoder: Encoder, key: Callable[[Item], bytes], width: Callable[[Item], int]
    ) -> None:
        self.items: dict[bytes, Item] = {}
        self.varying: set[str] = set()
        self._encoder = encoder
        self._branches = encoder.frozen_branches
        self._key = key
        self._width = width
        self._widths: dict[str, int] = {}
        self._size = 0

    def add(self, items: Iterable[Item]) -> bool:
        """Add those that are fixed; none, if there is no room for all: then it is False."""
        new: dict[bytes, Item] = {}
        size = self._size
        for item in items:
            branch, key = self._encoder.branch_of_content(item[1]), self._key(item)
            if branch not in self._branches or key in self.items or key in new:
                continue
            if self._encoder.varies(item[1]):
                self.varying.add(_noun(item[1]) + "s")
                continue
            if branch not in self._widths:
                self._widths[branch] = self._width(item)
            new[key] = item
            size += self._widths[branch]
            if size > MAX_BYTES:
                return False
        self.items |= new
        self._size = size
        return True


def _items_of_steps(data: TrainSet, roles_differ: bool) -> Iterator[Item]:
    """What steps encode, in the roles that it has there; some of it more than once."""
    for start in range(0, len(data), AT_A_TIME):
        rows = np.arange(start, min(start + AT_A_TIME, len(data)))
        yield from data.step_rows(rows, roles_differ=roles_differ).texts


def _items_of_side(side: Side) -> Iterator[Item]:
    for start in range(0, len(side.texts), AT_A_TIME):
        yield from side.items(np.arange(start, min(start + AT_A_TIME, len(side.texts))))


def _noun(content: Content) -> str:
    return "text" if isinstance(content, str) else NOUNS[content.modality]


def _counted(items: Iterable[Item]) -> str:
    """`10 texts`, `10 texts and 3 images`."""
    kinds = Counter(_noun(content) for _, content in items)
    return " and ".join(counted(count, noun) for noun, count in kinds.items())


def _bytes(size: int) -> str:
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
