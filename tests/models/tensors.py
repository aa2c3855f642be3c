"""Training data of vectors and of point clouds, made in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ftray.data.readers import Records
from ftray.media import BlobBuilder, Media, Modality

__all__ = ["labelled", "media", "vector_bytes"]


def vector_bytes(vector: Any) -> bytes:
    """A vector as features are kept."""
    return np.asarray(vector, "<f4").tobytes()


def media(modality: Modality, contents: Sequence[bytes]) -> list[tuple[str, Media]]:
    """Items of a batch."""
    return [
        ("", Media(modality=modality, address=f"{number}.bin", data=data))
        for number, data in enumerate(contents)
    ]


def labelled(modality: Modality, contents: Sequence[bytes], labels: Sequence[str]) -> Records:
    """Labelled records, as readers make them."""
    blobs = BlobBuilder()
    items = [blobs.add(modality, data) for data in contents]
    return Records(
        kind="labelled",
        table=pa.table(
            {
                "item": pa.array(items, pa.large_string()),
                "label": pa.array(list(labels), pa.large_string()),
            }
        ),
        source="made here",
        notes=(),
        fingerprint="0" * 16,
        blobs=blobs.finish(),
    )
