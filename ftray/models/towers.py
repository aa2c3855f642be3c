"""Any text model beside any image model, each with a projection to the same width."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ftray.errors import ConfigError
from ftray.media import Content, Modality
from ftray.models.artifact import save_encoder
from ftray.models.augment import make_augmentation
from ftray.models.base import Draws, Encoder, Features, Item, joined
from ftray.models.kinds import TEXT_AND_IMAGE
from ftray.models.layout import Layout
from ftray.models.options import TwoTowersOptions, kept
from ftray.models.registry import load_encoder
from ftray.models.request import Request, not_loaded

__all__ = ["TwoTowersEncoder", "load"]

TOWERS: tuple[Modality, ...] = ("text", "image")
PROJECTIONS = "projections.safetensors"


def load(request: Request) -> TwoTowersEncoder:
    """Two models by their names, or a folder that holds both.

    Raises:
        ConfigError: for a model of another modality, or options that a folder has of its own.
        ModelError: if a model cannot be loaded.
    """
    # which towers are trained is a fit's own affair
    options: TwoTowersOptions = kept(
        "two-towers", request.facts, request.options, request.name, may_change=("frozen",)
    )
    new = request.is_new
    text = load_encoder(
        options.text if new else str(Path(request.place, "text")),
        max_length=request.max_length,
        options=options.text_options if new else None,
        seed=request.seed,
    )
    image = load_encoder(
        options.image if new else str(Path(request.place, "image")),
        options=options.image_options if new else None,
        augmentation=_augmentation(request),
        seed=request.seed,
    )
    for tower, encoder in zip(TOWERS, (text, image), strict=True):
        if encoder.modalities != {tower}:
            raise ConfigError(
                f"model_options.{tower} = '{encoder.name}' takes {_listed(encoder.modalities)}: "
                f"give a model that takes {tower} alone"
            )
    encoder = TwoTowersEncoder(text, image, request.name, options)
    if not new:
        try:
            encoder.projections.load_state_dict(load_file(Path(request.place, PROJECTIONS)))
        except Exception as error:
            raise not_loaded(request, error) from error
    return encoder


def _augmentation(request: Request) -> dict[str, Any] | str:
    """That of image models beside texts, whatever image model it is."""
    found = make_augmentation(request.augmentation, "two-towers")
    return "none" if found is None else found.model_dump()


def _listed(modalities: Collection[str]) -> str:
    return " and ".join(sorted(modalities))


class TwoTowersEncoder(Encoder):
    """Texts and images to embeddings `(n, D)` of one space, not normalised.

    A projection is linear. Where it does not change the width it begins as the identity, so that a
    tower begins as the model that it is. Texts have no role here: of models with prompts or routes
    for queries and documents, the default is taken.

    Args:
        text: takes texts alone.
        image: takes images alone.
        name: what the user called it, for messages.
        options: the width D, and which towers are frozen: encoded without a graph, dropout off,
            statistics as they are. Projections are always trained.
    """

    kind = "two-towers"
    modalities = TEXT_AND_IMAGE

    def __init__(self, text: Encoder, image: Encoder, name: str, options: TwoTowersOptions) -> None:
        super().__init__(name)
        self._options = options
        self._dim = options.output_dim or text.embedding_dim
        self.encoders = nn.ModuleDict({"text": text, "image": image})
        self.projections = nn.ModuleDict(
            {tower: _projection(self._tower(tower).embedding_dim, self._dim) for tower in TOWERS}
        )
        for tower in options.frozen:
            self._tower(tower).requires_grad_(False)
        self.couples_rows = any(map(self._couples, TOWERS))
        self.not_packed = text.not_packed
        self.unused = [*text.unused, *image.unused]
        self.train(self.training)

    def _tower(self, name: str) -> Encoder:
        encoder = self.encoders[name]
        assert isinstance(encoder, Encoder)
        return encoder

    def _couples(self, tower: Modality) -> bool:
        """Whether a tower is trained whose embeddings depend on others of the step."""
        return tower not in self._options.frozen and self._tower(tower).couples_rows

    def coupled(self, content: Content) -> bool:
        """Whether a thing's embedding depends on others of the step, in training."""
        return self.couples_rows and self._couples(_tower_of(content))

    @property
    def trained_parts(self) -> tuple[Encoder, ...]:
        """The towers that are not frozen."""
        return tuple(self._tower(name) for name in TOWERS if name not in self._options.frozen)

    @property
    def own_dim(self) -> int:
        """Width of an embedding before there is a head."""
        return self._dim

    @property
    def towers(self) -> tuple[str, ...]:
        """One for each modality."""
        return TOWERS

    @property
    def branches(self) -> tuple[str, ...]:
        """The towers."""
        return TOWERS

    def branch_of(self, inputs: dict[str, Any]) -> str:
        """The tower that a forward goes through."""
        return str(inputs["tower"])

    def branch_of_content(self, content: Content) -> str:
        """The tower that a thing goes through."""
        return _tower_of(content)

    def varies(self, content: Content) -> bool:
        """Whether its tower augments it."""
        return self._tower(_tower_of(content)).varies(content)

    @property
    def frozen_branches(self) -> tuple[str, ...]:
        """All, or the towers that the options freeze."""
        return super().frozen_branches or self._options.frozen

    def first_part(self, inputs: dict[str, Any]) -> Tensor:
        """What a tower gives, before its projection, `(rows, F)`."""
        own = {name: value for name, value in inputs.items() if name != "tower"}
        return self._tower(inputs["tower"]).embed(own)

    def last_part(self, features: Tensor, branch: str) -> Tensor:
        """The projection, and what follows it."""
        return super().last_part(self.projections[branch](features), branch)

    def max_tokens(self, role: str = "") -> int | None:
        """The most tokens of a text that are not cut; None if there is no limit."""
        return self._tower("text").max_tokens()

    def token_counts(self, texts: Sequence[str], role: str) -> list[int]:
        """How many tokens each text has, whole."""
        return self._tower("text").token_counts(texts, "")

    def train(self, mode: bool = True) -> TwoTowersEncoder:
        """Training or evaluation mode; frozen towers stay in the latter."""
        super().train(mode)
        for tower in self._options.frozen:
            self._tower(tower).eval()
        return self

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Each item as its tower makes it ready; what is no text goes to the other."""
        parts = []
        for tower in TOWERS:
            own = [i for i, (_, content) in enumerate(items) if _tower_of(content) == tower]
            if own:
                features = self._tower(tower).collate(
                    [("", items[i][1]) for i in own], layout, None if draws is None else draws[own]
                )
                forwards = [{"tower": tower, **inputs} for inputs in features.forwards]
                parts.append((own, replace(features, forwards=forwards)))
        return joined(parts)

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of one forward pass through one tower and its projection."""
        tower = inputs["tower"]
        own = {name: value for name, value in inputs.items() if name != "tower"}
        graph = torch.no_grad() if tower in self._options.frozen else contextlib.nullcontext()
        with graph:
            embeddings = self._tower(tower).embed(own)
        projected: Tensor = self.projections[tower](embeddings)
        return projected

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the towers into `text/` and `image/`, each a model of its own, and projections."""
        for tower in TOWERS:
            save_encoder(self._tower(tower), folder / tower)
        save_file(self.projections.state_dict(), folder / PROJECTIONS)
        options = {**self._options.model_dump(exclude={"frozen"}), "output_dim": self._dim}
        return {"options": options}


def _tower_of(content: Content) -> Modality:
    return "text" if isinstance(content, str) else "image"


def _projection(width: int, to: int) -> nn.Linear:
    layer = nn.Linear(width, to)
    if width == to:
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
