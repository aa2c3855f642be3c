"""The rule of EarlyStopping as a `ray.tune.Stopper`."""

from __future__ import annotations

from typing import Any

from ray.tune.stopper import Stopper

from ftray.callbacks.monitor import Mode, Monitor, Patience, check_monitor, resolve_mode

__all__ = ["EarlyStoppingStopper"]


class EarlyStoppingStopper(Stopper):  # type: ignore[misc]
    """Stops a Tune trial as EarlyStopping stops a run: the same rule, one state for each trial.

    Args:
        monitor, mode, patience, min_delta, baseline: as in `ftray.callbacks.EarlyStopping`.

    Raises:
        ConfigError: as EarlyStopping does.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: Mode = "auto",
        patience: int = 2,
        min_delta: float = 0.0,
        baseline: float | None = None,
    ) -> None:
        self._monitor = monitor
        self._arguments = (resolve_mode(monitor, mode), min_delta, baseline, patience)
        self._rules: dict[str, Patience] = {}
        self._rule()

    def _rule(self) -> Patience:
        mode, min_delta, baseline, patience = self._arguments
        return Patience(Monitor(mode, min_delta, baseline), patience)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take a trial's result; whether the trial is to stop.

        Raises:
            ConfigError: if the result has no such metric, listing those that it has.
        """
        check_monitor("EarlyStoppingStopper", self._monitor, result)
        rule = self._rules.setdefault(trial_id, self._rule())
        rule.update(float(result[self._monitor]))
        return rule.exhausted

    def stop_all(self) -> bool:
        """Never: each trial stops for itself."""
        return False
