"""Triplets whose positive and negative are the centres of classes (Wieczorek et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ftray.errors import ConfigError
from ftray.losses.base import LossInputs, Needs, Shard, StepLoss, no_loss
from ftray.losses.metric import TRIPLET_LOSS, library_loss, scalar_loss

__all__ = ["CentroidTripletLoss"]

REGULARIZED = ("embedding_regularizer", "embedding_reg_weight")


class CentroidTripletLoss(StepLoss):
    """`TripletMarginLoss` of each text, the centre of its class, and that of each other class.

    Centres are means of the embeddings in the step, that of a text's own class without the text
    itself ("On the unreasonable effectiveness of centroids in image retrieval"). Texts that are
    alone in their class are in other texts' negatives only. Former versions of
    pytorch-metric-learning had a loss of this name. A regularizer sees the texts' embeddings alone.

    Args:
        options: those of `TripletMarginLoss` but for `triplets_per_anchor`.
        embedding_dim: width D of the embeddings.
        n_groups: number of classes (or of groups of pairs).

    Raises:
        ConfigError: for wrong options.
    """

    needs: Needs = "labels"
    sharded = False

    def __init__(self, options: Mapping[str, Any], embedding_dim: int, n_groups: int) -> None:
        super().__init__()
        if "triplets_per_anchor" in options:
            raise ConfigError(
                "loss_options.triplets_per_anchor: CentroidTripletLoss takes one triplet for each "
                "other class"
            )
        whole: Any = library_loss(TRIPLET_LOSS, options, embedding_dim, n_groups)
        # applied here: the library's own would count the centres as embeddings
        self.regularizer = whole.embedding_regularizer
        self.regularizer_weight = whole.embedding_reg_weight
        of_triplets = {k: v for k, v in options.items() if k not in REGULARIZED}
        self.inner = library_loss(TRIPLET_LOSS, of_triplets, embedding_dim, n_groups)

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The whole loss of the step, the same on every rank."""
        items = embeddings[inputs.label_items]
        loss = self._of_triplets(items, inputs.labels)
        if self.regularizer is not None:
            loss = loss + self.regularizer_weight * self.regularizer(items)
        return loss

    def _of_triplets(self, items: Tensor, labels: Tensor) -> Tensor:
        own, sizes = torch.unique(labels, return_inverse=True, return_counts=True)[1:]
        m, n = len(items), len(sizes)
        anchors = torch.nonzero(sizes[own] > 1)[:, 0]
        if len(anchors) == 0 or n < 2:
            return no_loss(items)
        sums = items.new_zeros(n, items.shape[1]).index_add(0, own, items)
        others = (sums[own] - items) / (sizes[own] - 1).clamp(min=1)[:, None]
        table = torch.cat([items, others, sums / sizes[:, None]])
        which, classes = torch.nonzero(
            own[anchors, None] != torch.arange(n, device=own.device), as_tuple=True
        )
        triplets = (anchors[which], m + anchors[which], 2 * m + classes)
        return scalar_loss(self.inner(table, indices_tuple=triplets), items)
