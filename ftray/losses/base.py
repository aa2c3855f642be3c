"""What a loss is for ftray: a function of all embeddings of a step, in full or by rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["LossInputs", "Needs", "Shard", "StepLoss"]

Needs = Literal["labels", "pairs", "scores", "distillation"]
"""What data a loss fits: labels (pairs will do: their groups are labels), pairs, scored pairs, or
documents and negatives with the scores of a teacher."""


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """What a step says about its embeddings `(U, D)`, one for each distinct text.

    Attributes:
        labels: class or group of each labelled item, `(M,)`.
        label_items: which embedding each of them is, `(M,)`.
        columns: which embeddings each row consists of, `(B, C)`; for pairs C = 2, for triplets
            (query, document, and n negatives) C = 2 + n.
        text_ids: equal numbers are equal texts, `(B, C)`.
        scores: the score of each row, `(B,)` float64; to distil from, a teacher's score of the
            document and of each negative, `(B, 1 + n)`, of which only differences within a row
            matter; `(0,)` where there are none.
    """

    labels: Tensor
    label_items: Tensor
    columns: Tensor
    text_ids: Tensor
    scores: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a row-sharded loss that one rank computes."""

    rank: int = 0
    world_size: int = 1

    def rows(self, n: int) -> slice:
        """A contiguous part of `n` rows; the parts of all ranks make the whole, none overlap."""
        return slice(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)


class StepLoss(nn.Module, ABC):
    """Base of the losses that the training step takes.

    A class says what holds for all its objects; where that hangs on the options (a loss made of
    other losses), each object says it.

    Attributes:
        needs: what data it fits.
        sharded: False: `forward` gives the whole loss, the same on every rank. True: it gives the
            rank's part, and the sum over ranks is the loss; so are the gradients of the loss's own
            parameters.
        takes_triplets: whether it learns from the negatives of triplets.
        max_items: how many embeddings it can take in a step, or None.
    """

    max_items: int | None = None
    needs: Needs
    sharded: bool
    takes_triplets: bool = False

    @abstractmethod
    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The loss, a scalar, differentiable in `embeddings` `(U, D)` and the loss's parameters."""

    def check_scores(self, low: float, high: float, source: str) -> None:
        """Refuse scores that the loss cannot learn from, before anything starts.

        Args:
            low: the lowest score of the data, in whatever column.
            high: the highest.
            source: the data, for messages.
        """
        return None

    def widest_margin(self, *, unit_length: bool = False) -> float:
        """The widest difference of a teacher's scores that the model's can come to equal.

        Args:
            unit_length: whether the embeddings have length 1.
        """
        return math.inf

    def after_step(self) -> None:
        """Called after each optimizer step, to keep parameters in their range."""
        return None

    def scalars(self) -> dict[str, float]:
        """Numbers worth logging, such as a learned temperature."""
        return {}


def no_loss(embeddings: Tensor) -> Tensor:
    """A zero that is connected to the embeddings, so that backward works."""
    return torch.zeros((), dtype=embeddings.dtype, device=embeddings.device) + 0.0 * (
        embeddings.sum()
    )
