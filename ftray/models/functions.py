"""The functions that come with a module of the user's, checked before anything is loaded."""

from __future__ import annotations

from typing import Any

from ftray.errors import ConfigError

__all__ = ["check_functions"]


def check_functions(preprocess_fn: Any, collate_fn: Any, *, has_module: bool) -> None:
    """Refuse functions that are none, or that nothing would call.

    Raises:
        ConfigError: naming the setting.
    """
    for what, given in (("preprocess_fn", preprocess_fn), ("collate_fn", collate_fn)):
        if given is None:
            continue
        if not callable(given):
            raise ConfigError(f"{what} = {given!r}: a function is expected")
        if not has_module:
            raise ConfigError(
                f"{what} belongs to a torch.nn.Module given as model; this model has its own"
            )
