"""BestModelCheckpoint: the artifact holds the best weights instead of the last ones."""

from __future__ import annotations

import math
from typing import Any

from ftray.callbacks.base import Callback, Decision, MarkBest, Say, State
from ftray.callbacks.monitor import Mode, Monitor, resolve_mode

__all__ = ["BestModelCheckpoint"]


class BestModelCheckpoint(Callback):
    """Keep the weights of the best epoch, by one metric.

    Args:
        monitor: "train_loss", "val_loss", or a metric of an EvaluationCallback.
        mode: "min", "max", or "auto": min for losses, else max.
    """

    def __init__(self, monitor: str = "val_loss", mode: Mode = "auto") -> None:
        self.monitor = monitor
        self.mode = resolve_mode(monitor, mode)
        self._rule = Monitor(self.mode)

    def on_epoch_end(self, state: State) -> list[Decision]:
        """Compare this epoch's value with the best so far."""
        value = state.metrics.get(self.monitor, math.nan)
        before = self._rule.reference
        if self._rule.improves(value):
            return [
                Say(f"Model improved from {before:.3f} to {value:.3f}!"),
                MarkBest(self.monitor, value),
            ]
        return [Say("Model did not improve")]

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self._rule.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from it."""
        self._rule.best = state["best"]
