"""Models with several routes: sentence-transformers' `Router`, and what else goes by the task.

A route is a stack of modules of its own: queries may go through a small encoder, and documents
through a large one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ftray.errors import ModelError
from ftray.models.kinds import kind_of

__all__ = ["ROLES", "check_widths", "local_towers", "local_type", "path_of", "takes_task"]

ROLES = ("query", "document")
"""The roles of texts; sentence-transformers calls them tasks."""

LENGTHS = ("query_length", "document_length")


def _router() -> Any:
    from sentence_transformers.base.modules import Router  # seconds, and whoever asks has a model

    return Router


def takes_task(model: Any) -> bool:
    """Whether a `SentenceTransformer` encodes a text differently for another task."""
    router = _router()
    return any(
        isinstance(part, router) or any(getattr(part, name, None) for name in LENGTHS)
        for part in model.modules()
    )


def path_of(model: Any, role: str, name: str) -> list[nn.Module]:
    """The modules that a text goes through, in order.

    Args:
        model: a `SentenceTransformer`.
        role: "query", "document", or "": the default route, as of `model.encode`.
        name: of the model, for messages.

    Raises:
        ModelError: if there is no route for the role.
    """
    return list(_path(model, role, name))


def _path(parts: Iterable[nn.Module], role: str, name: str) -> Iterable[nn.Module]:
    router = _router()
    for part in parts:
        if not isinstance(part, router):
            yield part
            continue
        try:
            # the rules of sentence-transformers itself, which has no public name for them
            route = part._resolve_route(task=role or None, modality="text")
        except ValueError:
            what = f"the role '{role}'" if role else "texts without a role, as labelled data has"
            raise ModelError(
                f"'{name}' has no route for {what}: its routes are "
                f"{', '.join(repr(route) for route in part.sub_modules)}"
            ) from None
        yield from _path(part.sub_modules[route], role, name)


def check_widths(model: Any, name: str) -> None:
    """Refuse a model whose routes cannot be compared.

    Raises:
        ModelError: for embeddings of two widths, or a role without a route.
    """
    widths = {role: _width(path_of(model, role, name)) for role in ROLES}
    if len(set(widths.values())) > 1:
        raise ModelError(
            f"The embeddings of '{name}' have the width {widths['query']} for queries and "
            f"{widths['document']} for documents: they cannot be compared"
        )


def _width(path: list[nn.Module]) -> int | None:
    for part in reversed(path):
        width = getattr(part, "get_embedding_dimension", None)
        if callable(width) and (found := width()) is not None:
            return int(found)
    return None


def local_towers(place: str, options: Mapping[str, Any] | None = None) -> tuple[str, ...] | None:
    """`Encoder.towers` of a model, told without loading it.

    None where that takes the model itself: a hub id, a URI, a model with routes, or a damaged one.
    """
    kind, _ = kind_of(place)
    if kind not in ("text", None):
        return ("text", "image") if kind in ("clip", "two-towers") else ()
    try:
        return _towers_of(place, (options or {}).get("prompts") or {})
    except (ValueError, TypeError, KeyError, AttributeError):  # loading it will say what is wrong
        return None


def _towers_of(place: str, asked: Mapping[str, str]) -> tuple[str, ...] | None:
    folder = Path(place)
    if "://" in place or not folder.is_dir():
        return None
    modules = _json(folder / "modules.json") or []
    first = folder / str(modules[0].get("path", "")) if modules else folder
    options = _json(first / "sentence_bert_config.json") or {}
    if any(part["type"].rsplit(".", 1)[-1] in ("Router", "Asym") for part in modules):
        return None
    if any(options.get(name) for name in LENGTHS):
        return None
    config = _json(folder / "config_sentence_transformers.json") or {}
    prompts, default = {**(config.get("prompts") or {}), **asked}, config.get("default_prompt_name")
    query, document = (prompts.get(role if role in prompts else default) or "" for role in ROLES)
    return ROLES if query != document else ()


def local_type(place: str) -> str | None:
    """The `model_type` of transformers of a text model, told without loading it.

    None where that takes the model itself: a hub id, a URI, a model with routes, or a damaged one.
    """
    folder = Path(place)
    try:
        modules = _json(folder / "modules.json") or [{}]
        config = _json(folder / str(modules[0].get("path", "")) / "config.json") or {}
        found = config.get("model_type")
    except (ValueError, TypeError, KeyError, AttributeError):  # loading it will say what is wrong
        return None
    return found if isinstance(found, str) else None


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
