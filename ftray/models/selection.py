"""One tower of a model as a model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ftray.errors import ConfigError, ModelError, nearest
from ftray.media import Content, Media, Modality
from ftray.models.base import Draws, Encoder, Features, Item
from ftray.models.kinds import names_of_towers, tower_called
from ftray.models.layout import Layout

__all__ = ["OneTower", "selected", "tower_modalities"]


def tower_modalities(name: str, whole: frozenset[Modality] | None) -> frozenset[Modality] | None:
    """What a tower takes.

    Args:
        name: of the tower; `clip-text` and `clip-vision` are Finetuner's names.
        whole: what its model takes; None = not known.

    Returns:
        The modality that it is named after; else, as of a tower for queries, those of the model.
    """
    tower = tower_called(name)
    return frozenset({tower}) if tower in get_args(Modality) else whole  # type: ignore[arg-type]


def selected(encoder: Encoder, name: str) -> OneTower:
    """The tower of that name, alone.

    Args:
        encoder: a model with towers.
        name: one of its towers; `clip-text` and `clip-vision` are Finetuner's names.

    Raises:
        ConfigError: if the model has no such tower, with the nearest one.
    """
    tower = tower_called(name)
    if not encoder.towers:
        raise ConfigError(
            f"select_model = '{name}': '{encoder.name}' has one tower. Leave select_model away."
        )
    if tower not in encoder.towers:
        known = nearest(name, names_of_towers(encoder.towers))
        raise ConfigError(
            f"select_model = '{name}': '{encoder.name}' has the towers "
            f"{' and '.join(map(repr, encoder.towers))}.{known}"
        )
    return OneTower(encoder, tower)


class OneTower(Encoder):
    """One tower of a model: of things of one modality, or of texts in one role.

    Args:
        whole: the model, whose weights it shares.
        tower: which of its towers.
    """

    def __init__(self, whole: Encoder, tower: str) -> None:
        super().__init__(whole.name)
        self.whole = whole
        self.tower = tower
        self.modalities = tower_modalities(tower, whole.modalities)  # type: ignore[assignment]
        self._role = "" if tower in get_args(Modality) else tower
        self.couples_rows = whole.couples_rows
        if "text" in self.modalities:
            self.not_packed = whole.not_packed

    @property
    def kind(self) -> str:  # type: ignore[override]
        """That of the whole model, which `save` writes."""
        return self.whole.kind

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.whole.device

    @property
    def own_dim(self) -> int:
        """Width D of an embedding; the whole model's head is behind it."""
        return self.whole.embedding_dim

    def max_tokens(self, role: str = "") -> int | None:
        """The most tokens of a text that are not cut; None without a limit, and without texts."""
        return self.whole.max_tokens(self._role) if "text" in self.modalities else None

    def token_counts(self, texts: Sequence[str], role: str) -> list[int]:
        """How many tokens each text has."""
        if "text" not in self.modalities:
            return super().token_counts(texts, role)
        return self.whole.token_counts(texts, self._role)

    def cost(self, content: Content) -> int:
        """How much a thing is to encode, beside others."""
        return self.whole.cost(content)

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Make ready what the tower takes.

        Raises:
            ModelError: for a thing of another modality.
        """
        for _, content in items:
            modality = content.modality if isinstance(content, Media) else "text"
            if modality not in self.modalities:
                shown = content.name if isinstance(content, Media) else repr(content[:40])
                raise ModelError(
                    f"The tower '{self.tower}' of '{self.name}' takes "
                    f"{' and '.join(sorted(self.modalities))}, and {shown} is {modality}"
                )
        return self.whole.collate([(self._role, content) for _, content in items], layout, draws)

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of one forward pass."""
        return self.whole.embed(inputs)

    def freeze(self, weight: str) -> None:
        """Leave a weight as it is, by its name in the model that is saved."""
        self.whole.freeze(weight)

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the whole model."""
        return self.whole.save(folder)
