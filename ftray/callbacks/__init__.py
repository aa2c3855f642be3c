"""Callbacks: what users hook into a fit. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftray.callbacks.base import Callback, State
    from ftray.callbacks.best_model import BestModelCheckpoint
    from ftray.callbacks.early_stopping import EarlyStopping
    from ftray.callbacks.evaluation import EvaluationCallback

_LAZY = {
    "BestModelCheckpoint": "best_model",
    "Callback": "base",
    "EarlyStopping": "early_stopping",
    "EvaluationCallback": "evaluation",
    "State": "base",
}

__all__ = ["BestModelCheckpoint", "Callback", "EarlyStopping", "EvaluationCallback", "State"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ftray.callbacks' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"ftray.callbacks.{_LAZY[name]}"), name)
