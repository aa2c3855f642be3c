"""The rule of EarlyStopping as a `ray.tune.Stopper`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ray.tune import stopper as stoppers
from ray.tune.stopper import Stopper

from ftray.callbacks.early_stopping import EarlyStopping
from ftray.callbacks.monitor import Mode, Monitor, Patience, check_monitor, resolve_mode
from ftray.errors import ConfigError, nearest

__all__ = ["EarlyStoppingStopper", "as_stopper"]


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


def as_stopper(given: Any, keys: Iterable[str], model: str = "") -> Stopper:
    """A stopper of Tune that looks at a metric which there will be.

    Args:
        given: an `EarlyStopping`, a stopper, or one of these as YAML names it:
            `{TrialPlateauStopper: {metric: ndcg_at_20}}`.
        keys: of all metrics that runs will have.
        model: see `check_monitor`.

    Raises:
        ConfigError: for anything else, for options that the class refuses, and other metrics.
    """
    stopper = _stopper(given)
    for name in ("_monitor", "_metric"):
        if isinstance(metric := getattr(stopper, name, None), str):
            owner = f"stop: {type(stopper).__name__}"
            setattr(stopper, name, check_monitor(owner, metric, keys, model))
    return stopper


def _stopper(given: Any) -> Stopper:
    if isinstance(given, Stopper):
        return given
    if isinstance(given, EarlyStopping):
        return EarlyStoppingStopper(
            given.monitor, given.mode, given.patience, given.min_delta, given.baseline
        )
    name, options = (given, {}) if isinstance(given, str) else _named(given)
    known: dict[str, Any] = {
        each: cls
        for each, cls in vars(stoppers).items()
        if isinstance(cls, type) and issubclass(cls, Stopper) and cls is not Stopper
    }
    known["EarlyStopping"] = EarlyStoppingStopper
    if name not in known:
        raise ConfigError(f"stop: there is no stopper '{name}'.{nearest(name, known)}")
    try:
        stopper: Stopper = known[name](**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"stop: {name}: {error} (given: {options})") from None
    return stopper


def _named(given: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ConfigError(
            f"stop: {given!r}: an EarlyStopping or a stopper of ray.tune is expected, as in "
            "{TrialPlateauStopper: {metric: val_loss}}"
        )
    ((name, options),) = given.items()
    return str(name), dict(options or {})
