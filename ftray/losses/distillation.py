"""Losses that learn a teacher's scores of each query's document and negatives.

Each row is on its own: there are no negatives from other rows, and a rank computes the rows
`B·rank/W … B·(rank+1)/W`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ftray.errors import ConfigError, nearest
from ftray.losses.base import LossInputs, Needs, Shard, StepLoss
from ftray.losses.values import checked_positive

__all__ = ["DistillKLDivLoss", "MarginMSELoss", "Similarity"]

Similarity = Literal["dot", "cosine"]


class _Distillation(StepLoss):
    """Compares similarities of the model with scores of a teacher, `(B, 1 + n)` both.

    Args:
        similarity: "dot" of the embeddings as the model gives them, or "cosine".

    Raises:
        ConfigError: for another similarity.
    """

    needs: Needs = "distillation"
    sharded = True

    def __init__(self, similarity: Similarity = "dot") -> None:
        super().__init__()
        known = get_args(Similarity)
        if similarity not in known:
            raise ConfigError(
                f"loss_options.similarity = {similarity!r} is unknown."
                f"{nearest(str(similarity), known)}"
            )
        self.similarity = similarity

    def _similarities(self, embeddings: Tensor, columns: Tensor) -> Tensor:
        """Of each row's query with its document and its negatives, `(rows, 1 + n)`."""
        if self.similarity == "cosine":
            embeddings = functional.normalize(embeddings, dim=-1)
        queries, candidates = embeddings[columns[:, :1]], embeddings[columns[:, 1:]]
        return (queries * candidates).sum(dim=-1)


class MarginMSELoss(_Distillation):
    """Mean squared difference of the model's margins and the teacher's (Hofstätter et al. 2020).

    With the model's similarities s and the teacher's scores t of row i, its document (0) and its
    negatives (k), the loss is Σᵢₖ ((sᵢ₀ - sᵢₖ) - (tᵢ₀ - tᵢₖ))² / (B·n): the definition of
    sentence-transformers' `MarginMSELoss`, for one negative and for several.

    Args:
        similarity: "dot" or "cosine". Margins of cosines, and of embeddings of length 1, are at
            most 2: the teacher's should be of that size too.
    """

    def widest_margin(self, *, unit_length: bool = False) -> float:
        """That of two cosines, from -1 to 1; products of any embeddings have no bound."""
        return 2.0 if unit_length or self.similarity == "cosine" else math.inf

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The rank's part of the loss; the sum over ranks is the mean over B·n margins."""
        rows = shard.rows(len(inputs.columns))
        similar, scores = self._similarities(embeddings, inputs.columns[rows]), inputs.scores[rows]
        margins = similar[:, :1] - similar[:, 1:]
        wanted = (scores[:, :1] - scores[:, 1:]).to(margins.dtype)
        count = len(inputs.columns) * (inputs.columns.shape[1] - 2)
        return (margins - wanted).square().sum() / count


class DistillKLDivLoss(_Distillation):
    """Kullback-Leibler divergence of the model's choice among candidates from the teacher's.

    With the softmax p of the teacher's scores / temperature and q of the model's similarities /
    temperature, each over the document and the n negatives of a row, the loss is the mean over the
    B rows of Σ p log(p/q), times temperature² (Hinton et al. 2015; Lin et al. 2020): the definition
    of sentence-transformers' `DistillKLDivLoss`.

    Args:
        similarity: "dot" or "cosine".
        temperature: of both.
        student_temperature: of the model's similarities alone; its square is the factor then.
        teacher_temperature: of the teacher's scores alone: best of the size of their spread.

    Raises:
        ConfigError: for a temperature that is not a positive number.
    """

    def __init__(
        self,
        similarity: Similarity = "dot",
        temperature: float = 1.0,
        student_temperature: float | None = None,
        teacher_temperature: float | None = None,
    ) -> None:
        super().__init__(similarity)
        given = {
            "temperature": temperature,
            "student_temperature": student_temperature,
            "teacher_temperature": teacher_temperature,
        }
        for name, value in given.items():
            if value is not None:
                checked_positive(f"loss_options.{name}", value)
        self.student_temperature = student_temperature or temperature
        self.teacher_temperature = teacher_temperature or temperature

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The rank's part of the loss; the sum over ranks is the mean over the B rows."""
        rows = shard.rows(len(inputs.columns))
        similar = self._similarities(embeddings, inputs.columns[rows])
        model = torch.log_softmax(similar / self.student_temperature, dim=1)
        teacher = torch.softmax(inputs.scores[rows] / self.teacher_temperature, dim=1)
        divergence = functional.kl_div(model, teacher.to(model.dtype), reduction="sum")
        return divergence * self.student_temperature**2 / len(inputs.columns)
