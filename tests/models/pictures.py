"""Images for tests, as `Media`."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
from PIL import Image

from ftray.media import Media

__all__ = ["encoded", "picture", "random_pictures"]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(image: Image.Image | bytes, form: str = "PNG", **options: Any) -> Media:
    data = image if isinstance(image, bytes) else encoded(image, form, **options)
    return Media(modality="image", address="sha256:" + hashlib.sha256(data).hexdigest(), data=data)


def random_pictures(n: int, size: tuple[int, int] = (48, 40), seed: int = 0) -> list[Media]:
    """Smooth coloured pictures, each of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return [picture(Image.fromarray(one).resize(size, Image.Resampling.BICUBIC)) for one in coarse]
