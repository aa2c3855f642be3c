"""Losses of scored pairs: two embeddings are to be as similar as the data says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from ftray.errors import ConfigError, DataError
from ftray.losses.base import LossInputs, Needs, Shard, StepLoss
from ftray.losses.values import is_finite

__all__ = ["CosineSimilarityLoss"]

COSINES = (-1.0, 1.0)


class CosineSimilarityLoss(StepLoss):
    """Mean squared difference of the cosine of each pair and its score.

    The loss of the B pairs (u, v) with scores s is Σ (cos(uᵢ, vᵢ) - sᵢ)² / B: the definition of
    sentence-transformers' `CosineSimilarityLoss` with its defaults. Pairs do not see each other, so
    there are no negatives; a rank computes the rows `B·rank/W … B·(rank+1)/W`.

    Args:
        score_range: the scores for "nothing alike" and "the same", as in [0, 5]: the target is then
            (score - low) / (high - low). None takes scores as they are, as cosines.

    Raises:
        ConfigError: for a range that is not two numbers, the smaller one first.
    """

    needs: Needs = "scores"
    sharded = True

    def __init__(self, score_range: Sequence[float] | None = None) -> None:
        super().__init__()
        self.score_range = None if score_range is None else _checked_range(score_range)

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The rank's part of the loss; the sum over ranks is the mean over the B pairs."""
        n = len(inputs.columns)
        rows = shard.rows(n)
        first, second = inputs.columns[rows].unbind(dim=1)
        cosines = functional.cosine_similarity(embeddings[first], embeddings[second], dim=-1)
        targets = self._targets(inputs.scores[rows]).to(cosines.dtype)
        return (cosines - targets).square().sum() / n

    def _targets(self, scores: Tensor) -> Tensor:
        if self.score_range is None:
            return scores
        low, high = self.score_range
        return (scores - low) / (high - low)

    def check_scores(self, low: float, high: float, source: str) -> None:
        """Refuse scores outside the range: most often one that was not given.

        Raises:
            DataError: with the range found, and what to write.
        """
        within = self.score_range or COSINES
        if within[0] <= low and high <= within[1]:
            return
        found = f"{source}: the scores run from {low:g} to {high:g}"
        wide = f"loss_options: {{score_range: [{math.floor(low)}, {math.ceil(high)}]}}"
        if self.score_range is not None:
            raise DataError(
                f"{found}, and loss_options.score_range is [{within[0]:g}, {within[1]:g}]. Give "
                f"the scores of pairs that have nothing in common and of pairs that are the same, "
                f"such as {wide}."
            )
        raise DataError(
            f"{found}, but CosineSimilarityLoss compares them with cosines, from -1 to 1. Give the "
            "scores of pairs that have nothing in common and of pairs that are the same, such as "
            f"{wide}."
        )


def _checked_range(given: Sequence[float]) -> tuple[float, float]:
    numbers = isinstance(given, list | tuple) and all(map(is_finite, given))
    if not numbers or len(given) != 2 or not given[0] < given[1]:
        raise ConfigError(
            f"loss_options.score_range = {given!r}: two numbers, the smaller one first, as in "
            "[0, 5]"
        )
    return float(given[0]), float(given[1])
