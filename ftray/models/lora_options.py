"""Options of low-rank adapters, and whether they say what can be. Light: no torch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ftray.errors import ConfigError, nearest

__all__ = ["LoraOptions", "Names", "check_lora"]

KINDS = ("text", "image", "clip", "two-towers")
"""Kinds of models that are made of models of transformers."""

Names = list[str] | str | None


class LoraOptions(BaseModel):
    """Those options of peft's `LoraConfig` that keep the model one that can be merged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(8, ge=1, description="Rank of the adapters.")
    lora_alpha: float = Field(8, gt=0, description="The adapters count lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Of what adapters are given.")
    target_modules: Names = Field(
        None,
        description="Layers that get adapters: ends of their names, one regular expression, or "
        "'all-linear'; None = as peft knows the architecture (often query and value), else "
        "all-linear.",
    )
    exclude_modules: Names = Field(None, description="Layers that get none.")
    layers_to_transform: list[int] | int | None = Field(
        None, description="Numbers of the layers that get adapters."
    )
    layers_pattern: list[str] | str | None = Field(
        None, description="What the list of layers is called, where that is not found."
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="Other ranks, by names of layers."
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="Other values of lora_alpha, by names of layers."
    )
    use_rslora: bool = Field(
        False, description="lora_alpha / sqrt(r) in place of lora_alpha / r (Kalajdzievski 2023)."
    )
    init_lora_weights: Literal[True, "gaussian"] = Field(
        True, description="How A is drawn: uniformly, as linear layers are, or from a Gaussian."
    )

    @field_validator("r", "lora_alpha", "lora_dropout", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("a number is expected, not yes or no")
        return value

    @field_validator("target_modules", "layers_to_transform")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("nothing is chosen; left out, all that is usual is")
        return value

    @field_validator("target_modules", "exclude_modules", "layers_pattern")
    @classmethod
    def _expression(cls, value: Names, info: ValidationInfo) -> Names:
        names = [value] if isinstance(value, str) else value or []
        for name in names if isinstance(value, str) or info.field_name == "layers_pattern" else ():
            _check_expression(name)
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _of_layers(cls, value: dict[str, float]) -> dict[str, float]:
        for name, number in value.items():
            _check_expression(name)
            if number <= 0:
                raise ValueError(f"more than 0 is expected for '{name}'")
        return value

    @field_validator("layers_to_transform")
    @classmethod
    def _beside_names(cls, value: Any, info: ValidationInfo) -> Any:
        target = info.data.get("target_modules")
        if value is not None and isinstance(target, str):
            raise ValueError(
                f"it goes with a list of names, and target_modules is the text '{target}'"
            )
        return value

    @field_validator("layers_pattern")
    @classmethod
    def _beside_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("layers_to_transform") is None:
            raise ValueError("it says where layers_to_transform counts, which is left out")
        return value


def _check_expression(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is no regular expression: {error}") from None


def check_lora(options: Mapping[str, Any], kind: str | None, model: str) -> LoraOptions:
    """The options, refused as far as it is known without the model that they do not fit.

    Args:
        options: as the user gave them.
        kind: of the model, None where it is not known.
        model: what the user called it.

    Raises:
        ConfigError: for an option or a value that there is not, a kind of model that has no model
            of transformers in it, or where peft is missing.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("lora needs peft, which is not installed. Run: pip install 'ftray[lora]'")
    if kind is not None and kind not in KINDS:
        raise ConfigError(
            f"lora puts adapters into models of transformers, and '{model}' is none: leave lora out"
        )
    try:
        return LoraOptions.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            there = nearest(option, LoraOptions.model_fields)
            raise ConfigError(f"lora has no option '{option}'.{there}") from None
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"lora.{option} = {options[option]!r}: {said[:1].lower()}{said[1:]}"
        ) from None
