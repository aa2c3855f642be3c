"""Pairwise sigmoid loss over the pairs of a step, computed by rows (Zhai et al. 2023: SigLIP)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ftray.losses.base import LossInputs, Needs, Shard, StepLoss
from ftray.losses.contrastive import pairs_that_share_text
from ftray.losses.values import checked_bool, checked_number, checked_positive

__all__ = ["SigLIPLoss"]


class SigLIPLoss(StepLoss):
    """Is this document that of this query? Asked of every query and every document of a step.

    With cosines cᵢⱼ of query i and document j, scale s = 1/temperature and bias b, the loss is
    -Σᵢⱼ log σ(zᵢⱼ (s cᵢⱼ + b)) / B, where z is 1 for the B pairs and -1 else (Zhai et al. 2023,
    "Sigmoid loss for language image pre-training", equation 1). Pairs that share a text are no
    negatives of each other: their terms are left out. A rank computes the rows
    `B·rank/W … B·(rank+1)/W` of the `(B, B)` logits.

    Scale and bias are learned. They start where SigLIP's training started, not where a pre-trained
    model that has such numbers (`logit_scale`, `logit_bias`) ended: give these as options to go on
    from there.

    Args:
        temperature: 1/s at the start; log s is the parameter.
        bias: b at the start.
        learnable: whether both are trained.

    Raises:
        ConfigError: for a temperature that is not a positive number, or another wrong value.
    """

    needs: Needs = "pairs"
    sharded = True

    def __init__(
        self, temperature: float = 0.1, bias: float = -10.0, learnable: bool = True
    ) -> None:
        super().__init__()
        start = -math.log(checked_positive("loss_options.temperature", temperature))
        self.log_scale = nn.Parameter(torch.tensor(start))
        self.bias = nn.Parameter(torch.tensor(checked_number("loss_options.bias", bias)))
        self.requires_grad_(checked_bool("loss_options.learnable", learnable))

    def forward(self, embeddings: Tensor, inputs: LossInputs, shard: Shard) -> Tensor:
        """The rank's part of the loss; the sum over ranks is that of all terms, by B."""
        unit = functional.normalize(embeddings, dim=-1)
        queries, documents = unit[inputs.columns[:, 0]], unit[inputs.columns[:, 1]]
        rows = shard.rows(len(queries))
        own = torch.arange(rows.start, rows.stop, device=unit.device)
        scale, bias = self.log_scale.exp().to(unit.dtype), self.bias.to(unit.dtype)
        logits = queries[rows] @ documents.T * scale + bias
        signs = -torch.ones_like(logits)
        signs[torch.arange(len(own), device=unit.device), own] = 1
        left_out = pairs_that_share_text(inputs.text_ids, rows) & (signs < 0)
        terms = functional.logsigmoid(signs * logits).masked_fill(left_out, 0)
        return -terms.sum() / len(queries)

    def scalars(self) -> dict[str, float]:
        """Temperature and bias, where they are learned."""
        if not self.log_scale.requires_grad:
            return {}
        return {
            "temperature": math.exp(-float(self.log_scale.detach())),
            "bias": float(self.bias.detach()),
        }
