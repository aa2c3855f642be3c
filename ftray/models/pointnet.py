"""PointNet++ for point clouds and meshes, from scratch: `pointnet`.

Qi et al. 2017, "PointNet++: Deep hierarchical feature learning on point sets in a metric space",
with single-scale grouping and the sizes of the authors' classification net.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ftray.clouds import normalised, read_cloud, sampled_surface
from ftray.errors import ModelError
from ftray.media import Content
from ftray.models.augment import Augmentation, make_augmentation
from ftray.models.base import Draws, Features, Item
from ftray.models.layout import Layout
from ftray.models.norm import GlobalBatchNorm
from ftray.models.options import PointNetOptions, kept
from ftray.models.request import Request
from ftray.models.scratch import ScratchEncoder, with_weights

__all__ = ["PointNetEncoder", "load"]

LEVELS = ((512, 0.2, 32, (64, 64, 128)), (128, 0.4, 64, (128, 128, 256)))
"""Of each level: centres, radius of a ball, points taken of it, widths of its layers."""
AUTHORS_POINTS = 1024
"""Fewer points have fewer centres, in proportion, and larger balls, which hold as many of them."""
LAST = (256, 512, 1024)
COORDINATES = 3
MOMENTUM = 0.5
"""Of running statistics, as the authors begin: they keep up with weights from scratch, and a step
has many points."""


def load(request: Request) -> PointNetEncoder:
    """A net with random weights, or one that ftray wrote."""
    options: PointNetOptions = kept("pointnet", request.facts, request.options, request.name)
    augmentation = make_augmentation(request.augmentation, "pointnet")
    return with_weights(PointNetEncoder(request.name, options, augmentation), request)


class PointNetEncoder(ScratchEncoder):
    """Point clouds and meshes to embeddings `(n, D)`, which are not normalised.

    A level takes the farthest points as centres, and makes one vector of the points in the ball
    around each: a perceptron for each point, then the maximum. The last level takes all that is
    left as one ball. A linear layer and a norm give the embedding.

    Args:
        name: what the user called it.
        options: see `PointNetOptions`.
        augmentation: of clouds in training; None = none.
    """

    kind = "pointnet"
    options: PointNetOptions
    modalities = frozenset({"points"})
    couples_rows = True

    def __init__(
        self, name: str, options: PointNetOptions, augmentation: Augmentation | None = None
    ) -> None:
        super().__init__(name)
        self.options = options
        self._augmentation = augmentation
        self.net = _Net(options)

    @property
    def own_dim(self) -> int:
        """Width of an embedding before there is a head."""
        return self.options.output_dim

    def collate(
        self, items: Sequence[Item], layout: Layout = "auto", draws: Draws | None = None
    ) -> Features:
        """Read, draw points, and augment where there are draws: one forward.

        Without draws the points are drawn by the content: one cloud has one embedding.
        """
        order = torch.arange(len(items))
        if not items:
            return Features(forwards=[], order=order)
        clouds = [
            self._points(content, None if draws is None else draws[row])
            for row, (_, content) in enumerate(items)
        ]
        return Features(forwards=[{"points": torch.from_numpy(np.stack(clouds))}], order=order)

    def _points(self, content: Content, draw: np.uint64 | None) -> npt.NDArray[np.float32]:
        """Points `(points, 3)` in the unit sphere."""
        if isinstance(content, str) or content.modality != "points":
            what = "a text" if isinstance(content, str) else f"{content.name} ({content.modality})"
            raise ModelError(f"'{self.name}' encodes point clouds and meshes, not {what}")
        data = content.read()
        vertices, faces = read_cloud(data, content.name)
        seed = int(draw) if draw is not None else _seed_of(data)
        rng = np.random.default_rng(seed)
        points = normalised(sampled_surface(vertices, faces, self.options.points, rng))
        if draw is not None and self._augmentation is not None:
            points = self._augmentation(points, draw)
        return np.asarray(points, np.float32)

    def encode(self, inputs: dict[str, Any]) -> Tensor:
        """Embeddings of points `(rows, points, 3)`, `(rows, D)`."""
        embeddings: Tensor = self.net(inputs["points"])
        return embeddings

    def freeze(self, weight: str) -> None:
        """Leave a weight, by its name in `model.safetensors`, as it is."""
        self.net.get_parameter(weight).requires_grad_(False)


def _seed_of(data: bytes | memoryview) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


class _Net(nn.Module):
    """Points `(n, P, 3)` to embeddings `(n, D)`."""

    def __init__(self, options: PointNetOptions) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        width, share = 0, min(options.points / AUTHORS_POINTS, 1)
        for centres, radius, size, widths in LEVELS:
            scaled = _scaled(widths, options.width)
            # points on a surface: as many in a ball as the square of its radius says
            level = (max(int(centres * share), 1), radius / math.sqrt(share), size)
            self.levels.append(_Level(*level, COORDINATES + width, scaled))
            width = scaled[-1]
        scaled = _scaled(LAST, options.width)
        self.last = _perceptron(COORDINATES + width, scaled)
        self.head = nn.Sequential(
            nn.Linear(scaled[-1], options.output_dim, bias=False),
            GlobalBatchNorm(options.output_dim, momentum=MOMENTUM),
        )

    def forward(self, points: Tensor) -> Tensor:
        places, features = points, None
        for level in self.levels:
            places, features = level(places, features)
        assert features is not None
        joint = torch.cat([places, features], dim=2)
        embeddings: Tensor = self.head(_pooled(self.last, joint))
        return embeddings


def _scaled(widths: Sequence[int], factor: float) -> list[int]:
    return [max(round(width * factor), 1) for width in widths]


def _perceptron(width: int, widths: Sequence[int]) -> nn.Sequential:
    """Layers over points `(rows, C)`: as convolutions of size 1, but faster on CPUs."""
    layers: list[nn.Module] = []
    for after in widths:
        # the norm takes the mean away, and a bias with it
        norm = GlobalBatchNorm(after, momentum=MOMENTUM)
        layers += [nn.Linear(width, after, bias=False), norm, nn.ReLU()]
        width = after
    return nn.Sequential(*layers)


def _pooled(layers: nn.Module, points: Tensor) -> Tensor:
    """The maximum over the points of each ball, `(..., P, C)` to `(..., C')`, after the layers."""
    found: Tensor = layers(points.flatten(0, -2))
    return found.reshape(*points.shape[:-1], -1).amax(dim=-2)


class _Level(nn.Module):
    """One set abstraction: fewer points, which know more.

    Args:
        centres: how many points are left.
        radius: of the ball around each.
        size: how many points are taken of a ball.
        width: of a point, with its coordinates.
        widths: of the layers.
    """

    def __init__(
        self, centres: int, radius: float, size: int, width: int, widths: Sequence[int]
    ) -> None:
        super().__init__()
        self._centres, self._radius, self._size = centres, radius, size
        self.layers = _perceptron(width, widths)

    def forward(self, places: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """From `(n, P, 3)` and `(n, P, C)` to `(n, centres, 3)` and `(n, centres, C')`."""
        centres = _taken(places, farthest_points(places, self._centres))
        balls = ball_points(places, centres, self._radius, self._size)
        grouped = _taken(places, balls) - centres[:, :, None]
        if features is not None:
            grouped = torch.cat([grouped, _taken(features, balls)], dim=3)
        return centres, _pooled(self.layers, grouped)


def _taken(values: Tensor, numbers: Tensor) -> Tensor:
    """Rows of `(n, P, C)` by numbers `(n, ...)`: `(n, ..., C)`."""
    row = torch.arange(len(values), device=values.device)
    return values[row.reshape(-1, *[1] * (numbers.dim() - 1)), numbers]


@torch.no_grad()
def farthest_points(places: Tensor, count: int) -> Tensor:
    """Numbers `(n, count)` of points of `(n, P, 3)`, each the farthest from those before it.

    The first is the one farthest from the mean, so that the order of the points does not matter.
    """
    row = torch.arange(len(places), device=places.device)
    last = (places - places.mean(dim=1, keepdim=True)).square().sum(dim=2).argmax(dim=1)
    nearest = places.new_full(places.shape[:2], torch.inf)
    found = [last]
    for _ in range(count - 1):
        distance = (places - places[row, last][:, None]).square().sum(dim=2)
        nearest = torch.minimum(nearest, distance)
        last = nearest.argmax(dim=1)
        found.append(last)
    return torch.stack(found, dim=1)


@torch.no_grad()
def ball_points(places: Tensor, centres: Tensor, radius: float, size: int) -> Tensor:
    """Numbers `(n, M, size)` of the points nearest to each centre `(n, M, 3)` within a radius.

    Where a ball has fewer, its nearest, which is the centre itself, stands for the rest.
    """
    distances = torch.cdist(centres, places, compute_mode="donot_use_mm_for_euclid_dist")
    nearest, numbers = distances.topk(min(size, places.shape[1]), dim=2, largest=False)
    return torch.where(nearest <= radius, numbers, numbers[:, :, :1])
