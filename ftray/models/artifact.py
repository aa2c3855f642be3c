"""Artifacts: what a fit leaves to use.

A text artifact is a sentence-transformers folder, one of an image model or of CLIP a transformers
folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftray.models.base import Encoder
from ftray.models.kinds import FACTS
from ftray.record.storage import Storage

__all__ = ["FOLDER", "save_encoder", "write_artifact"]

FOLDER = "artifact"


def save_encoder(encoder: Encoder, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write a model and its `ftray.json` into a folder, which is made if it is not there.

    Args:
        encoder: the weights to keep.
        folder: where to.
        facts: what `ftray.json` says of their origin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = encoder.save(folder)
    text = json.dumps({"format": 1, "kind": encoder.kind, **own, **(facts or {})}, indent=2)
    (folder / FACTS).write_text(text, encoding="utf-8")


def write_artifact(storage: Storage, encoder: Encoder, facts: dict[str, Any]) -> None:
    """Write `artifact/`: weights as safetensors, the model's files, and `ftray.json`.

    Args:
        storage: the run directory.
        encoder: the weights to keep.
        facts: what `ftray.json` says of their origin.
    """
    with tempfile.TemporaryDirectory(prefix="ftray-") as folder:
        save_encoder(encoder, Path(folder), facts)
        storage.delete(FOLDER)
        storage.upload(Path(folder), FOLDER)
