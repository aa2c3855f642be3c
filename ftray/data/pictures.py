"""Images as they lie in data: what bytes and files are, pixels to PNG, what cannot be decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ftray.errors import DataError
from ftray.media import Media, Modality

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "POINT_SUFFIXES",
    "array_as_png",
    "broken",
    "image_as_png",
    "modality_of_address",
    "modality_of_bytes",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
POINT_SUFFIXES = (".off", ".npy")

CHECKED_FILES = 20_000
"""So many images are opened before training; of more, so many from all over the data."""

DECODED_BYTES = 64 << 20
"""Images that are smaller together are decoded before training, and not only opened."""

_STARTS: tuple[tuple[bytes, Modality], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"BM", "image"),
    (b"II*\0", "image"),
    (b"MM\0*", "image"),
    (b"\x93NUMPY", "features"),  # an array of any kind
    (b"OFF", "points"),
)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
_THREADS = 4


def modality_of_bytes(start: bytes) -> Modality | None:
    """What bytes are by their first 12; `features` stands for any array of numpy's."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "image"
    return next((modality for known, modality in _STARTS if start.startswith(known)), None)


def modality_of_address(address: str, modalities: frozenset[Modality] | None) -> Modality | None:
    """What lies at an address, by its ending, or else as the only thing the model takes.

    None where neither tells. A .npy file holds an array of any kind.
    """
    things = (modalities or frozenset()) - {"text"}
    path = urlsplit(address).path if "://" in address[:12] else address
    suffix = PurePosixPath(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES or address[:5].lower() == "data:":
        return "image"
    if suffix in POINT_SUFFIXES and (suffix != ".npy" or len(things) != 1):
        return "points"
    return next(iter(things)) if len(things) == 1 else None


def image_as_png(image: Image, place: str) -> bytes:
    """An image of PIL's as a file, turned as its EXIF data says.

    Nothing is lost of up to 16 bits a channel; grey of 32 bits is cut off at 65,535.

    Raises:
        DataError: for pixels that are floats, and for an image that cannot be decoded.
    """
    from PIL import ImageOps

    if image.mode == "F":
        raise DataError(
            f"{place}: an image of PIL's with floating-point pixels (mode F), whose range is not "
            "known. Convert it to 8 or 16 bits, or give an array of floats from 0 to 1."
        )
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = _grey_of_16_bits(upright)
        elif upright.mode not in _PNG_MODES:
            upright = upright.convert("RGBA" if "A" in upright.getbands() else "RGB")
        file = io.BytesIO()
        upright.save(file, "PNG", compress_level=1)
    except Exception as error:  # decoders raise whatever broken bytes make them stumble over
        reason = str(error) or type(error).__name__
        raise DataError(f"{place}: an image of PIL's that cannot be decoded ({reason}).") from None
    return file.getvalue()


def _grey_of_16_bits(image: Image) -> Image:
    """Deep grey of any byte order, which PIL would cut off at 255, as PNG holds it."""
    from PIL import Image as images

    pixels = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF).astype(np.uint16)
    return images.fromarray(pixels)


def array_as_png(array: npt.NDArray[Any], place: str) -> tuple[bytes, bool]:
    """An array of pixels as a PNG file.

    Args:
        array: `(H, W)`, `(H, W, C)`, or `(C, H, W)` as torch has it, with 1, 3 or 4 channels;
            uint8, whole numbers from 0 to 255, truth values, or floats from 0 to 1.
        place: where it stands, for messages.

    Returns:
        The file, and whether the pixels were floats.

    Raises:
        DataError: for any other shape or value.
    """
    from PIL import Image

    pixels = _channels_last(array, place)
    scaled = pixels.dtype.kind == "f"
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif scaled:
        if not np.isfinite(pixels).all():
            raise DataError(f"{place}: an image with a pixel that is not finite.")
        if pixels.min() < 0 or pixels.max() > 1:
            span = f"from {pixels.min():g} to {pixels.max():g}"
            raise DataError(f"{place}: an image of floats {span}. Valid: from 0 to 1, or uint8.")
        pixels = np.rint(pixels * 255)
    elif pixels.dtype.kind not in "ui" or pixels.min() < 0 or pixels.max() > 255:
        raise DataError(
            f"{place}: an image of {array.dtype}. Valid: whole numbers from 0 to 255, or floats "
            "from 0 to 1."
        )
    return image_as_png(Image.fromarray(pixels.astype(np.uint8)), place), scaled


def _channels_last(array: npt.NDArray[Any], place: str) -> npt.NDArray[Any]:
    """`(H, W)` or `(H, W, 3 or 4)`."""
    pixels = array
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size and (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        return np.ascontiguousarray(pixels)
    raise DataError(
        f"{place}: an array of shape {array.shape} is no image. Valid: height x width, with 1, 3 "
        "or 4 channels last or first."
    )


def broken(images: Sequence[Media], sizes: Sequence[int]) -> tuple[int, str] | None:
    """The first image that cannot be read, and why.

    All are decoded if they are small together (`DECODED_BYTES`); else opened, which tells the size
    and finds what is no image; of more than `CHECKED_FILES` only so many.

    Args:
        images: distinct images.
        sizes: their bytes.
    """
    from PIL import Image

    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), CHECKED_FILES)).astype(int))
    decode = sum(sizes) <= DECODED_BYTES
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        # A picture of so many pixels may be small as a file and fill the memory of every worker.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        reasons = pool.map(_reason, (images[i] for i in chosen), repeat(decode))
        for number, reason in zip(chosen.tolist(), reasons, strict=True):
            if reason is not None:
                pool.shutdown(cancel_futures=True)
                return number, reason
    return None


def _reason(media: Media, decode: bool) -> str | None:
    """Why an image cannot be read; None if it can."""
    from PIL import Image, UnidentifiedImageError

    try:
        file = io.BytesIO(media.data) if media.data is not None else media.address
        with Image.open(file) as image:
            if decode:
                image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels"
    except UnidentifiedImageError:
        return "is no image that can be read"
    except Exception as error:  # damaged files raise whatever their decoder stumbles over
        return f"is damaged ({str(error) or type(error).__name__})"
    return None
