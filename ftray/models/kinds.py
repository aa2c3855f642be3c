"""What kind of model a folder or an id is, told by its files without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ftray.errors import ModelError
from ftray.media import Modality
from ftray.models.catalogue import MODELS, SCRATCH
from ftray.models.options import OPTIONS
from ftray.models.quiet import quiet

__all__ = ["FACTS", "MODEL_FILES", "TEXT_AND_IMAGE", "TOWER_NAMES"]
__all__ += ["couples_rows", "kind_of", "modalities_of_kind", "names_of_towers", "tower_called"]

FACTS = "ftray.json"
MODEL_FILES = ("modules.json", "config.json", FACTS)
_TWO_TOWERED = ("text_config", "vision_config")
_ENCODERS_OF_IMAGES = ("dinov3_convnext", "dinov3_vit", "pixio", "vit_mae")

TEXT_AND_IMAGE: frozenset[Modality] = frozenset({"text", "image"})
"""What models with a tower for each of the two take."""

TOWER_NAMES = {"clip-text": "text", "clip-vision": "image"}
"""Finetuner's names of towers, and what they are called here."""

_MODALITIES: dict[str, frozenset[Modality]] = {
    "text": frozenset({"text"}),
    "image": frozenset({"image"}),
    "convnet": frozenset({"image"}),
    "mlp": frozenset({"features"}),
    "pointnet": frozenset({"points"}),
    "clip": TEXT_AND_IMAGE,
    "two-towers": TEXT_AND_IMAGE,
}


def kind_of(place: str, *, ask_hub: bool = False) -> tuple[str | None, dict[str, Any]]:
    """The kind of a model, and what its `ftray.json` says.

    Args:
        place: as `locate_model` gives it.
        ask_hub: of a hub id that no registered model has, read its `config.json` (from the cache,
            or from the hub).

    Returns:
        A key of `options.OPTIONS`, or None where it is not known; and facts, which may be empty.
    """
    if place.startswith(SCRATCH):
        return MODELS[place.removeprefix(SCRATCH)].kind, {}
    folder = Path(place)
    if "://" in place:
        return None, {}
    if folder.is_dir():
        return _kind_of_folder(folder)
    registered = (model.kind for model in MODELS.values() if model.hub_id == place)
    kind = next(registered, None)
    return (kind or (_kind_on_hub(place) if ask_hub else None)), {}


def _kind_of_folder(folder: Path) -> tuple[str | None, dict[str, Any]]:
    facts = _json(folder / FACTS)
    if "kind" in facts:
        if facts["kind"] not in OPTIONS:
            raise ModelError(
                f"'{folder}' holds a model of the kind '{facts['kind']}', which this ftray does "
                f"not know. Known: {', '.join(OPTIONS)}"
            )
        return str(facts["kind"]), facts
    if (folder / "modules.json").exists():
        return "text", facts
    return _kind_of_config(_json(folder / "config.json")), facts


def _kind_of_config(config: Mapping[str, Any]) -> str:
    if all(name in config for name in _TWO_TOWERED):
        return "clip"
    return "image" if config.get("model_type") in _vision_types() else "text"


@cache
def _vision_types() -> frozenset[str]:
    """Types of models that classify images, are a tower for images, or only encode them."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
    )
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES as MODELS

    towers = {name for name in MODELS if name.endswith("_vision_model")}
    return frozenset({*CLASSIFIERS, *towers, *_ENCODERS_OF_IMAGES})


def _kind_on_hub(place: str) -> str | None:
    """None where the hub cannot tell: then loading it as a text model will say why."""
    from huggingface_hub import hf_hub_download

    with quiet():
        try:
            kind = _kind_of_config(_json(Path(hf_hub_download(place, "config.json"))))
        except Exception:
            return None
        if kind == "text":
            return kind
        try:  # a text model whose first module happens to have such a configuration
            hf_hub_download(place, "modules.json")
        except Exception:
            return kind
    return "text"


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def modalities_of_kind(kind: str, options: Mapping[str, Any]) -> frozenset[Modality] | None:
    """What a kind of model takes; None where its data decide (a module of the user's)."""
    if kind == "module":
        given = options.get("modality")
        return None if given is None else frozenset({given})
    return _MODALITIES.get(kind)


def couples_rows(kind: str | None, options: Mapping[str, Any]) -> bool:
    """Whether the rows of a step surely depend on each other: by batch normalisation.

    Where the answer is no, the model itself may still say otherwise.
    """
    return kind == "pointnet" or (kind == "convnet" and options.get("norm", "batch") == "batch")


def tower_called(name: str) -> str:
    """The tower that a name means; a name that is not Finetuner's is one of ours, or of none."""
    return TOWER_NAMES.get(name, name)


def names_of_towers(towers: Sequence[str]) -> list[str]:
    """Whatever these towers may be called."""
    return [*towers, *(name for name, tower in TOWER_NAMES.items() if tower in towers)]
