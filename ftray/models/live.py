"""A model object of the user's: copied to a folder, never trained or changed itself."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ftray.errors import ModelError
from ftray.models.module import ModuleParts, keep_module
from ftray.models.quiet import quiet

__all__ = ["LiveModel", "copy_model", "copy_module", "copy_object"]


@dataclass(frozen=True, kw_only=True)
class LiveModel:
    """What is known of a model object, and where its copy is.

    Attributes:
        name: the last part of the name it was loaded by, or "model".
        fingerprint: 16 hex digits of the SHA-256 of its weights and of what else its embeddings
            depend on: modules and their options, prompts, which weights are frozen.
        folder: the copy, a folder of that name; `load_encoder` loads it.
        module: of a module that is no `SentenceTransformer`, the module itself and its functions.
    """

    name: str
    fingerprint: str
    folder: Path
    module: ModuleParts | None = None

    @property
    def note(self) -> str:
        """What the log says of it."""
        what = "a SentenceTransformer" if self.module is None else f"a {self.name}"
        return f"model: {what} object, fingerprint {self.fingerprint}"


def copy_object(
    model: Any, parent: Path, preprocess_fn: Any = None, collate_fn: Any = None
) -> LiveModel:
    """Write a `SentenceTransformer`, or another module with its functions, below `parent`.

    Raises:
        ModelError: if it cannot be written, or would be another model when it is loaded again.
    """
    packages = sys.modules.get("sentence_transformers")
    if packages is not None and isinstance(model, packages.SentenceTransformer):
        return copy_model(model, parent)
    parts = ModuleParts(module=model, preprocess_fn=preprocess_fn, collate_fn=collate_fn)
    return copy_module(parts, parent)


def copy_module(parts: ModuleParts, parent: Path) -> LiveModel:
    """Write the weights of a module below `parent`, as safetensors.

    Raises:
        ModelError: if they cannot be written.
    """
    folder = parent / parts.name
    fingerprint = keep_module(parts, folder)
    return LiveModel(name=parts.name, fingerprint=fingerprint, folder=folder, module=parts)


def copy_model(model: Any, parent: Path) -> LiveModel:
    """Write a `SentenceTransformer` below `parent`; weights as safetensors.

    Raises:
        ModelError: if it cannot be written, or would be another model when it is loaded again.
    """
    if model.truncate_dim is not None:
        raise ModelError(
            f"The given SentenceTransformer has truncate_dim = {model.truncate_dim}, but a fit "
            "trains whole embeddings: set it to None, and truncate when you use the artifact"
        )
    name = _name(model)
    frozen = [n for n, parameter in model.named_parameters() if not parameter.requires_grad]
    fingerprint = _fingerprint(model, frozen)
    folder = parent / name
    try:
        with quiet():
            model.save(str(folder), create_model_card=False, safe_serialization=True)
        facts = {"format": 1, "kind": "text", "fingerprint": fingerprint, "frozen": frozen}
        (folder / "ftray.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
        if card := getattr(model, "_model_card_text", None):  # as it was loaded: its licence is in
            (folder / "README.md").write_text(card, encoding="utf-8")
    except Exception as error:
        raise ModelError(f"The given SentenceTransformer cannot be written: {error}") from error
    return LiveModel(name=name, fingerprint=fingerprint, folder=folder)


def _name(model: Any) -> str:
    """The base model's name as far as the object knows it."""
    path = getattr(getattr(model[0], "config", None), "_name_or_path", None) or ""
    last = re.sub(r"[^\w.-]", "_", str(path).rstrip("/").rsplit("/", 1)[-1])
    return last if last.strip(".") else "model"


def _fingerprint(model: Any, frozen: list[str]) -> str:
    parts = [_shape(part) for part in model]
    length = getattr(model, "max_seq_length", None)
    shape = [parts, length, model.prompts, model.default_prompt_name, frozen]
    text = json.dumps(shape, default=lambda value: type(value).__qualname__, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # as bytes: numpy knows no bfloat16
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy())
    return digest.hexdigest()[:16]


def _shape(part: Any) -> list[Any]:
    """A module's class and options; of one with routes, those of all modules of its routes."""
    routes = getattr(part, "sub_modules", {})
    inside = [[route, *map(_shape, parts)] for route, parts in routes.items()]
    return [type(part).__name__, _options(part), *inside]


def _options(part: Any) -> Any:
    given = getattr(part, "get_config_dict", None)
    options = given() if callable(given) else {}
    # the mappings of a Router have tuples for keys, which JSON does not know
    mappings = options.get("route_mappings")
    return (
        options | {"route_mappings": sorted(map(repr, mappings.items()))} if mappings else options
    )
