"""Values of options of losses, checked alike wherever they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ftray.errors import ConfigError

__all__ = ["checked_bool", "checked_number", "checked_options", "checked_positive", "is_finite"]


def checked_positive(key: str, value: Any) -> float:
    """A positive number, as it was given under `key` (`loss_options.temperature`).

    Raises:
        ConfigError: for anything else, infinity among it.
    """
    if not is_finite(value) or value <= 0:
        raise ConfigError(f"{key} = {value!r}: a positive number")
    return float(value)


def checked_number(key: str, value: Any) -> float:
    """A finite number.

    Raises:
        ConfigError: for anything else.
    """
    if not is_finite(value):
        raise ConfigError(f"{key} = {value!r}: a number")
    return float(value)


def checked_bool(key: str, value: Any) -> bool:
    """True or false.

    Raises:
        ConfigError: for anything else; the text "false" would count as true.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{key} = {value!r}: true or false")
    return value


def checked_options(key: str, value: Any) -> Mapping[str, Any]:
    """Options by name; None, or nothing else, stands for none.

    Raises:
        ConfigError: for what has no names.
    """
    given = value or {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{key} = {given!r}: options by name are expected, such as {{margin: 0.1}}"
        )
    return given


def is_finite(value: Any) -> bool:
    """Whether a value is a number, and not infinite or NaN."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)
