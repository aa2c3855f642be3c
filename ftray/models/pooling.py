"""Generalised-mean pooling, "GeM" (Radenović, Tolias and Chum 2018), with a learnt exponent.

Of features x at n positions, GeM is (mean of x^p)^(1/p): the mean at p = 1, towards the maximum as
p grows. It is defined for features that are not negative, such as maps of a CNN after ReLU; theirs
replaces negative ones by a small number, which of the tokens of a transformer, positive as often as
negative, drops half of what they say.

Here the features of an item and channel are counted from their minimum over the positions where
that is below zero, and from zero elsewhere: c + (mean of (x - c)^p)^(1/p), c = min(0, min x). So
where the authors' is defined it is theirs; for features of any sign p = 1 is the mean, p towards
infinity the maximum, and it lies between. p below 1 would be less than the mean, with gradients
without bound; learnt there, it counts as 1. So no gradient with respect to x is larger than one: it
is ((x - c) / mean)^(p - 1) / n, at most n^(-1/p).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["GeM", "generalised_mean"]

LEAST_SHARE = 1e-12
"""Of the largest feature; less counts as this much, so that no power of it is infinite."""


class GeM(nn.Module):
    """Generalised mean over positions.

    Args:
        p: the exponent to begin with; it is learnt.
    """

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([float(p)]))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool `(n, L, D)` to `(n, D)`, over the positions where `mask` `(n, L)` is not 0."""
        return generalised_mean(features, self.p, mask)


def generalised_mean(features: Tensor, p: Tensor, mask: Tensor | None = None) -> Tensor:
    """The generalised mean over positions, as the module says.

    Computed in at least float32, in shares of the largest feature, so that no power overflows.

    Args:
        features: `(n, L, D)`.
        p: the exponent, `(1,)`.
        mask: `(n, L)`, 0 for positions that do not count; None = all do. An item without any
            position gives zeros.

    Returns:
        `(n, D)`, in the type of the features.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    wide, exponent = features.to(dtype), _at_least_one(p.to(dtype))
    real = torch.ones_like(wide[:, :, :1]) if mask is None else mask[:, :, None].to(dtype)
    hidden = real == 0
    count = real.sum(dim=1).clamp(min=1)
    least = wide.masked_fill(hidden, 0).amin(dim=1).clamp(max=0)
    risen = (wide - least[:, None]).masked_fill(hidden, 0)
    largest = risen.amax(dim=1).detach()
    flat = largest == 0
    # what is divided out and multiplied in again needs no gradient
    unit = torch.where(flat, torch.ones_like(largest), largest)
    shares = (risen / unit[:, None]).clamp(min=LEAST_SHARE)
    powers = shares.pow(exponent).masked_fill(hidden, 0).sum(dim=1) / count
    mean = torch.where(flat, torch.ones_like(powers), powers).pow(1 / exponent)
    return (least + largest * mean).to(features.dtype)


def _at_least_one(p: Tensor) -> Tensor:
    """The exponent that counts; below 1 its gradient is the one at 1, which may lead back up."""
    return torch.where(p < 1, 1 + (p - p.detach()), p)
