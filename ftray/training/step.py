"""One optimizer step's mathematics: encode, gather, loss, and the gradient of it all.

The loss sees the embeddings of the whole step on every rank. Its gradient with respect to the
embeddings is taken first; each rank then carries its own texts' rows of it back through the
encoder. So the collectives need no autograd, and ranks may hold any number of texts, also none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ftray.data.dataset import StepRows
from ftray.losses.base import LossInputs, Shard, StepLoss
from ftray.models.layout import Layout
from ftray.models.text import Features
from ftray.runtime.base import Collectives
from ftray.training.reduce import deal, gather_rows, reduce_gradients

__all__ = ["Encoder", "OwnTexts", "StepResult", "forward_backward", "loss_value", "own_texts"]
__all__ += ["seeded"]

LOSS_STREAM = -1


class Encoder(Protocol):
    """What the step needs of an encoder."""

    def collate(self, items: Sequence[tuple[str, str]], layout: Layout) -> Features:
        """Tokenise (role, text) items and lay them out."""
        ...

    def __call__(self, features: Features) -> Tensor:
        """Embeddings, `(n, D)`."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, in an order that is the same on every rank."""
        ...


@dataclass(frozen=True, kw_only=True)
class OwnTexts:
    """One rank's part of a step: which texts it encodes, collated."""

    shares: list[npt.NDArray[np.int64]]
    features: Features


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The loss and the token counts of the whole step, the same on every rank."""

    loss: float
    tokens: int
    processed_tokens: int


def own_texts(
    encoder: Encoder, rows: StepRows, layout: Layout, collectives: Collectives
) -> OwnTexts:
    """Deal the step's distinct texts to the ranks and collate this rank's."""
    shares = deal([len(text) for _, text in rows.texts], collectives.world_size)
    own = [rows.texts[i] for i in shares[collectives.rank]]
    return OwnTexts(shares=shares, features=encoder.collate(own, layout))


@contextmanager
def seeded(seed: int, epoch: int, step: int, stream: int) -> Iterator[None]:
    """Torch's random state as a function of (seed, epoch, step, stream), restored afterwards.

    `stream` is the rank for the encoder, and `LOSS_STREAM` for draws inside losses, which are
    equal on all ranks.
    """
    entropy = np.random.SeedSequence((seed, epoch, step, stream + 1)).generate_state(1, np.uint64)
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(entropy[0]) % 2**63)
        yield


def forward_backward(
    encoder: Encoder,
    loss: StepLoss,
    rows: StepRows,
    own: OwnTexts,
    collectives: Collectives,
    *,
    seed: tuple[int, int, int] = (0, 0, 0),
    autocast: AbstractContextManager[object] | None = None,
    scale: float = 1.0,
) -> StepResult:
    """Set `.grad` of the encoder's and the loss's parameters to the gradient of the whole step.

    Args:
        encoder: texts to embeddings.
        loss: the loss of the step.
        rows: the step.
        own: this rank's part of it.
        collectives: the other ranks.
        seed: (seed, epoch, step) for dropout and for draws inside the loss.
        autocast: context of the encoder's forward.
        scale: multiplies the gradients (fp16 loss scaling); the returned loss is unscaled.
    """
    parameters = list(encoder.parameters())
    for parameter in [*parameters, *loss.parameters()]:
        parameter.grad = None
    with seeded(*seed, collectives.rank), autocast or nullcontext():
        embeddings = encoder(own.features)
    value, gradient = loss_and_gradient(
        loss, rows, gather_rows(embeddings, own.shares, collectives), collectives, seed, scale
    )
    if len(embeddings) and embeddings.requires_grad:
        mine = torch.from_numpy(own.shares[collectives.rank]).to(gradient.device)
        torch.autograd.backward(embeddings, gradient[mine].to(embeddings.dtype))
    reduce_gradients(
        parameters,
        loss.parameters(),
        loss_is_sharded=loss.sharded,
        collectives=collectives,
    )
    counts = torch.tensor(
        [own.features.tokens, own.features.processed_tokens], device=collectives.device
    )
    collectives.all_reduce_sum(counts)
    tokens, processed = counts.tolist()
    return StepResult(loss=value, tokens=tokens, processed_tokens=processed)


def loss_and_gradient(
    loss: StepLoss,
    rows: StepRows,
    embeddings: Tensor,
    collectives: Collectives,
    seed: tuple[int, int, int],
    scale: float,
) -> tuple[float, Tensor]:
    """The loss of the step, and its gradient in the gathered embeddings `(U, D)`."""
    leaf = _at_least_float32(embeddings).requires_grad_()
    part = _part(loss, rows, leaf, collectives, seed)
    torch.autograd.backward(part * scale)
    gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
    if loss.sharded:
        collectives.all_reduce_sum(gradient)
    return _whole(loss, part, collectives), gradient


@torch.no_grad()
def loss_value(
    loss: StepLoss,
    rows: StepRows,
    embeddings: Tensor,
    collectives: Collectives,
    seed: tuple[int, int, int],
) -> float:
    """The loss of the step alone, for validation."""
    part = _part(loss, rows, _at_least_float32(embeddings), collectives, seed)
    return _whole(loss, part, collectives)


def _at_least_float32(embeddings: Tensor) -> Tensor:
    half = embeddings.dtype in (torch.float16, torch.bfloat16)
    return embeddings.float() if half else embeddings


def _part(
    loss: StepLoss,
    rows: StepRows,
    embeddings: Tensor,
    collectives: Collectives,
    seed: tuple[int, int, int],
) -> Tensor:
    """What this rank computes of the loss: all of it, or its rows."""
    with seeded(*seed, LOSS_STREAM):
        inputs = loss_inputs(rows, embeddings.device)
        part: Tensor = loss(embeddings, inputs, shard_of(collectives))
        return part


def _whole(loss: StepLoss, part: Tensor, collectives: Collectives) -> float:
    value = part.detach().clone()
    if loss.sharded:
        collectives.all_reduce_sum(value)
    return float(value)


def loss_inputs(rows: StepRows, device: torch.device) -> LossInputs:
    """The step's numbers as tensors."""
    return LossInputs(
        labels=torch.from_numpy(rows.labels).to(device),
        label_items=torch.from_numpy(np.ascontiguousarray(rows.label_items)).to(device),
        columns=torch.from_numpy(rows.columns).to(device),
        text_ids=torch.from_numpy(rows.text_ids).to(device),
    )


def shard_of(collectives: Collectives) -> Shard:
    """This rank's part of row-sharded losses."""
    return Shard(rank=collectives.rank, world_size=collectives.world_size)
