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
from ftray.media import Content
from ftray.models.ahead import ahead
from ftray.models.base import Features, Item
from ftray.models.layout import Layout

__all__ = ["TextModel", "check_towers", "encode_batch", "encode_texts", "evaluating"]

Floats = npt.NDArray[np.float32]


class TextModel(Protocol):
    """What encoding needs of an encoder."""

    training: bool

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


def encode_texts(
    encoder: TextModel,
    texts: Sequence[Content],
    *,
    role: str = "",
    batch_size: int = 32,
    layout: Layout = "bucketed",
    data_workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """Embeddings of all texts, or other things, `(N, D)` float32, in the order given.

    Args:
        encoder: the model.
        texts: what to encode.
        role: "query", "document" or "": selects the prompt, and the route of a two-tower model.
        batch_size: texts at a time.
        layout: see `ftray.models.layout`.
        data_workers: processes that decode ahead.
        on_progress: called with (texts done, texts in all) after each batch.
    """
    result = np.zeros((len(texts), encoder.embedding_dim), np.float32)
    done = 0
    batches = batches_of([encoder.cost(text) for text in texts], batch_size)

    def collated(number: int) -> Features:
        return encoder.collate([(role, texts[i]) for i in batches[number]], layout)

    with evaluating(encoder), closing(ahead(collated, range(len(batches)), data_workers)) as ready:
        for batch, features in zip(batches, ready, strict=True):
            result[batch] = encode_batch(encoder, features)
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(texts))
    return result
