"""Losses made of other losses: at several widths of the embeddings, or several at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Needs, Shard, StepLoss, no_loss

__all__ = ["MatryoshkaLoss", "MultipleLosses", "common_needs"]

DATA_WORDS: dict[Needs, str] = {
    "labels": "labels",
    "pairs": "pairs",
    "scores": "scored pairs",
    "distillation": "a teacher's scores of documents and negatives",
}


def common_needs(losses: Iterable[tuple[str, Needs, bool]]) -> tuple[Needs, bool]:
    """What data several losses all fit, and whether all of them learn from given negatives.

    Args:
        losses: name, needs and takes_triplets of each.

    Raises:
        ConfigError: if no data fits all.
    """
    every = list(losses)
    needs = {needs for _, needs, _ in every}
    triplets = all(takes for _, _, takes in every)
    if needs <= {"labels", "pairs"}:
        return ("pairs" if "pairs" in needs else "labels"), triplets
    if needs == {"scores"}:
        return "scores", triplets
    if all(need == "distillation" or takes for _, need, takes in every):
        return "distillation", triplets
    said = ", ".join(f"{name} from {DATA_WORDS[need]}" for name, need, _ in every)
    raise ConfigError(f"No data fits all of these losses, which learn, {said}")


class _Wrapper(StepLoss):
    """A weighted sum over inner losses.

    It is row-sharded if one of them is. The others are then part of rank 0's share: other ranks
    compute them without a gradient, so that memories and random draws stay equal on all ranks, and
    add nothing.

    Args:
        losses: at least one.
        weights: of each.
    """

    def __init__(self, losses: Sequence[StepLoss], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(weights)
        self.sharded = any(loss.sharded for loss in losses)
        self.needs, self.takes_triplets = common_needs(
            (type(loss).__name__, loss.needs, loss.takes_triplets) for loss in losses
        )
        bounds = [loss.max_items for loss in losses if loss.max_items is not None]
        self.max_items = min(bounds, default=None)

    @property
    def _inner(self) -> Iterator[StepLoss]:
        for loss in self.losses:
            assert isinstance(loss, StepLoss)
            yield loss

    def _share(
        self, loss: StepLoss, embeddings: Tensor, inputs: LossInputs, shard: Shard
    ) -> Tensor:
        """What this rank adds of an inner loss."""
        if loss.sharded or not self.sharded or shard.rank == 0:
            value: Tensor = loss(embeddings, inputs, shard)
            return value
        with torch.no_grad():
            loss(embeddings, inputs, shard)
        return no_loss(embeddings)

    def check_scores(self, low: float, high: float, source: str) -> None:
        """Refuse scores that one of the losses refuses.

        Raises:
            DataError: as that loss says.
        """
        for loss in self._inner:
            loss.check_scores(low, high, source)

    def widest_margin(self, *, unit_length: bool = False) -> float:
        """The least of those of the losses."""
        return min(loss.widest_margin(unit_length=unit_length) for loss in self._inner)

    def after_step(self) -> None:
        """Keep the parameters of each loss in their range."""
        for loss in self._inner:
            loss.after_step()

    def _marks(self) -> Sequence[int]:
        """What tells the numbers of one inner loss from those of another."""
        return range(1, len(self.losses) + 1)

    def scalars(self) -> dict[str, float]:
        """Those of each loss: `temperature_2` is that of the second one."""
        found = {}
        for mark, loss in zip(self._marks(), self._inner, strict=True):
            found.update({f"{name}_{mark}": value for name, value in loss.scalars().items()})
        return found


class MatryoshkaLoss(_Wrapper):
    """A loss on the first d numbers of the embeddings, for several d (Kusupati et al. 2022).

    Shortened embeddings are brought to length 1, as in sentence-transformers' `MatryoshkaLoss`; so
    are those of full width. The sum over the dims is weighted. Where the loss has something
    learned (a temperature, vectors of classes), each dim has its own.

    Args:
        losses: one for each dim, built for embeddings of that width.
        dims: the widths, the largest first.
        weights: of each dim.
    """

    def __init__(
        self, losses: Sequence[StepLoss], dims: Sequence[int], weights: Sequence[float]
    ) -> None:
        super().__init__(losses, weights)
        self.dims = tuple(dims)

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The loss, or the rank's part of it, over all dims."""
        total = no_loss(embeddings)
        for loss, dim, weight in zip(self._inner, self.dims, self.weights, strict=True):
            short = functional.normalize(embeddings[:, :dim], dim=-1)
            total = total + weight * self._share(loss, short, inputs, shard)
        return total

    def widest_margin(self, *, unit_length: bool = False) -> float:
        """Embeddings have length 1 here."""
        return super().widest_margin(unit_length=True)

    def _marks(self) -> Sequence[int]:
        return self.dims


class MultipleLosses(_Wrapper):
    """A weighted sum of losses over the same step.

    Args:
        losses: at least one; data must fit all.
        weights: of each.

    Raises:
        ConfigError: if no data fits all.
    """

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The loss, or the rank's part of it."""
        total = no_loss(embeddings)
        for loss, weight in zip(self._inner, self.weights, strict=True):
            total = total + weight * self._share(loss, embeddings, inputs, shard)
        return total
