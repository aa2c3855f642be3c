"""What there is to choose from: models with a short name, and their options."""

from __future__ import annotations

import types
import typing
from typing import Any

from pydantic.fields import FieldInfo

from ftray.errors import ConfigError, ModelError, nearest
from ftray.models.catalogue import ALIASES, MODELS, RegisteredModel
from ftray.models.kinds import kind_of
from ftray.models.options import OPTIONS
from ftray.models.registry import locate_model

__all__ = ["TASKS", "listed_models", "listed_options"]

TASKS = tuple(dict.fromkeys(model.task for model in MODELS.values()))


def listed_models(task: str | None = None) -> list[dict[str, Any]]:
    """The models of a task, or all: name, task, output_dim, architecture, description.

    Raises:
        ConfigError: for a task that no model has.
    """
    if task is not None and task not in TASKS:
        raise ConfigError(f"There is no task '{task}'.{nearest(task, TASKS)}")
    chosen = {name: model for name, model in MODELS.items() if task in (None, model.task)}
    return [_row(name, model) for name, model in chosen.items()]


def _row(name: str, model: RegisteredModel) -> dict[str, Any]:
    return {
        "name": name,
        "task": model.task,
        "output_dim": model.dim,
        "architecture": model.architecture,
        "description": model.description,
        "hub_id": model.hub_id,
        "licence": model.licence,
    }


def listed_options(name: str) -> list[dict[str, Any]]:
    """The options of a model: name, type, required, default, description.

    Args:
        name: a registry name, a folder, or a hub id that is registered.

    Raises:
        ModelError: if there is no such model, or if it takes loading it to know.
    """
    kind, facts = kind_of(locate_model(ALIASES.get(name, name)))
    kept = facts.get("options", {})
    if kind is None:
        raise ModelError(
            f"The options of '{name}' are known once it is loaded. Those of registered models: "
            f"{nearest(name, MODELS).strip()}"
        )
    return [
        {
            "name": option,
            "type": _type_name(field.annotation),
            "required": field.is_required(),
            "default": kept.get(option, _plain(field)),
            "description": field.description or "",
        }
        for option, field in OPTIONS[kind].model_fields.items()
    ]


def _plain(field: FieldInfo) -> Any:
    """The default, as YAML would have it."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return list(value) if isinstance(value, tuple) else value


def _type_name(annotation: Any) -> str:
    """A type as a user would say it."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(parts[0])
    if origin is typing.Literal:
        return " | ".join(repr(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(part) for part in parts)
    if annotation is type(None):
        return "None"
    if origin is tuple:
        return f"list of {_type_name(parts[0])}"
    return "dict" if origin is dict else getattr(annotation, "__name__", str(annotation))
