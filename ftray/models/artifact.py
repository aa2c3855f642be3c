"""Artifacts: what a fit leaves to use.

A text artifact is a sentence-transformers folder, one of an image model or of CLIP a transformers
folder.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ftray.models.base import Encoder
from ftray.record.storage import Storage

__all__ = ["FOLDER", "write_artifact"]

FOLDER = "artifact"


def write_artifact(storage: Storage, encoder: Encoder, facts: dict[str, Any]) -> None:
    """Write `artifact/`: weights as safetensors, the model's files, and `ftray.json`.

    Args:
        storage: the run directory.
        encoder: the weights to keep.
        facts: what `ftray.json` says of their origin.
    """
    with tempfile.TemporaryDirectory(prefix="ftray-") as folder:
        own = encoder.save(Path(folder))
        text = json.dumps({"format": 1, "kind": encoder.kind, **own, **facts}, indent=2)
        (Path(folder) / "ftray.json").write_text(text, encoding="utf-8")
        storage.delete(FOLDER)
        storage.upload(Path(folder), FOLDER)
