"""A small convolutional net from scratch, for small images: `convnet`."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ftray.media import Content
from ftray.models.augment import Augmentation, make_augmentation
from ftray.models.base import Draws, Features, Item
from ftray.models.layout import Layout
from ftray.models.norm import GlobalBatchNorm
from ftray.models.options import ConvNetOptions, kept
from ftray.models.pictures import PictureReader, colour, image_of
from ftray.models.pooling import GeM
from ftray.models.request import Request
from ftray.models.scratch import ScratchEncoder, with_weights

__all__ = ["ConvNetEncoder", "load"]

MOST_GROUPS = 8
MIDDLE = (0.5,)


def load(request: Request) -> ConvNetEncoder:
    """A net with random weights, or one that ftray wrote."""
    options = kept("convnet", request.facts, request.options, request.name)
    augmentation = make_augmentation(request.augmentation, "convnet")
    return with_weights(ConvNetEncoder(request.name, options, augmentation), request)


class ConvNetEncoder(ScratchEncoder):
    """Images to embeddings `(n, D)`, which are not normalised.

    A stage is a 3x3 convolution, a norm and ReLU, and halves height and width, rounding up with
    convolutions of stride 2, and down with max-pooling.

    Args:
        name: what the user called it.
        options: see `ConvNetOptions`.
        augmentation: of images in training; None = none.
    """

    kind = "convnet"
    options: ConvNetOptions
    modalities = frozenset({"image"})

    def __init__(
        self, name: str, options: ConvNetOptions, augmentation: Augmentation | None = None
    ) -> None:
        super().__init__(name)
        self.options = options
        self.couples_rows = options.norm == "batch"
        self._augmentation = augmentation
        grey = options.colors == "grey"
        channels = 1 if grey else 3
        self._reader = PictureReader(
            size=options.image_size,
            mode="L" if grey else "RGB",
            background=colour(options.background),
            invert=options.invert,
            mean=options.mean or MIDDLE,
            std=options.std or MIDDLE,
        )
        layers: dict[str, nn.Module] = {}
        for number, width in enumerate(options.channels, 1):
            layers[f"stage{number}"] = _stage(channels, width, options)
            channels = width
        layers["pooling"] = _Pooling(options)
        self._dim = _pooled_dim(options)
        if options.output_dim is not None:
            layers["output"] = nn.Linear(self._dim, options.output_dim)
            self._dim = options.output_dim
        self.net = nn.Sequential(OrderedDict(layers))

    def varies(self, content: Content) -> bool:
        """Whether images are augmented."""
        return self._augmentation is not None

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Decode, augment where there are draws, and resize: one forward."""
        order = torch.arange(len(items))
        if not items:
            return Features(forwards=[], order=order)
        images = [self._reader.decoded(image_of(content, self.name)) for _, content in items]
        if draws is not None and self._augmentation is not None:
            images = [self._augmentation(*pair) for pair in zip(images, draws, strict=True)]
        return Features(forwards=[{"pixels": self._reader.pixels(images)}], order=order)

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of images, `(rows, D)`."""
        embeddings: Tensor = self.net(inputs["pixels"])
        return embeddings

    def freeze(self, weight: str) -> None:
        """Leave a weight, by its name in `model.safetensors`, as it is."""
        self.net.get_parameter(weight).requires_grad_(False)


def _stage(inputs: int, outputs: int, options: ConvNetOptions) -> nn.Sequential:
    strided = options.downsample == "stride"
    layers: dict[str, nn.Module] = {
        "conv": nn.Conv2d(inputs, outputs, 3, stride=2 if strided else 1, padding=1)
    }
    if options.norm == "batch":
        layers["norm"] = GlobalBatchNorm(outputs)
    elif options.norm == "group":
        layers["norm"] = nn.GroupNorm(math.gcd(MOST_GROUPS, outputs), outputs)
    layers["relu"] = nn.ReLU()
    if not strided:
        layers["halve"] = nn.MaxPool2d(2)
    return nn.Sequential(OrderedDict(layers))


def _pooled_dim(options: ConvNetOptions) -> int:
    """Width of what the pooling gives."""
    width = options.channels[-1]
    if options.pooling != "flatten":
        return 2 * width if options.pooling == "meanmax" else width
    size = options.image_size
    for _ in options.channels:
        size = (size + 1) // 2 if options.downsample == "stride" else size // 2
    return width * size * size


class _Pooling(nn.Module):
    """Maps `(n, C, h, w)` to one vector each."""

    def __init__(self, options: ConvNetOptions) -> None:
        super().__init__()
        self._how = options.pooling
        self.gem = GeM(options.pooling_p) if options.pooling == "gem" else None

    def forward(self, maps: Tensor) -> Tensor:
        if self._how == "flatten":
            return maps.flatten(1)
        flat = maps.flatten(2)
        if self.gem is not None:
            return self.gem(flat.transpose(1, 2))  # type: ignore[no-any-return]
        if self._how == "mean":
            return flat.mean(2)
        if self._how == "max":
            return flat.amax(2)
        return torch.cat([flat.mean(2), flat.amax(2)], dim=1)
