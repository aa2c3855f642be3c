"""Encoding texts without gradients, in batches that depend on the texts alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftray.evaluation.spec import EvaluationSpec, batches_of
from ftray.media import MEDIA_SIZE, Content
from ftray.models.ahead import ahead
from ftray.models.base import Features, Item
from ftray.models.layout import Layout
from ftray.models.onednn import with_onednn

__all__ = ["TextModel", "check_towers", "cut_batches", "encode_batch", "encode_texts", "evaluating"]

BATCH_COST = 1 << 14
"""Characters; on a CPU it hardly matters between half and twice as many (MiniLM)."""
BATCH_SIZES = (16, 512)
MEDIA_BATCH = 32

Floats = npt.NDArray[np.float32]


class TextModel(Protocol):
    """What encoding needs of an encoder."""

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        ...

    @property
    def embedding_dim(self) -> int:
        """Width D of an embedding."""
        ...

    def cost(self, content: Content) -> int:
        """How much a thing is to encode."""
        ...

    def collate(self, items: Sequence[Item], layout: Layout) -> Features:
        """Make ready and lay out."""
        ...

    def __call__(self, features: Features) -> Tensor:
        """Embeddings, `(n, D)`."""
        ...

    def train(self, mode: bool = True) -> object:
        """Switch dropout on or off."""
        ...


class HasTowers(Protocol):
    """What checking towers needs of an encoder."""

    name: str

    @property
    def towers(self) -> tuple[str, ...]:
        """The roles that it encodes differently."""
        ...


def check_towers(spec: EvaluationSpec, encoder: HasTowers) -> None:
    """Refuse an evaluation that asks for a tower which the model lacks.

    Raises:
        ConfigError: with the towers that there are.
    """
    spec.check_towers(encoder.towers, encoder.name)


@contextmanager
def evaluating(encoder: TextModel) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is put back afterwards."""
    was_training = encoder.training
    encoder.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        encoder.train(was_training)


def encode_batch(encoder: TextModel, features: Features) -> Floats:
    """Embeddings `(n, D)` float32 of one batch; call inside `evaluating`."""
    embeddings = encoder(features)
    result: Floats = embeddings.float().cpu().numpy()
    return result


def cut_batches(costs: Sequence[int], batch_size: int | None) -> list[npt.NDArray[np.int64]]:
    """Positions of items of similar cost, the most costly first.

    Args:
        costs: of each item, characters of a text.
        batch_size: items at a time; None = as many as make `BATCH_COST` together when each costs
            as much as the most costly of them, within `BATCH_SIZES`; `MEDIA_BATCH` of what is no
            text.
    """
    if batch_size is not None:
        return batches_of(costs, batch_size)
    order = np.argsort(-np.asarray(costs, np.int64), kind="stable")
    least, most = BATCH_SIZES
    batches, start = [], 0
    while start < len(order):
        cost = max(1, costs[order[start]])
        size = MEDIA_BATCH if cost >= MEDIA_SIZE else min(max(BATCH_COST // cost, least), most)
        batches.append(order[start : start + size])
        start += size
    return batches


def encode_texts(
    encoder: TextModel,
    texts: Sequence[Content],
    *,
    role: str = "",
    batch_size: int | None = 32,
    layout: Layout = "auto",
    data_workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """Embeddings of all texts, or other things, `(N, D)` float32, in the order given.

    Args:
        encoder: the model.
        texts: what to encode.
        role: "query", "document" or "": selects the prompt, and the route of a two-tower model.
        batch_size: texts at a time; None = see `cut_batches`.
        layout: see `ftray.models.layout`.
        data_workers: processes that decode ahead.
        on_progress: called with (texts done, texts in all) after each batch.
    """
    result = np.zeros((len(texts), encoder.embedding_dim), np.float32)
    done = 0
    batches = cut_batches([encoder.cost(text) for text in texts], batch_size)

    def collated(number: int) -> Features:
        return encoder.collate([(role, texts[i]) for i in batches[number]], layout)

    made = ahead(collated, range(len(batches)), data_workers)
    with evaluating(encoder), with_onednn(encoder, len(texts)), closing(made) as ready:
        for batch, features in zip(batches, ready, strict=True):
            result[batch] = encode_batch(encoder, features)
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(texts))
    return result
