"""Pairs of a text and an image, made in memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from PIL import Image

from ftray.data.readers import Records
from ftray.media import BlobBuilder
from tests.models.pictures import encoded

__all__ = ["captioned", "pair_records", "squares"]

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (230, 210, 40),
    "black": (20, 20, 20),
    "purple": (150, 40, 170),
}
PLACES = {"left": (2, 10), "right": (20, 10), "up": (11, 2), "down": (11, 20)}


def squares(seed: int = 0) -> list[tuple[str, bytes]]:
    """A text and a picture of 32 x 32 for each colour and place: 24 pairs."""
    rng = np.random.default_rng(seed)
    found = []
    for colour, pixels in COLOURS.items():
        for place, (x, y) in PLACES.items():
            noise = rng.integers(235, 256, (32, 32, 3), dtype=np.uint8)
            image = Image.fromarray(noise)
            image.paste(pixels, (x, y, x + 10, y + 10))
            found.append((f"{colour} {place}", encoded(image)))
    return found


def pair_records(pairs: list[tuple[str, bytes]], *, image_first: bool = False) -> Records:
    """Records of such pairs: the text is the query, or the image is."""
    blobs = BlobBuilder()
    texts = pa.array([text for text, _ in pairs], pa.large_string())
    images = pa.array([blobs.add("image", data) for _, data in pairs], pa.large_string())
    columns = [images, texts] if image_first else [texts, images]
    return Records(
        kind="pairs",
        table=pa.table(dict(zip(("query", "document"), columns, strict=True))),
        source="squares",
        notes=(),
        fingerprint="5" * 16,
        blobs=blobs.finish(),
    )


def captioned(*, image_first: bool = False) -> Records:
    """All the squares."""
    return pair_records(squares(), image_first=image_first)
