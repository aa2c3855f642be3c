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

__all__ = ["SelfSupervisedLoss", "VICRegLoss"]

OPTIONS = ("loss", "loss_options", "symmetric")


class SelfSupervisedLoss(StepLoss):
    """A loss on labels over the texts of pairs; a pair's two texts have one label.

    Pairs that share a text are one group and have one label, so that they are not each other's
    negatives; this is where it differs from the library's own. A text that several rows share is
    there once.

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
        given = options.get("loss_options") or {}
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"loss_options.loss_options = {given!r}: options by name are expected, such as "
                "{margin: 0.1}"
            )
        if not isinstance(symmetric, bool):
            raise ConfigError(f"loss_options.symmetric = {symmetric!r}: true or false")
        self._symmetric = symmetric
        self._needs_positives = name in NEEDS_POSITIVES
        where = "loss_options.loss_options"
        self.inner = library_loss(name, given, embedding_dim, n_groups, where)

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
        loss = self.inner(
            embeddings[queries],
            label_of[queries],
            ref_emb=embeddings[documents],
            ref_labels=label_of[documents],
        )
        return scalar_loss(loss, embeddings)


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
