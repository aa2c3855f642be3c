"""The one rule of "improved": used by BestModelCheckpoint, EarlyStopping and the Tune stopper.

The rule is Finetuner's, and so Keras's: a value improves on the best so far when it is strictly
better by more than `min_delta`; with a `baseline`, it is compared with the baseline throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from ftray.callbacks.base import Decision, Say, State
from ftray.config import model_prefix
from ftray.errors import ConfigError, nearest

__all__ = ["Mode", "Monitor", "Patience", "check_monitor", "missing_note", "monitored"]
__all__ += ["resolve_mode"]

Mode = Literal["auto", "min", "max"]


def resolve_mode(monitor: str, mode: str) -> Literal["min", "max"]:
    """Resolve "auto": "min" for losses (names that end in `loss`), else "max".

    Raises:
        ConfigError: for any other mode.
    """
    if mode == "auto":
        return "min" if monitor.endswith("loss") else "max"
    if mode == "min":
        return "min"
    if mode == "max":
        return "max"
    raise ConfigError(f"mode = '{mode}'.{nearest(mode, ('auto', 'min', 'max'))}")


def check_monitor(owner: str, monitor: str, keys: Iterable[str], model: str = "") -> str:
    """The key that is meant; a metric that will never exist is refused.

    Args:
        owner: the callback that asks.
        monitor: the metric's key.
        keys: the keys that the run will have.
        model: the model's name: `{model}_{key}`, as the log lines write it, is `key`.

    Raises:
        ConfigError: listing the keys that will exist.
    """
    known = sorted(keys)
    plain = monitor.removeprefix(f"{model_prefix(model)}_")
    if monitor not in known and plain in known:
        return plain
    if monitor not in known:
        hint = ""
        if monitor == "val_loss":
            hint = " For a validation loss give eval_data or val_split."
        close = nearest(monitor, known)
        shown = "" if close.startswith(" Valid") else close
        raise ConfigError(
            f"{owner} monitors '{monitor}', which this run will never have.{shown}{hint} "
            f"It will have: {', '.join(known)}"
        )
    return monitor


def monitored(state: State, monitor: str) -> float | None:
    """The value to judge at a step; None if this step did not measure it.

    At an epoch's end every metric is due: one that is missing is NaN, which improves on nothing.
    """
    if monitor in state.fresh:
        return state.metrics[monitor]
    return math.nan if "train_loss" in state.fresh else None


def missing_note(owner: str, state: State, monitor: str) -> list[Decision]:
    """A warning, where an epoch's end lacks the metric: that counts as no improvement."""
    if monitor in state.fresh:
        return []
    said = f"{owner}: '{monitor}' has no value at this epoch's end, which counts as no improvement"
    return [Say(said, "WARNING")]


@dataclass
class Monitor:
    """Remembers the best value of one metric.

    Args:
        mode: "min" or "max".
        min_delta: how much better a value must be.
        baseline: compare with this instead of the best so far.
    """

    mode: Literal["min", "max"]
    min_delta: float = 0.0
    baseline: float | None = None
    best: float | None = None

    @property
    def reference(self) -> float:
        """What the next value is compared with."""
        if self.baseline is not None:
            return self.baseline
        if self.best is not None:
            return self.best
        return math.inf if self.mode == "min" else -math.inf

    def improves(self, value: float) -> bool:
        """Take a value; whether it is an improvement. NaN never is."""
        reference = self.reference
        if self.mode == "min":
            improved = value < reference - self.min_delta
        else:
            improved = value > reference + self.min_delta
        if improved and (
            self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        ):
            self.best = value
        return improved


@dataclass
class Patience:
    """Stops after `patience` values in a row without improvement.

    Pure: the same object decides in a run's loop and as a `ray.tune.Stopper`.

    Args:
        monitor: the rule of improvement.
        patience: how many values in a row, at least 1.

    Raises:
        ConfigError: for a patience below 1.
    """

    monitor: Monitor
    patience: int = 2
    waited: int = field(default=0)

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ConfigError(
                f"EarlyStopping: patience = {self.patience}: at least 1 "
                "(leave EarlyStopping out if the run is never to stop early)"
            )

    def update(self, value: float) -> bool:
        """Take a value; whether it improved. Ask `exhausted` afterwards."""
        improved = self.monitor.improves(value)
        self.waited = 0 if improved else self.waited + 1
        return improved

    @property
    def exhausted(self) -> bool:
        """Whether the patience is over."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """JSON values that `load_state_dict` takes."""
        return {"best": self.monitor.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            KeyError: if the state is not one of ours.
        """
        self.monitor.best = state["best"]
        self.waited = int(state["waited"])
