"""Encoded images to pixels.

Whatever lies in a file becomes an upright image of 8 bits a channel: its EXIF orientation is
applied, transparent pixels are pasted on a background, and 16-bit grey loses its low byte.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor

from ftray.errors import DataError, ModelError
from ftray.media import Content, Media

Image.init()  # all formats now: processes are forked, and threads decode, later

__all__ = ["PictureReader", "colour", "decoded", "image_of", "thumbnail"]

Mode = Literal["RGB", "L"]
Colour = tuple[int, int, int]

WHITE: Colour = (255, 255, 255)
THUMBNAIL = 96
_SHOWN = 40


def image_of(content: Content, model: str) -> Media:
    """The image that a thing is.

    Raises:
        ModelError: if it is something else; `model` is what the user called the model.
    """
    if isinstance(content, Media) and content.modality == "image":
        return content
    if isinstance(content, Media):
        what = f"{content.name} is of the kind '{content.modality}'"
    else:
        what = f"{content[:_SHOWN]!r} is a text"
    raise ModelError(f"'{model}' encodes images, and {what}")


def colour(name: str) -> Colour:
    """A colour by its name or as `#rrggbb`."""
    red, green, blue, *_ = ImageColor.getrgb(name)
    return red, green, blue


def decoded(content: Media, mode: Mode = "RGB", background: Colour = WHITE) -> Image.Image:
    """The pixels of an image, of an animated one its first frame's.

    Args:
        content: an encoded image in any format that Pillow reads.
        mode: RGB, or L for grey.
        background: what shows where the image is transparent.

    Raises:
        DataError: naming the image, if it cannot be read or decoded, or would be too large.
    """
    data = content.read()
    try:
        image = Image.open(io.BytesIO(data))
        _check_size(image, content)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _flattened(image, content, background).convert(mode)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(content) from None
    except Exception as error:  # decoders raise whatever broken bytes make them stumble over
        raise DataError(
            f"The image {_called(content)} cannot be decoded: {_reason(error)}"
        ) from None


def thumbnail(content: Media) -> str:
    """A small picture for a page, a data URI of a few kilobytes.

    A large image is made smaller; of a tiny one every pixel becomes a square of several, or nobody
    could see what it shows.

    Raises:
        DataError: as `decoded`.
    """
    image = decoded(content)
    times = THUMBNAIL // max(image.size)
    if times > 1:
        size = (image.width * times, image.height * times)
        image = image.resize(size, Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    packed = io.BytesIO()
    image.save(packed, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def _called(content: Media) -> str:
    return f"'{content.name if content.data is not None else content.address}'"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is in no image format that is known"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _check_size(image: Image.Image, content: Media) -> None:
    """Refuse what Pillow only warns of: a small file that would fill the memory."""
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(content)


def _too_large(content: Media) -> DataError:
    return DataError(
        f"The image {_called(content)} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: it may be "
        "a decompression bomb. Scale it down."
    )


def _flattened(image: Image.Image, content: Media, background: Colour) -> Image.Image:
    """Without transparency, and with at most 8 bits a channel."""
    if image.mode == "F":
        raise DataError(
            f"The image {_called(content)} has floating-point pixels, whose range is not known. "
            "Convert it to 8 or 16 bits."
        )
    if image.mode.startswith("I"):  # 16-bit grey, some formats' in 32 bits
        pixels = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF)
        return Image.fromarray((pixels >> 8).astype(np.uint8))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image


class PictureReader:
    """Images to pixels of one size, `(n, C, size, size)`, normalised.

    Args:
        size: height and width; images of another size are resized (bilinear), not cropped.
        mode: RGB (C = 3), or L for grey (C = 1).
        background: what shows where an image is transparent.
        invert: ink becomes 1 and paper 0.
        mean, std: of the pixels, once in [0, 1] and inverted, one for each channel.
    """

    def __init__(
        self,
        *,
        size: int,
        mode: Mode,
        background: Colour,
        invert: bool,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self._size, self._mode, self._background = size, mode, background
        self._invert = invert
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def decoded(self, content: Media) -> Image.Image:
        """One image as it is, of the right mode: what is augmented."""
        return decoded(content, self._mode, self._background)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The pixels of decoded images, `(n, C, size, size)` float32; n is at least 1."""
        raw = np.stack([np.asarray(self._resized(image)) for image in images])
        raw = raw[:, None] if raw.ndim == 3 else np.moveaxis(raw, -1, 1)
        pixels = torch.from_numpy(np.ascontiguousarray(raw)).float().div_(255)
        if self._invert:
            pixels = pixels.neg_().add_(1)
        return pixels.sub_(self._mean).div_(self._std)

    def _resized(self, image: Image.Image) -> Image.Image:
        shape = (self._size, self._size)
        return image if image.size == shape else image.resize(shape, Image.Resampling.BILINEAR)
