"""Losses of pytorch-metric-learning on two views of each row: the query and the document of a pair.

Every rank computes them in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ftray.errors import ConfigError, nearest
from ftray.losses.base import LossInputs, Needs, Shard, StepLoss, no_loss
from ftray.losses.metric import NEEDS_POSITIVES, library_loss, scalar_loss
from ftray.losses.values import checked_bool, checked_options

__all__ = ["SelfSupervisedLoss", "VICRegLoss"]

OPTIONS = ("loss", "loss_options", "symmetric")


class SelfSupervisedLoss(StepLoss):
    """A loss on labels over the texts of pairs; a pair's two texts have one label.

    Pairs that share a text are one group and have one label, so that they are not each other's
    negatives; this is where it differs from the library's own. A text that several rows share is
    there once, and is no positive of itself.

    Args:
        options: `loss`, the name of the loss; `loss_options`, its arguments; `symmetric` (true),
            whether all texts are compared with all, or only queries with documents.
        embedding_dim: width D of the embeddings.
        n_groups: number of groups of pairs.

    Raises:
        ConfigError: for a loss that it does not take, or wrong options.
    """

    needs: Needs = "pairs"
    sharded = False

    def __init__(self, options: Mapping[str, Any], embedding_dim: int, n_groups: int) -> None:
        super().__init__()
        for option in options:
            if option not in OPTIONS:
                raise ConfigError(
                    f"loss_options.{option}: SelfSupervisedLoss has no such option."
                    f"{nearest(option, OPTIONS)}"
                )
        from pytorch_metric_learning.losses import SelfSupervisedLoss as Theirs

        name, symmetric = str(options.get("loss")), options.get("symmetric", True)
        known = Theirs.supported_losses()
        if name not in known:
            raise ConfigError(
                f"loss_options.loss = {name}: SelfSupervisedLoss needs the name of a loss that "
                f"takes references.{nearest(name, known)}"
            )
        self._symmetric = checked_bool("loss_options.symmetric", symmetric)
        self._needs_positives = name in NEEDS_POSITIVES
        where = "loss_options.loss_options"
        given = checked_options(where, options.get("loss_options"))
        self.inner = library_loss(name, given, embedding_dim, n_groups, where)
        self._same = torch.zeros(0, 0, dtype=torch.bool)
        if self._needs_positives:  # NCALoss takes no pairs, and looks at all distances
            self.inner.distance.register_forward_hook(self._far_from_itself)  # type: ignore[union-attr]

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The whole loss of the step, the same on every rank."""
        if self._symmetric:
            picked, labels = embeddings[inputs.label_items], inputs.labels
            if self._needs_positives and labels.bincount().max() < 2:
                return no_loss(embeddings)
            return scalar_loss(self.inner(picked, labels), embeddings)
        label_of = inputs.labels.new_zeros(len(embeddings))
        label_of[inputs.label_items] = inputs.labels
        queries, documents = torch.unique(inputs.columns[:, 0]), torch.unique(inputs.columns[:, 1])
        same = queries[:, None] == documents  # a text that is both is no positive of itself
        queries, self._same = queries[~same.all(dim=1)], same[~same.all(dim=1)]
        if not len(queries):
            return no_loss(embeddings)
        loss = self.inner(
            embeddings[queries],
            label_of[queries],
            self._pairs(label_of[queries], label_of[documents]),
            ref_emb=embeddings[documents],
            ref_labels=label_of[documents],
        )
        return scalar_loss(loss, embeddings)

    def _pairs(self, queries: Tensor, documents: Tensor) -> tuple[Tensor, ...] | None:
        """The pairs or triplets to compare, of labels `(Q,)` and `(D,)`; None = all."""
        from pytorch_metric_learning.utils import loss_and_miner_utils as library

        if self._needs_positives or not self._same.any():
            return None
        drawn = getattr(self.inner, "triplets_per_anchor", "all")
        found: tuple[Tensor, ...]
        if drawn == "all":
            found = library.get_all_pairs_indices(queries, documents)
        else:
            found = library.get_random_triplet_indices(queries, documents, t_per_anchor=drawn)
        kept = ~self._same[found[0], found[1]]
        if len(found) == 3:
            return tuple(places[kept] for places in found)
        return found[0][kept], found[1][kept], *found[2:]

    def _far_from_itself(self, distance: Any, arguments: Any, found: Tensor) -> Tensor:
        """The distances `(Q, D)`, that of a text to itself as far as can be."""
        if found.shape != self._same.shape:
            return found
        return found.masked_fill(self._same, -torch.inf if distance.is_inverted else torch.inf)


class VICRegLoss(StepLoss):
    """Pairs close to each other, dimensions that vary and say different things; no negatives.

    Variance, invariance, covariance (Bardes et al. 2022), as pytorch-metric-learning computes them
    of the queries and the documents of the step. A single row has no variance: its loss is zero.

    Args:
        options: `invariance_lambda`, `variance_mu`, `covariance_v`, `eps`, `reducer`.
        embedding_dim: width D of the embeddings.
        n_groups: number of groups of pairs.

    Raises:
        ConfigError: for wrong options.
    """

    needs: Needs = "pairs"
    sharded = False

    def __init__(self, options: Mapping[str, Any], embedding_dim: int, n_groups: int) -> None:
        super().__init__()
        self.inner = library_loss("VICRegLoss", options, embedding_dim, n_groups)

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The whole loss of the step, the same on every rank."""
        if len(inputs.columns) < 2:
            return no_loss(embeddings)
        queries, documents = (embeddings[inputs.columns[:, i]] for i in (0, 1))
        return scalar_loss(self.inner(queries, ref_emb=documents), embeddings)
