"""The width of a model's embeddings, told by its files and options without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftray.models.catalogue import MODELS
from ftray.models.kinds import kind_of
from ftray.models.options import OPTIONS
from ftray.models.surgery import Surgery

__all__ = ["ends_normalised", "known_width"]

SAME_WIDTH = ("Dropout", "Normalize")
"""Modules of sentence-transformers that leave the width as it is."""


def known_width(place: str, options: Mapping[str, Any], surgery: Surgery) -> int | None:
    """The width D that embeddings will have; None where it takes the model itself to know.

    Args:
        place: as `locate_model` gives it.
        options: of the model, with those that the data decide.
        surgery: what is done to the model before it is trained.
    """
    if surgery.output_dim is not None:
        return surgery.output_dim
    kind, facts = kind_of(place)
    if "head" in facts:
        return _number(facts["head"], "dim")
    if kind is None:
        return None
    given = {**facts.get("options", {}), **options}
    if "output_dim" in OPTIONS[kind].model_fields:
        default = OPTIONS[kind].model_fields["output_dim"].default
        return _number({"dim": given.get("output_dim", default)}, "dim")
    if kind == "mlp":
        sizes = given.get("hidden_sizes")
        return sizes[-1] if sizes else _number(given, "input_size")
    if kind == "module":
        return _number(given, "embedding_dim")
    registered = (model.dim for model in MODELS.values() if model.hub_id == place)
    if kind == "clip":
        config = _read(Path(place, "config.json"))
        return next(registered, None) or _number(config, "projection_dim")
    if kind == "text":
        return next(registered, None) or _width_of_texts(Path(place), given)
    return None


def _width_of_texts(folder: Path, options: Mapping[str, Any]) -> int | None:
    """That of a folder of sentence-transformers, or of transformers, whose tokens are pooled."""
    modules = _modules(folder)
    if not modules:
        return _number(_read(folder / "config.json"), "hidden_size")
    wide = [module for module in modules if module[0] not in SAME_WIDTH]
    kind, config = wide[-1] if wide else ("", {})
    if kind == "Dense":
        return _number(config, "out_features")
    if kind not in ("Pooling", "GeMPooling"):
        return None
    width = _number(config, "embedding_dimension") or _number(config, "word_embedding_dimension")
    modes = config.get("pooling_mode", "mean")
    several = not isinstance(modes, str) or sum(
        value is True for key, value in config.items() if key.startswith("pooling_mode_")
    ) > 1  # fmt: skip
    return None if several and options.get("pooling", "auto") == "auto" else width


def ends_normalised(place: str) -> bool:
    """Whether the embeddings surely have length 1: a text model whose last module sees to it.

    A head that is attached comes before that module.
    """
    modules = _modules(Path(place))
    return bool(modules) and modules[-1][0] == "Normalize"


def _modules(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The kind and the configuration of each module of a sentence-transformers folder."""
    found = _read(folder / "modules.json")
    parts = found if isinstance(found, list) else []
    return [
        (
            str(part.get("type")).rsplit(".", 1)[-1],
            _read(folder / str(part.get("path")) / "config.json"),
        )
        for part in parts
    ]


def _number(facts: Any, key: str) -> int | None:
    value = facts.get(key) if isinstance(facts, Mapping) else None
    return value if isinstance(value, int) else None


def _read(file: Path) -> Any:
    """What a JSON file holds; nothing, where it is missing or damaged: loading will say so."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
