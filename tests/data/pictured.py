"""Tiny images, meshes and data around them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ftray.data.readers import Records, read_records
from ftray.media import Media, contents

TEXT = frozenset(("text",))
IMAGE = frozenset(("image",))
BOTH = frozenset(("text", "image"))
POINTS = frozenset(("points",))
FEATURES = frozenset(("features",))


def pixels(number: int, size: int = 4) -> np.ndarray:
    """`(size, size, 3)`, different for each number."""
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)


def encoded(number: int, kind: str = "PNG") -> bytes:
    """A file of an image."""
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, kind)
    return file.getvalue()


def pictures(folder: Path, names: Sequence[str]) -> Path:
    """A folder with an image of each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return folder


def csv(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(records: Records) -> list[Any]:
    """The rows, addresses by the names of their files."""
    held = {
        role: [_name(one) for one in cells(records, role)] for role in records.table.column_names
    }
    return list(zip(*held.values(), strict=True))


def _name(one: Any) -> Any:
    return Path(one.address).name if isinstance(one, Media) else one


def cells(records: Records, role: str) -> list[Any]:
    """What the cells of a column stand for."""
    if role == "score":
        return list(records.table[role].to_pylist())
    return list(contents(records.table[role].to_pylist(), records.blobs))


def shown_pixels(media: Any) -> np.ndarray:
    """An image as an encoder would see it."""
    assert isinstance(media, Media) and media.modality == "image"
    return np.asarray(Image.open(io.BytesIO(media.read())).convert("RGB"))


def refused(source: Any, **options: Any) -> str:
    """The message of the error that reading ends in."""
    from ftray.errors import DataError

    try:
        read_records(source, **options)
    except DataError as error:
        return str(error)
    raise AssertionError("it was read")


def off(number: int) -> str:
    """A tetrahedron."""
    corners = np.random.default_rng(number).random((4, 3)).tolist()
    lines = ["OFF", "4 4 6", *(" ".join(map(str, corner)) for corner in corners)]
    lines += ["3 0 1 2", "3 0 1 3", "3 0 2 3", "3 1 2 3"]
    return "\n".join(lines) + "\n"


def options(**given: Any) -> Mapping[str, Any]:
    return {"csv_options": given}
