"""One optimizer step's mathematics: encode, gather, loss, and the gradient of it all.

The loss sees the embeddings of the whole step on every rank. Its gradient with respect to the
embeddings is taken first; each rank then carries its own texts' rows of it back through the
encoder. So the collectives need no autograd, and ranks may hold any number of texts, also none.

That cut through the chain rule is also what micro batches need (Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup"): with several of them the first pass
keeps no graph, which is inference (`ftray.models.onednn`), and a second one encodes each micro
batch again, with the same random state and the same buffers, and carries its rows of the gradient
back. The loss and the one reduction do not know the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ftray.data.dataset import StepRows
from ftray.errors import RunFailedError
from ftray.losses.base import LossInputs, Shard, StepLoss
from ftray.media import Content
from ftray.models.base import Draws, Features, Item
from ftray.models.layout import Layout
from ftray.models.onednn import with_onednn
from ftray.runtime.base import Collectives
from ftray.training.buffers import ReplayedBuffers
from ftray.training.reduce import deal, gather_rows, reduce_gradients
from ftray.words import counted

__all__ = ["Encoder", "MicroBatch", "OwnTexts", "StepResult"]
__all__ += ["forward_backward", "own_texts", "seeded", "validation_loss"]

LOSS_STREAM = -1
AUGMENTATION_STREAM = 0xA06

Seed = tuple[int, int, int]
"""(seed, epoch, step)"""


class Encoder(Protocol):
    """What the step needs of an encoder.

    `couples_rows` says whether embeddings depend on what else the step encodes.
    """

    couples_rows: bool

    def cost(self, content: Content) -> int:
        """How much a thing is to encode."""
        ...

    def coupled(self, content: Content) -> bool:
        """Whether a thing's embedding depends on others of the step, in training."""
        ...

    def collate(
        self, items: Sequence[Item], layout: Layout, draws: Draws | None = None
    ) -> Features:
        """Make (role, content) items ready, and lay them out."""
        ...

    def __call__(self, features: Features) -> Tensor:
        """Embeddings, `(n, D)`."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """All its modules, whose buffers a forward may change."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights, in an order that is the same on every rank."""
        ...


Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Texts that are encoded, and carried back, together.

    Attributes:
        places: their positions among all texts of the step, `(m,)`.
        features: the texts, collated.
    """

    places: npt.NDArray[np.int64]
    features: Features


@dataclass(frozen=True, kw_only=True)
class OwnTexts:
    """One rank's part of a step: which texts it encodes, collated in one or more micro batches.

    Attributes:
        shares: for each rank the positions of its texts; this rank's is that of its micro batches,
            one after the other.
        micro_batches: at least one, which may be empty.
    """

    shares: list[npt.NDArray[np.int64]]
    micro_batches: list[MicroBatch]

    def __len__(self) -> int:
        return sum(len(micro.places) for micro in self.micro_batches)

    @property
    def counts(self) -> list[int]:
        """Tokens of this rank's texts, and tokens computed for them."""
        features = [micro.features for micro in self.micro_batches]
        return [sum(f.tokens for f in features), sum(f.processed_tokens for f in features)]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The loss and the token counts of the whole step, the same on every rank."""

    loss: float
    tokens: int
    processed_tokens: int


def own_texts(
    encoder: Encoder,
    rows: StepRows,
    layout: Layout,
    collectives: Collectives,
    micro_batch_size: int | None = None,
    seed: Seed | None = None,
) -> OwnTexts:
    """Deal the step's distinct texts to the ranks and collate this rank's.

    With a seed, augmentation draws for each item from (seed, epoch, step, item), whoever does it.

    With a `micro_batch_size` (texts encoded together on a rank; None = all) they are dealt to the
    micro batches too, so that each has about as much to do: the largest sets the peak of memory.
    """
    lengths = np.array([encoder.cost(content) for _, content in rows.texts], dtype=np.int64)
    draws = None if seed is None else augmentation_draws(seed, len(rows.texts))
    shares = deal(lengths.tolist(), collectives.world_size)
    parts = [[share] for share in shares]
    if size := micro_batch_size:
        parts = [
            [share[part] for part in deal(lengths[share].tolist(), max(-(-len(share) // size), 1))]
            for share in shares
        ]
    micro_batches = []
    for places in parts[collectives.rank]:
        items = [rows.texts[i] for i in places]
        features = encoder.collate(items, layout, None if draws is None else draws[places])
        micro_batches.append(MicroBatch(places=places, features=features))
    shares = [np.concatenate(part) for part in parts]
    return OwnTexts(shares=shares, micro_batches=micro_batches)


def augmentation_draws(seed: Seed, items: int) -> Draws:
    """A random seed for each item of a step, `(items,)`."""
    parts = np.random.SeedSequence((*seed, AUGMENTATION_STREAM))
    return parts.generate_state(items, np.uint64).astype(np.uint64)


@contextmanager
def seeded(seed: int, epoch: int, step: int, *stream: int) -> Iterator[None]:
    """Torch's random state as a function of (seed, epoch, step, stream), restored afterwards.

    `stream` is rank and micro batch for the encoder, and `LOSS_STREAM` for draws inside losses and
    miners, which are equal on all ranks.
    """
    parts = (seed, epoch, step, *(part + 1 for part in stream))
    entropy = np.random.SeedSequence(parts).generate_state(1, np.uint64)
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
    seed: Seed = (0, 0, 0),
    autocast: Autocast = nullcontext,
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
        autocast: makes the context of an encoder's forward.
        scale: multiplies the gradients (fp16 loss scaling); the returned loss is unscaled.

    Raises:
        RunFailedError: on every rank, if the encoder couples rows and a rank has none.
    """
    if encoder.couples_rows:
        coupled = [encoder.coupled(content) for _, content in rows.texts]
        _check_shares(own, coupled, collectives.world_size)
    parameters = list(encoder.parameters())
    for parameter in [*parameters, *loss.parameters()]:
        parameter.grad = None

    cached = len(own.micro_batches) > 1
    buffers = ReplayedBuffers(encoder, twice=cached)

    def encode(number: int) -> Tensor:
        with seeded(*seed, collectives.rank, number), autocast(), buffers.of(number):
            return encoder(own.micro_batches[number].features)

    faster = with_onednn(encoder, len(own)) if cached else nullcontext()
    with torch.set_grad_enabled(not cached), faster:
        embeddings = [encode(number) for number in range(len(own.micro_batches))]
    value, gradient = loss_and_gradient(
        loss,
        rows,
        gather_rows(torch.cat(embeddings), own.shares, collectives),
        collectives,
        seed,
        scale,
    )
    for number, micro in enumerate(own.micro_batches):
        again = encode(number) if cached else embeddings[number]
        if len(again) and again.requires_grad:
            mine = torch.from_numpy(micro.places).to(gradient.device)
            torch.autograd.backward(again, gradient[mine].to(again.dtype))
    reduce_gradients(
        parameters,
        loss.parameters(),
        loss_is_sharded=loss.sharded,
        collectives=collectives,
    )
    counts = torch.tensor(own.counts, device=collectives.device)
    collectives.all_reduce_sum(counts)
    tokens, processed = counts.tolist()
    return StepResult(loss=value, tokens=tokens, processed_tokens=processed)


def _check_shares(own: OwnTexts, coupled: list[bool], world_size: int) -> None:
    """Statistics of the global batch are exchanged in every forward: none can be left out."""
    if any(coupled) and not all(any(coupled[i] for i in share) for share in own.shares):
        rows = sum(coupled)
        raise RunFailedError(
            f"A step has {counted(rows, 'distinct row')}, fewer than the {world_size} workers, but "
            "batch normalisation with statistics of the global batch needs a row on every worker: "
            "give a larger batch_size, or fewer num_workers"
        )


@torch.no_grad()
def validation_loss(
    encoder: Encoder,
    loss: StepLoss,
    rows: StepRows,
    own: OwnTexts,
    collectives: Collectives,
    *,
    seed: Seed = (0, 0, 0),
    autocast: Autocast = nullcontext,
) -> float:
    """The loss of the step alone; arguments as in `forward_backward`."""
    with autocast():
        embeddings = torch.cat([encoder(micro.features) for micro in own.micro_batches])
    gathered = gather_rows(embeddings, own.shares, collectives)
    part = _part(loss, rows, _at_least_float32(gathered), collectives, seed)
    return _whole(loss, part, collectives)


def loss_and_gradient(
    loss: StepLoss,
    rows: StepRows,
    embeddings: Tensor,
    collectives: Collectives,
    seed: Seed,
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


def _at_least_float32(embeddings: Tensor) -> Tensor:
    half = embeddings.dtype in (torch.float16, torch.bfloat16)
    return embeddings.float() if half else embeddings


def _part(
    loss: StepLoss,
    rows: StepRows,
    embeddings: Tensor,
    collectives: Collectives,
    seed: Seed,
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
        scores=torch.from_numpy(rows.scores).to(device),
    )


def shard_of(collectives: Collectives) -> Shard:
    """This rank's part of row-sharded losses."""
    return Shard(rank=collectives.rank, world_size=collectives.world_size)
