"""BestModelCheckpoint: the artifact holds the best weights instead of the last ones."""

from __future__ import annotations

from typing import Any, ClassVar

from ftray.callbacks.base import Callback, Decision, MarkBest, Say, State
from ftray.callbacks.monitor import Mode, Monitor, missing_note, monitored, resolve_mode

__all__ = ["BestModelCheckpoint"]


class BestModelCheckpoint(Callback):
    """Keep the best weights, by one metric.

    Looked at is each epoch's end, and, for a metric of an EvaluationCallback with
    `steps_per_interval`, each of its evaluations. The artifact gets the best weights instead of the
    last ones, and Ray's `Result.get_best_checkpoint` names the same checkpoint.

    Args:
        monitor: "train_loss", "val_loss", or a metric of an EvaluationCallback.
        mode: "min", "max", or "auto": min for losses, else max.
    """

    order: ClassVar[int] = 70

    def __init__(self, monitor: str = "val_loss", mode: Mode = "auto") -> None:
        self.monitor = monitor
        self.mode = resolve_mode(monitor, mode)
        self._rule = Monitor(self.mode)

    def on_metrics(self, state: State) -> list[Decision]:
        """Compare this value with the best so far."""
        value = monitored(state, self.monitor)
        if value is None:
            return []
        before = self._rule.reference
        if self._rule.improves(value):
            return [
                Say(f"Model improved from {before:.3f} to {value:.3f}!"),
                MarkBest(self.monitor, value),
            ]
        missing = missing_note("BestModelCheckpoint", state, self.monitor)
        return [*missing, Say("Model did not improve")]

    def state_dict(self) -> dict[str, Any]:
        """The best value so far."""
        return {"best": self._rule.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from it."""
        self._rule.best = state["best"]
