"""The one place where gradients and embeddings of several ranks meet.

Nowhere else in ftray does the number of workers multiply or divide anything. The rules (contract 2
in docs/architecture.md):

- the gradient of the encoder is the sum over ranks of what each rank's own texts give;
- parameters of a loss computed in full on every rank take rank 0's gradient;
- parameters of a row-sharded loss take the sum over ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ftray.runtime.base import Collectives

__all__ = ["deal", "gather_rows", "reduce_gradients"]

BUCKET_ELEMENTS = 32 * 1024 * 1024


def deal(sizes: Sequence[int], world_size: int) -> list[npt.NDArray[np.int64]]:
    """Deal items to ranks so that each has about as much to do.

    Items go in order of size, back and forth over the ranks; a pure function of its arguments.

    Args:
        sizes: what each item costs, `(n,)`.
        world_size: number of ranks.

    Returns:
        For each rank the positions of its items, ascending; together every position once.
    """
    order = np.argsort(-np.asarray(sizes, dtype=np.int64), kind="stable")
    turn = np.arange(len(order)) % (2 * world_size)
    rank_of = np.where(turn < world_size, turn, 2 * world_size - 1 - turn)
    return [np.sort(order[rank_of == rank]) for rank in range(world_size)]


def gather_rows(
    own: Tensor, shares: list[npt.NDArray[np.int64]], collectives: Collectives
) -> Tensor:
    """All rows `(n, D)` from every rank's own rows `(n_r, D)`, in their places; no autograd.

    Ranks may hold different numbers of rows, or none: shares are padded for the exchange and cut
    again.
    """
    rows = own.detach()
    if collectives.world_size > 1:
        most = max(len(share) for share in shares)
        padded = rows.new_zeros((most, rows.shape[1]))
        padded[: len(rows)] = rows
        every = collectives.all_gather(padded)
        rows = torch.cat([every[rank, : len(share)] for rank, share in enumerate(shares)])
    places = torch.from_numpy(np.concatenate(shares)).to(own.device)
    result = torch.empty_like(rows)
    result[places] = rows
    return result


def reduce_gradients(
    encoder: Iterable[nn.Parameter],
    loss: Iterable[nn.Parameter],
    *,
    loss_is_sharded: bool,
    collectives: Collectives,
) -> None:
    """Make every rank's `.grad` the gradient of the whole step, by one rule, in buckets.

    A parameter without a gradient on every rank keeps none, so that the optimizer passes it by
    whatever the number of workers. All ranks hold parameters of equal shapes in equal order.
    """
    if collectives.world_size == 1:
        return
    summed = [p for p in encoder if p.requires_grad]
    own = [p for p in loss if p.requires_grad]
    if not loss_is_sharded and collectives.rank != 0:
        for parameter in own:  # rank 0's counts: the others add zero
            parameter.grad = None if parameter.grad is None else torch.zeros_like(parameter.grad)
    for bucket in _buckets(summed + own):
        _reduce_bucket(bucket, collectives)


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        fits = buckets and buckets[-1][0].dtype == parameter.dtype
        if not fits or size + parameter.numel() > BUCKET_ELEMENTS:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel()
    return buckets


def _reduce_bucket(parameters: list[nn.Parameter], collectives: Collectives) -> None:
    first = parameters[0]
    present = first.new_tensor([float(p.grad is not None) for p in parameters])
    parts = [
        p.grad.reshape(-1) if p.grad is not None else p.new_zeros(p.numel()) for p in parameters
    ]
    flat = torch.cat([*parts, present])
    collectives.all_reduce_sum(flat)
    anywhere = flat[-len(parameters) :].tolist()
    start = 0
    for parameter, count in zip(parameters, anywhere, strict=True):
        piece = flat[start : start + parameter.numel()]
        parameter.grad = piece.reshape(parameter.shape).clone() if count else None
        start += parameter.numel()
