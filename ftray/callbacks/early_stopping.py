"""EarlyStopping: end training when a metric no longer improves."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ftray.callbacks.base import Callback, Decision, Say, State, Stop
from ftray.callbacks.monitor import (
    Mode,
    Monitor,
    Patience,
    missing_note,
    monitored,
    resolve_mode,
)
from ftray.errors import ConfigError
from ftray.words import counted

__all__ = ["EarlyStopping"]


class EarlyStopping(Callback):
    """Stop after `patience` epochs in a row without improvement.

    A metric of an EvaluationCallback with `steps_per_interval` is looked at in mid-epoch too:
    patience counts evaluations then, and the log says so.

    Args:
        monitor: "train_loss", "val_loss", or a metric of an EvaluationCallback.
        mode: "min", "max", or "auto": min for losses, else max.
        patience: epochs in a row without improvement, at least 1.
        min_delta: how much better than the best so far counts as improvement (strictly more).
        baseline: compare with this value throughout, instead of the best so far.
        minimum_delta: the same as `min_delta`.

    Raises:
        ConfigError: for a patience below 1, a negative delta, or an unknown mode.
    """

    order: ClassVar[int] = 75

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: Mode = "auto",
        patience: int = 2,
        min_delta: float = 0.0,
        baseline: float | None = None,
        *,
        minimum_delta: float | None = None,
    ) -> None:
        if minimum_delta is not None:
            if min_delta:
                raise ConfigError("EarlyStopping: give min_delta or minimum_delta, not both")
            min_delta = minimum_delta
        if min_delta < 0:
            raise ConfigError(f"EarlyStopping: min_delta = {min_delta}: zero or more")
        self.monitor = monitor
        self.mode = resolve_mode(monitor, mode)
        self.min_delta = min_delta
        self.baseline = baseline
        self.counts = "epoch"
        """What patience counts: "epoch" or "evaluation"."""
        self._rule = Patience(Monitor(self.mode, min_delta, baseline), patience)

    @property
    def patience(self) -> int:
        """Epochs in a row without improvement after which training stops."""
        return self._rule.patience

    def on_metrics(self, state: State) -> list[Decision]:
        """Take this value."""
        value = monitored(state, self.monitor)
        if value is None:
            return []
        self._rule.update(value)
        if not self._rule.exhausted:
            return missing_note("EarlyStopping", state, self.monitor)
        saved = state.epochs - state.epoch - 1
        best, against = self._rule.monitor.best, "best"
        if self.baseline is not None:
            best, against = self.baseline, "baseline"
        reason = (
            f"no improvement of '{self.monitor}' for {counted(self.patience, self.counts)} "
            f"(now {value:.5f}, {against} {best if best is not None else math.nan:.5f})"
        )
        epochs = counted(state.epochs, "epoch")
        return [
            Say(f"Training is stopping, {reason}; {saved} of {epochs} saved"),
            Stop(reason),
        ]

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and how long it is ago."""
        return self._rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from it."""
        self._rule.load_state_dict(state)
