"""Augmentation: what training does to images and point clouds before a model sees them.

Each thing is changed by draws from a seed of its own, so that the result depends on the step and
the thing, and neither on the worker that decodes it nor on what was decoded before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftray.errors import ConfigError, nearest

__all__ = ["AUTO", "Augmentation", "CloudAugmentation", "ImageAugmentation"]
__all__ += ["check_augmentation", "make_augmentation"]

Cloud = npt.NDArray[np.floating[Any]]

AUTO: dict[str, dict[str, float]] = {
    "image": {"flip": 0.5, "crop": 0.8, "color": 0.2},
    "clip": {"crop": 0.8},  # a text may tell left from right, and colours
    "two-towers": {"crop": 0.8},
    "convnet": {},  # small images are often signs, which a flip makes others of
    "pointnet": {"jitter": 0.01, "scale": 0.1},
}
"""What "auto" is for each kind of model; kinds that are not here are never augmented."""

_LONGEST_SIDES = 4 / 3
_BLUR = (0.5, 1.0)
_BLUR_AT = 112
_ERASED_SIDES = 2.0
_CLIPPED_AT = 5
_OWN = " A preprocess_fn with a parameter rng may augment."


class Augmentation(BaseModel, ABC):
    """Operations with their strengths; 0 = not done."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @abstractmethod
    def apply(self, thing: Any, rng: np.random.Generator) -> Any:
        """The thing, changed."""

    @property
    def does_nothing(self) -> bool:
        """Whether no operation is asked for."""
        return self == type(self)()

    def __call__(self, thing: Any, draw: int | np.uint64) -> Any:
        """The thing, changed as `draw` decides."""
        return self.apply(thing, np.random.Generator(np.random.PCG64(int(draw))))


class ImageAugmentation(Augmentation):
    """Changes images of mode RGB or L; they keep their size.

    What comes into view at the edges has the median colour of the image's border.
    """

    crop: float = Field(
        1.0, gt=0, le=1, description="The smallest share of the area that is kept, and enlarged."
    )
    shift: float = Field(0.0, ge=0, lt=1, description="The farthest move, as a share of the size.")
    rotate: float = Field(0.0, ge=0, le=180, description="The largest turn, in degrees.")
    flip: float = Field(0.0, ge=0, le=1, description="How probable a mirror image is.")
    color: float = Field(
        0.0, ge=0, le=1, description="How far brightness, contrast and saturation change."
    )
    blur: float = Field(0.0, ge=0, le=1, description="How probable a Gaussian blur is.")
    noise: float = Field(
        0.0, ge=0, le=1, description="Standard deviation of noise on pixels in [0, 1]."
    )
    erase: float = Field(0.0, ge=0, lt=1, description="The share of the area that is painted over.")

    def apply(self, thing: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The image, changed."""
        image = thing
        if self.crop < 1:
            image = _cropped(image, self.crop, rng)
        if self.shift:
            image = _shifted(image, self.shift, rng)
        if self.rotate:
            angle = rng.uniform(-self.rotate, self.rotate)
            image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=_border(image))
        if self.flip and rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.color:
            image = _coloured(image, self.color, rng)
        if self.blur and rng.random() < self.blur:
            radius = rng.uniform(*_BLUR) * max(1.0, min(image.size) / _BLUR_AT)
            image = image.filter(ImageFilter.GaussianBlur(radius))
        if self.noise:
            pixels = np.asarray(image, np.float32)
            pixels = pixels + 255 * self.noise * rng.standard_normal(pixels.shape, np.float32)
            image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
        return _erased(image, self.erase, rng) if self.erase else image


def _cropped(image: Image.Image, smallest: float, rng: np.random.Generator) -> Image.Image:
    """A part of it at its whole size (Szegedy et al. 2015, "Going deeper with convolutions")."""
    width, height = image.size
    area = rng.uniform(smallest, 1)
    sides = math.exp(rng.uniform(-math.log(_LONGEST_SIDES), math.log(_LONGEST_SIDES)))
    across, down = (min(math.sqrt(area * ratio), 1.0) for ratio in (sides, 1 / sides))
    left, top = rng.uniform(0, 1 - across) * width, rng.uniform(0, 1 - down) * height
    box = (left, top, min(left + across * width, width), min(top + down * height, height))
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)


def _shifted(image: Image.Image, farthest: float, rng: np.random.Generator) -> Image.Image:
    x, y = (round(rng.uniform(-farthest, farthest) * size) for size in image.size)
    moved = Image.new(image.mode, image.size, _border(image))
    moved.paste(image, (x, y))
    return moved


def _border(image: Image.Image) -> Any:
    """The median colour of the outermost pixels, as Pillow takes one."""
    pixels = np.asarray(image)
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    median = np.median(edges, axis=0).astype(int)
    return int(median) if median.ndim == 0 else tuple(median.tolist())


def _coloured(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        factor = rng.uniform(1 - strength, 1 + strength)
        if image.mode != "L" or enhancer is not ImageEnhance.Color:  # grey has no saturation
            image = enhancer(image).enhance(factor)
    return image


def _erased(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """A rectangle of it painted over with its mean colour (Zhong et al. 2020, random erasing)."""
    width, height = image.size
    sides = math.exp(rng.uniform(-math.log(_ERASED_SIDES), math.log(_ERASED_SIDES)))
    across = min(math.sqrt(share * sides), 1.0)
    down = min(share / across, 1.0)
    across = share / down  # where one side would be too long, the other makes up for it
    x, y = round(across * width), round(down * height)
    left, top = int(rng.integers(0, width - x + 1)), int(rng.integers(0, height - y + 1))
    mean = np.asarray(image).mean(axis=(0, 1)).round().astype(int)
    erased = image.copy()
    fill = int(mean) if mean.ndim == 0 else tuple(mean.tolist())
    erased.paste(fill, (left, top, left + x, top + y))
    return erased


class CloudAugmentation(Augmentation):
    """Changes point clouds `(N, 3)` that lie about the origin, with z upwards."""

    rotate: float = Field(
        0.0, ge=0, le=180, description="The largest turn about the upward axis, in degrees."
    )
    scale: float = Field(0.0, ge=0, lt=1, description="How far the size changes, as a share.")
    jitter: float = Field(
        0.0, ge=0, le=1, description="Standard deviation of a point's move, in radii of the cloud."
    )

    def apply(self, thing: Cloud, rng: np.random.Generator) -> Cloud:
        """The cloud, changed."""
        points = thing
        if self.rotate:
            angle = math.radians(rng.uniform(-self.rotate, self.rotate))
            cos, sin = math.cos(angle), math.sin(angle)
            turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], points.dtype)
            points = points @ turn.T
        if self.scale:
            points = points * points.dtype.type(rng.uniform(1 - self.scale, 1 + self.scale))
        if self.jitter:
            moves = rng.standard_normal(points.shape).clip(-_CLIPPED_AT, _CLIPPED_AT)
            points = points + (self.jitter * moves).astype(points.dtype)
        return points


def check_augmentation(given: str | Mapping[str, Any], kind: str | None = None) -> None:
    """Refuse an `augmentation` that cannot be done.

    Args:
        given: "auto", "none", or operations with their strengths.
        kind: of the model; None = not known yet, and any operation may do.

    Raises:
        ConfigError: naming the operation, what was given, and the nearest valid one.
    """
    if kind is not None or isinstance(given, str):
        make_augmentation(given, kind or "image")
    elif given and not set(given) <= set(CloudAugmentation.model_fields):
        _checked(ImageAugmentation, given)
    else:
        _checked(CloudAugmentation, given)


def make_augmentation(given: str | Mapping[str, Any], kind: str) -> Augmentation | None:
    """What changes the things that a model of some kind takes, in training.

    Args:
        given: "auto", "none", or operations with their strengths.
        kind: of the model.

    Returns:
        A function of a thing and a draw; None = nothing is changed.

    Raises:
        ConfigError: naming the operation, what was given, and the nearest valid one.
    """
    if isinstance(given, str):
        if given not in ("auto", "none"):
            raise ConfigError(
                f"augmentation = {given!r}: operations with their strengths are expected, as "
                f"{{flip: 0.5}}, or a word.{nearest(given, ('auto', 'none'))}"
            )
        given = AUTO.get(kind, {}) if given == "auto" else {}
    if given and kind not in AUTO:
        raise ConfigError(
            f"augmentation: images and point clouds are augmented, not what a model of the kind "
            f"'{kind}' takes. Leave it away, or say none.{_OWN if kind == 'module' else ''}"
        )
    made = _checked(CloudAugmentation if kind == "pointnet" else ImageAugmentation, given)
    return None if made.does_nothing else made


def _checked(model: type[Augmentation], given: Mapping[str, Any]) -> Augmentation:
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            things = "point clouds" if model is CloudAugmentation else "images"
            known = nearest(name, model.model_fields)
            raise ConfigError(
                f"augmentation: there is no operation '{name}' on {things}.{known}"
            ) from None
        raise ConfigError(
            f"augmentation.{name} = {first['input']!r}: {first['msg'].lower()}"
        ) from None
