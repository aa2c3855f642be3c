"""`--column role=name`, of `ftray evaluate` and `ftray encode`."""

from __future__ import annotations

from collections.abc import Sequence

from ftray.errors import ConfigError

__all__ = ["parse_columns"]


def parse_columns(given: Sequence[str]) -> dict[str, str] | None:
    """Roles to column names; None if nothing was given."""
    columns: dict[str, str] = {}
    for text in given:
        role, separator, name = text.partition("=")
        if not (role and separator and name):
            raise ConfigError(f"--column {text}: 'role=name' is expected, as in --column item=body")
        if role in columns:
            raise ConfigError(f"--column {text}: {role} is '{columns[role]}' already")
        columns[role] = name
    return columns or None
