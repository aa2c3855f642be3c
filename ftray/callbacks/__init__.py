"""Callbacks: what users hook into a fit. Names are imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftray.callbacks.base import (
        Callback,
        Evaluate,
        EvaluationResult,
        GivenWeights,
        Interpolation,
        Logger,
        LogMetrics,
        MarkBest,
        ReplaceWeights,
        Save,
        Say,
        State,
        Stop,
    )
    from ftray.callbacks.best_model import BestModelCheckpoint
    from ftray.callbacks.early_stopping import EarlyStopping
    from ftray.callbacks.evaluation import EvaluationCallback
    from ftray.callbacks.tensorboard_logger import TensorBoardLogger
    from ftray.callbacks.training_checkpoint import TrainingCheckpoint
    from ftray.callbacks.wandb_logger import WandBLogger
    from ftray.callbacks.wise_ft import WiSEFTCallback

_LAZY = {
    "BestModelCheckpoint": "best_model",
    "Callback": "base",
    "EarlyStopping": "early_stopping",
    "Evaluate": "base",
    "EvaluationCallback": "evaluation",
    "EvaluationResult": "base",
    "GivenWeights": "base",
    "Interpolation": "base",
    "LogMetrics": "base",
    "Logger": "base",
    "MarkBest": "base",
    "ReplaceWeights": "base",
    "Save": "base",
    "Say": "base",
    "State": "base",
    "Stop": "base",
    "TensorBoardLogger": "tensorboard_logger",
    "TrainingCheckpoint": "training_checkpoint",
    "WandBLogger": "wandb_logger",
    "WiSEFTCallback": "wise_ft",
}

__all__ = [
    "BestModelCheckpoint",
    "Callback",
    "EarlyStopping",
    "Evaluate",
    "EvaluationCallback",
    "EvaluationResult",
    "GivenWeights",
    "Interpolation",
    "LogMetrics",
    "Logger",
    "MarkBest",
    "ReplaceWeights",
    "Save",
    "Say",
    "State",
    "Stop",
    "TensorBoardLogger",
    "TrainingCheckpoint",
    "WandBLogger",
    "WiSEFTCallback",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ftray.callbacks' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"ftray.callbacks.{_LAZY[name]}"), name)
