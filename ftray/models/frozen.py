"""What frozen weights make of a thing never changes: it is computed once, and kept.

A step then takes the kept features of such things, and computes what is trained: a head, or a
projection. See `Encoder.is_fixed`; who fills the store is `ftray.training.frozen`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ftray.media import Content, Media, reference
from ftray.models.base import BRANCH, KEPT, Draws, Encoder, Features, Item, joined
from ftray.models.layout import Layout

__all__ = ["KeptFeatures", "KnowingEncoder"]

COST = 1
"""What a thing costs whose features are kept, beside the length of a text."""


class KeptFeatures:
    """Features of things, for each branch of an encoder in a table of its own.

    Args:
        roles_differ: whether the encoder makes another thing of the same thing in another role.
    """

    def __init__(self, *, roles_differ: bool) -> None:
        self._roles_differ = roles_differ
        self._rows: dict[bytes, int] = {}
        self._tables: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, item: Item) -> bool:
        return self.key(item) in self._rows

    def key(self, item: Item) -> bytes:
        """A hash of the content, and of a role that matters; it holds no text and no file."""
        role, content = item
        if isinstance(content, Media):
            content = reference(content.modality, content.address)
        role = role if self._roles_differ else ""
        return hashlib.blake2b(f"{role}\0{content}".encode(), digest_size=16).digest()

    @property
    def size(self) -> int:
        """Bytes of all features."""
        return sum(table.nbytes for table in self._tables.values())

    def add(self, branch: str, items: Sequence[Item], features: Tensor) -> None:
        """Take the features `(n, F)` of things of one branch, on the CPU; once for each branch."""
        self._rows.update({self.key(item): row for row, item in enumerate(items)})
        self._tables[branch] = features

    def of(self, branch: str, items: Sequence[Item]) -> Tensor:
        """The features of things that are there, `(n, F)`."""
        rows = [self._rows[self.key(item)] for item in items]
        return self._tables[branch][torch.tensor(rows, dtype=torch.long)]


class KnowingEncoder:
    """An encoder as steps and evaluations see it, which knows the features of some things.

    Args:
        encoder: the encoder, with its present weights.
        kept: features that its frozen weights made.
    """

    def __init__(self, encoder: Encoder, kept: KeptFeatures) -> None:
        self._encoder = encoder
        self._kept = kept
        self.couples_rows = encoder.couples_rows

    @property
    def training(self) -> bool:
        """As of the encoder."""
        return self._encoder.training

    @property
    def embedding_dim(self) -> int:
        """As of the encoder."""
        return self._encoder.embedding_dim

    def train(self, mode: bool = True) -> object:
        """As of the encoder."""
        return self._encoder.train(mode)

    def modules(self) -> Iterator[nn.Module]:
        """As of the encoder."""
        return self._encoder.modules()

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of the encoder."""
        return self._encoder.parameters()

    def coupled(self, content: Content) -> bool:
        """As of the encoder."""
        return self._encoder.coupled(content)

    def cost(self, content: Content) -> int:
        """Next to nothing for what is known, so that ranks get equal shares of the rest."""
        return COST if self._encoder.is_fixed(content) else self._encoder.cost(content)

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Take the features of what is known, and make ready what is not."""
        places: dict[str, list[int]] = {}
        rest: list[int] = []
        for place, item in enumerate(items):
            if item in self._kept:
                places.setdefault(self._encoder.branch_of_content(item[1]), []).append(place)
            else:
                rest.append(place)
        parts: list[tuple[Sequence[int], Features]] = [
            (own, self._known(branch, [items[i] for i in own])) for branch, own in places.items()
        ]
        if rest or not parts:
            own_draws = None if draws is None else draws[_index(rest)]
            parts.append((rest, self._encoder.collate([items[i] for i in rest], layout, own_draws)))
        return joined(parts)

    def _known(self, branch: str, items: list[Item]) -> Features:
        forward = {KEPT: self._kept.of(branch, items), BRANCH: branch}
        return Features(forwards=[forward], order=torch.arange(len(items)))

    def __call__(self, features: Features) -> Tensor:
        """Embeddings, `(n, D)`."""
        found: Tensor = self._encoder(features)
        return found


def _index(places: list[int]) -> npt.NDArray[np.int64]:
    return np.array(places, dtype=np.int64)
