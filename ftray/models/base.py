"""What every encoder is: things of some modalities in, embeddings out, and back to a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ftray.media import MEDIA_SIZE, Content, Modality
from ftray.models.layout import Layout

__all__ = ["Draws", "Encoder", "Features", "Item", "joined"]

Item = tuple[str, Content]
"""(role, content); the role is "query", "document" or "", or the name of a tower."""

Draws = npt.NDArray[np.uint64]
"""One random seed for each item, for augmentation: they depend on the step, not on the worker."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Items made ready to be encoded: tokenised or decoded, and laid out.

    Attributes:
        forwards: one dict of inputs per forward pass.
        order: position in the batch of each row of the forwards, one after the other, `(n,)`.
        tokens: real tokens; other things than texts have none. processed_tokens: with padding.
    """

    forwards: list[dict[str, Any]]
    order: Tensor
    tokens: int = 0
    processed_tokens: int = 0


class Encoder(nn.Module, ABC):
    """Things to embeddings `(n, D)`.

    Attributes:
        kind: what `ftray.json` of a folder calls this class.
        name: what the user called the model, for messages.
        modalities: what it takes.
        learning_rate: what is taken where the user gives none.
        couples_rows: whether the embedding of a row depends on the others of its forward, in
            training: batch normalisation whose statistics are not frozen.
    """

    kind: ClassVar[str]
    modalities: frozenset[Modality]
    couples_rows: bool = False
    learning_rate: ClassVar[float] = 5e-5

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """Width D of an embedding."""

    def measure(self, content: Content) -> None:
        """Find out the width D where it takes an input to know; called before training."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def roles_differ(self) -> bool:
        """Whether a thing is encoded differently as query and as document."""
        return False

    @property
    def towers(self) -> tuple[str, ...]:
        """What an evaluation may name as its `model`; none where there is one tower."""
        return ()

    @property
    def default_tower(self) -> str | None:
        """Of two towers for the same modality, the one of things without a role; else None."""
        return None

    def max_tokens(self, role: str = "") -> int | None:
        """The most tokens of a text that are not cut; None without a limit, and without texts."""
        return None

    def token_counts(self, texts: Sequence[str], role: str) -> list[int]:
        """How many tokens each text has; asked of encoders with a limit."""
        raise TypeError(f"'{self.name}' takes no texts")

    def cost(self, content: Content) -> int:
        """How much a thing is to encode, beside others; ranks get equal shares."""
        return len(content) if isinstance(content, str) else MEDIA_SIZE

    def coupled(self, content: Content) -> bool:
        """Whether a thing's embedding depends on others of the step, in training."""
        return self.couples_rows

    @abstractmethod
    def collate(
        self, items: Sequence[Item], layout: Layout = "bucketed", draws: Draws | None = None
    ) -> Features:
        """Tokenise or decode, and lay out; touches no weights, so another process may do it.

        Args:
            items: what to encode, `n` of them; may be none.
            layout: which texts share a forward.
            draws: seeds of augmentation, `(n,)`; None = none is done, as in evaluation.

        Raises:
            DataError: for a thing that cannot be decoded, with its name.
        """

    @abstractmethod
    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of one forward pass, `(rows, D)`; the inputs are on its device."""

    def freeze(self, weight: str) -> None:
        """Leave a weight as it is, by its name in the model that is saved."""
        self.get_parameter(weight).requires_grad_(False)

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write the model into a folder, weights as safetensors.

        Returns:
            What `ftray.json` must say beside the kind for `load_encoder` to make it again.
        """

    def forward(self, features: Features) -> Tensor:
        """Embeddings `(n, D)` in the order of the items given to `collate`; n may be 0.

        They are never of half precision, whatever autocast gives: ranks with items and ranks
        without exchange equal types.
        """
        dtype = torch.promote_types(next(self.parameters()).dtype, torch.float32)
        if not features.forwards:
            return torch.zeros(0, self.embedding_dim, dtype=dtype, device=self.device)
        parts = [self.encode(self._moved(inputs)) for inputs in features.forwards]
        joint = torch.cat([part.to(dtype) for part in parts])
        return joint[torch.argsort(features.order).to(joint.device)]

    def _moved(self, inputs: dict[str, Any]) -> dict[str, Any]:
        dtype = next(self.parameters()).dtype
        return {name: _moved(value, self.device, dtype) for name, value in inputs.items()}


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A tensor on the device, numbers in the type of the weights; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return value.to(device, dtype, non_blocking=True)
    return value.to(device, non_blocking=True)


def joined(parts: Sequence[tuple[Sequence[int], Features]]) -> Features:
    """One batch from several, each with the positions of its items in the whole."""
    order = [
        torch.as_tensor(list(positions), dtype=torch.long)[features.order]
        for positions, features in parts
        if len(features.order)
    ]
    return Features(
        forwards=[inputs for _, features in parts for inputs in features.forwards],
        order=torch.cat(order) if order else torch.zeros(0, dtype=torch.long),
        tokens=sum(features.tokens for _, features in parts),
        processed_tokens=sum(features.processed_tokens for _, features in parts),
    )
