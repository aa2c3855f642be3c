"""The signature of `fit`, with every field of `FitConfig`, for help() and for notebooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ftray.config import FitConfig
from ftray.run import Run

__all__ = ["signature_of"]


class _Needed:
    """Stands for the default of a field that has none."""

    def __repr__(self) -> str:
        return "<needed>"


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """A function's signature with the fields of `FitConfig` in the place of its `**fields`."""
    *own, fields = inspect.signature(function).parameters.values()
    assert fields.kind is fields.VAR_KEYWORD
    places = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_Needed()
            if field.is_required()
            else field.get_default(call_default_factory=True),
            annotation=field.annotation,
        )
        for name, field in FitConfig.model_fields.items()
    ]
    config = [parameter for parameter in own if parameter.kind is parameter.POSITIONAL_ONLY]
    options = [parameter for parameter in own if parameter.kind is not parameter.POSITIONAL_ONLY]
    return inspect.Signature([*config, *places, *options], return_annotation=Run)
