"""Losses that rank the scored pairs of a step: a higher score asks for a higher similarity."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from ftray.errors import DataError
from ftray.losses.base import LossInputs, Needs, Shard, StepLoss
from ftray.losses.values import checked_positive

__all__ = ["AnglELoss", "CoSENTLoss"]


class _RankedPairs(StepLoss):
    """Logarithm of 1 + Σ exp(scale · (s_k - s_i)) over all i, k where pair i has the higher score.

    s are the similarities of the pairs. Only the order of the scores counts, so they may have any
    range. Every pair of pairs of the *global* batch is in the sum, which every rank computes in
    full: it costs O(B log B).

    Args:
        scale: 1 / temperature.

    Raises:
        ConfigError: for a scale that is not a positive number.
    """

    needs: Needs = "scores"
    sharded = False

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = checked_positive("loss_options.scale", scale)

    @abstractmethod
    def similarities(self, first: Tensor, second: Tensor) -> Tensor:
        """Of each pair of embeddings `(B, D)`, `(B,)`."""

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The whole loss of the step, the same on every rank."""
        first, second = inputs.columns.unbind(dim=1)
        similar = self.similarities(embeddings[first], embeddings[second]) * self.scale
        scores, order = inputs.scores.sort(stable=True)
        similar = similar[order]
        # for each pair, log Σ exp(-s) over the pairs of strictly higher scores; none: -inf
        higher = torch.searchsorted(scores, scores, right=True)
        over = torch.logcumsumexp(-similar.flip(0), dim=0).flip(0)
        over = torch.cat([over, over.new_full((1,), -torch.inf)])
        terms = torch.cat([similar.new_zeros(1), similar + over[higher]])
        return torch.logsumexp(terms, dim=0)

    def check_scores(self, low: float, high: float, source: str) -> None:
        """Refuse scores that are all the same: there is no order to learn.

        Raises:
            DataError: with the score.
        """
        if low == high:
            raise DataError(
                f"{source}: every score is {low:g}, and {type(self).__name__} learns from "
                "which of two pairs has the higher score"
            )


class CoSENTLoss(_RankedPairs):
    """Ranks pairs by the cosine of their embeddings (Su 2022; Huang et al. 2024: CoSENT).

    The definition of sentence-transformers' `CoSENTLoss` with its defaults.

    Args:
        scale: 1 / temperature.
    """

    def similarities(self, first: Tensor, second: Tensor) -> Tensor:
        """Cosines."""
        return functional.cosine_similarity(first, second, dim=-1)


class AnglELoss(_RankedPairs):
    """Ranks pairs by an angle in complex space, whose gradient does not vanish (Li & Li 2024).

    The definition of sentence-transformers' `AnglELoss`, which is that of the authors' code.

    Args:
        scale: 1 / temperature.
    """

    def similarities(self, first: Tensor, second: Tensor) -> Tensor:
        """|cosine + sine|, where the halves of an embedding are the real and imaginary parts."""
        if first.shape[1] % 2:
            first, second = functional.pad(first, (0, 1)), functional.pad(second, (0, 1))
        x, y = functional.normalize(first, dim=-1), functional.normalize(second, dim=-1)
        real_x, imaginary_x = x.chunk(2, dim=1)
        real_y, imaginary_y = y.chunk(2, dim=1)
        sines = (imaginary_x * real_y - real_x * imaginary_y).sum(dim=1)
        return ((x * y).sum(dim=1) + sines).abs()
