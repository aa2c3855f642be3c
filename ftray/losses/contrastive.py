"""InfoNCE over the pairs or triplets of a step, computed by rows.

Sources: van den Oord et al. 2018 (InfoNCE), Henderson et al. 2017 (multiple negatives ranking),
Radford et al. 2021 (symmetric, learned temperature: CLIP).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftray.losses.base import LossInputs, Needs, Shard, StepLoss
from ftray.losses.values import checked_bool, checked_positive

__all__ = ["CLIPLoss", "InfoNCE", "MultipleNegativesRankingLoss", "pairs_that_share_text"]

MAX_SCALE = 100.0


def pairs_that_share_text(text_ids: Tensor, rows: slice) -> Tensor:
    """Which pairs may not be each other's negatives.

    Args:
        text_ids: `(B, 2)`, equal numbers are equal texts; negatives of triplets, further columns,
            make no difference.
        rows: the rows to compute.

    Returns:
        Bool `(rows, B)`: the two pairs have a text in common, in whatever column; the diagonal
        (a pair and itself) is True.
    """
    own, every = text_ids[rows], text_ids
    shared = torch.zeros(len(own), len(every), dtype=torch.bool, device=text_ids.device)
    for i in range(2):
        for j in range(2):
            shared |= own[:, i, None] == every[None, :, j]
    return shared


def _known_positives(text_ids: Tensor, shared: Tensor) -> Tensor:
    """Which negatives of the step's triplets may not be used against which queries.

    Args:
        text_ids: `(B, 2 + n)`, equal numbers are equal texts.
        shared: `(rows, B)`, the pairs that share a text with the pair of each row, and itself.

    Returns:
        Bool `(rows, n·B)`, the first negatives of all rows before the second ones: the negative is
        a text of one of these pairs.
    """
    numbers = torch.unique(text_ids, return_inverse=True)[1]
    texts = torch.zeros(len(shared), int(numbers.max()) + 1, device=shared.device)
    for column in (0, 1):
        texts.index_add_(1, numbers[:, column], shared.to(texts.dtype))
    return texts[:, numbers[:, 2:].T.reshape(-1)] > 0


class InfoNCE(StepLoss):
    """Cross entropy of each query over the documents of the step, cosine similarity as logits.

    For pair i the positive is its own document and the negatives are the documents of all pairs
    of the *global* batch that share no text with pair i. A rank computes the rows
    `B·rank/W … B·(rank+1)/W` of the `(B, B)` logits, so its cost is O(B·B/W). Of triplets with n
    negatives each, the negatives of all rows are further candidates, `(B, B + n·B)` logits, but for
    those that equal a text of pair i or of a pair that shares a text with it.

    Args:
        temperature: the logits are cosine / temperature.
        learnable_temperature: whether the temperature is trained, as in CLIP: its logarithm is the
            parameter, the scale 1/temperature is kept at most 100.
        symmetric: also rank the queries for each document, and take the mean of both.

    Raises:
        ConfigError: for a temperature that is not a positive number, or no bool.
    """

    needs: Needs = "pairs"
    sharded = True
    takes_triplets = True

    def __init__(
        self,
        temperature: float = 0.05,
        learnable_temperature: bool = False,
        symmetric: bool = True,
    ) -> None:
        super().__init__()
        self.symmetric = checked_bool("loss_options.symmetric", symmetric)
        scale = torch.tensor(-math.log(checked_positive("loss_options.temperature", temperature)))
        if checked_bool("loss_options.learnable_temperature", learnable_temperature):
            self.log_scale: Tensor = nn.Parameter(scale)
        else:
            self.register_buffer("log_scale", scale, persistent=False)

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The rank's part of the loss; the sum over ranks is the mean over the B pairs."""
        unit = functional.normalize(embeddings, dim=-1)
        queries, documents = unit[inputs.columns[:, 0]], unit[inputs.columns[:, 1]]
        n = len(queries)
        rows = shard.rows(n)
        positives = torch.arange(rows.start, rows.stop, device=unit.device)
        shared = pairs_that_share_text(inputs.text_ids, rows)
        excluded = shared.clone()
        excluded[torch.arange(len(positives), device=unit.device), positives] = False
        scale = self.log_scale.exp().to(unit.dtype)
        candidates, unfit = documents, excluded
        if inputs.columns.shape[1] > 2:
            candidates = torch.cat([documents, unit[inputs.columns[:, 2:].T.reshape(-1)]])
            unfit = torch.cat([excluded, _known_positives(inputs.text_ids, shared)], dim=1)
        total = self._part(queries[rows], candidates, scale, unfit, positives)
        if self.symmetric:
            total = (total + self._part(documents[rows], queries, scale, excluded, positives)) / 2
        return total / n

    @staticmethod
    def _part(
        anchors: Tensor, candidates: Tensor, scale: Tensor, excluded: Tensor, positives: Tensor
    ) -> Tensor:
        logits = (anchors @ candidates.T * scale).masked_fill(excluded, -math.inf)
        return functional.cross_entropy(logits, positives, reduction="sum")

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep a learned scale at most 100, as CLIP does."""
        if isinstance(self.log_scale, nn.Parameter):
            self.log_scale.clamp_(max=math.log(MAX_SCALE))

    def scalars(self) -> dict[str, float]:
        """The temperature, where it is learned."""
        if isinstance(self.log_scale, nn.Parameter):
            return {"temperature": math.exp(-float(self.log_scale.detach()))}
        return {}


class MultipleNegativesRankingLoss(InfoNCE):
    """InfoNCE as sentence-transformers defines it: queries rank documents, scale 20.

    So are the negatives of triplets: those of all rows are candidates of every query.

    Args:
        temperature: 1 / scale.
        learnable_temperature: see `InfoNCE`.
        symmetric: also rank the queries for each document.
    """

    def __init__(
        self,
        temperature: float = 0.05,
        learnable_temperature: bool = False,
        symmetric: bool = False,
    ) -> None:
        super().__init__(temperature, learnable_temperature, symmetric)


class CLIPLoss(InfoNCE):
    """Symmetric InfoNCE with a learned temperature that starts at 0.07 (Radford et al. 2021)."""

    def __init__(
        self,
        temperature: float = 0.07,
        learnable_temperature: bool = True,
        symmetric: bool = True,
    ) -> None:
        super().__init__(temperature, learnable_temperature, symmetric)
