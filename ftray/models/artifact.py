"""Artifacts: what a fit leaves to use.

A text artifact is a sentence-transformers folder, one of an image model or of CLIP a transformers
folder.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ftray.errors import FtrayError, ModelError, StorageError
from ftray.models.base import Encoder
from ftray.models.catalogue import ALIASES, MODELS, SCRATCH
from ftray.models.kinds import FACTS
from ftray.models.lora import merged, save_adapters
from ftray.models.registry import locate_model
from ftray.record.storage import Storage

__all__ = ["FOLDER", "public_name", "save_encoder", "write_artifact"]

FOLDER = "artifact"


def save_encoder(encoder: Encoder, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write a model and its `ftray.json` into a folder, which is made if it is not there.

    Args:
        encoder: the weights to keep.
        folder: where to.
        facts: what `ftray.json` says of their origin. Adapters belong to `began_with`, else to
            `base_model`, else to the model of the encoder's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with merged(encoder):
        own = encoder.save(folder)
    if encoder.adapters:
        known = {"base_model": encoder.name, **(facts or {})}
        base = known.get("began_with") or public_name(str(known["base_model"]))
        save_adapters(encoder, folder, base=str(base))
    if head := encoder.save_head(folder):
        own["head"] = head
    if encoder.caveat:
        own["note"] = encoder.caveat
    made = {"kind": encoder.kind, **own, "fingerprint": _fingerprint(folder)}
    text = json.dumps({"format": 1, **made, **(facts or {})}, indent=2)
    (folder / FACTS).write_text(text, encoding="utf-8")


def public_name(name: str, place: str | None = None) -> str:
    """What a model's weights can be loaded by outside of ftray: a hub id, else where they are.

    Args:
        name: what the user called the model.
        place: where the weights are; None = where the name says.
    """
    try:
        named = locate_model(name)
    except FtrayError:
        return place or name
    folder = name not in MODELS and Path(name).expanduser().is_dir()
    known = None if folder else MODELS.get(ALIASES.get(name, name))
    if known is not None and known.hub_id is not None and place in (None, named):
        return known.hub_id
    return (place or named).removeprefix(SCRATCH)


def _fingerprint(folder: Path) -> str:
    """Of all weights in a folder, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def write_artifact(
    storage: Storage, encoder: Encoder, facts: dict[str, Any], *, to_onnx: bool = False
) -> None:
    """Write `artifact/`: weights as safetensors, the model's files, and `ftray.json`.

    Args:
        storage: the run directory.
        encoder: the weights to keep.
        facts: what `ftray.json` says of their origin.
        to_onnx: whether `onnx/` is to be in it; see `ftray.models.onnx_export`.

    Raises:
        ModelError: if that fails; the artifact is there without it.
    """
    with tempfile.TemporaryDirectory(prefix="ftray-") as folder:
        save_encoder(encoder, Path(folder), facts)
        storage.delete(FOLDER)
        storage.upload(Path(folder), FOLDER)
        if to_onnx:
            _add_graphs(storage, Path(folder), encoder.name)


def _add_graphs(storage: Storage, folder: Path, name: str) -> None:
    from ftray.models.onnx import FOLDER as GRAPHS
    from ftray.models.onnx_export import export_folder

    try:
        export_folder(folder, name)
        storage.upload(folder / GRAPHS, f"{FOLDER}/{GRAPHS}")
    except (ModelError, StorageError, OSError) as error:  # such as a disk that is full
        with suppress(StorageError, OSError):
            storage.delete(f"{FOLDER}/{GRAPHS}")  # a part of them
        raise ModelError(
            f"to_onnx: {error}. The artifact is there without it: {storage.path(FOLDER)}"
        ) from error
