"""The callbacks of a fit, made ready: one with another, and with what they evaluate."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from ftray.callbacks.base import Callback
from ftray.callbacks.best_model import BestModelCheckpoint
from ftray.callbacks.evaluation import EvaluationCallback
from ftray.callbacks.monitor import check_monitor
from ftray.callbacks.training_checkpoint import TrainingCheckpoint
from ftray.callbacks.wise_ft import WiSEFTCallback
from ftray.config import FitConfig
from ftray.errors import ConfigError
from ftray.evaluation.spec import EvaluationSpec
from ftray.media import Modality
from ftray.models.routes import local_towers

__all__ = ["check_callbacks", "check_monitors", "evaluations_of", "keys_of", "own_copies"]


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raise a `ConfigError` for two callbacks of which there can be one."""
    best = [callback for callback in callbacks if isinstance(callback, BestModelCheckpoint)]
    if len(best) > 1:
        raise ConfigError(
            "There are two BestModelCheckpoints, but one artifact: it can hold the best weights "
            f"by {best[0].monitor} or by {best[1].monitor}"
        )
    for cls in (WiSEFTCallback, TrainingCheckpoint):
        if sum(isinstance(callback, cls) for callback in callbacks) > 1:
            raise ConfigError(f"There are two callbacks of the kind {cls.__name__}: give one")


def evaluations_of(
    callbacks: list[Callback],
    config: FitConfig,
    model: str,
    takes: frozenset[Modality] | None,
) -> tuple[EvaluationSpec, ...]:
    """What the EvaluationCallbacks evaluate, by number; each of them is told its number.

    Args:
        callbacks: of the fit.
        config: what the user wants.
        model: where the model is.
        takes: what it takes, where that is known.

    Raises:
        FtrayError: for data that cannot be evaluated, or two evaluations of one name.
    """
    found = [callback for callback in callbacks if isinstance(callback, EvaluationCallback)]
    names = [callback.name for callback in found]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"The EvaluationCallbacks are named {names}: each needs a caption of its own, so that "
            "their metrics can be told apart"
        )
    towers = local_towers(model, config.model_options)
    return tuple(
        callback.prepare(
            number, columns=config.columns, model=config.model, towers=towers, modalities=takes
        )
        for number, callback in enumerate(found)
    )


def keys_of(callbacks: Sequence[Callback], *, has_val: bool) -> set[str]:
    """The keys of all metrics that a run with these callbacks will have."""
    keys = {"train_loss"} | ({"val_loss"} if has_val else set())
    for callback in callbacks:
        keys.update(callback.metric_names)
        if isinstance(callback, EvaluationCallback):
            keys.update(callback.metric_keys())
    return keys


def check_monitors(callbacks: Sequence[Callback], model: str, *, has_val: bool) -> None:
    """Resolve what callbacks monitor; raises a `ConfigError` for what will never be."""
    keys = keys_of(callbacks, has_val=has_val)
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str):
            callback.monitor = check_monitor(type(callback).__name__, monitor, keys, model)  # type: ignore[attr-defined]


def own_copies(
    callbacks: Sequence[Callback], evaluations: Sequence[EvaluationSpec]
) -> tuple[Callback, ...]:
    """Copies of our callbacks, so that a fit leaves the user's objects as they were.

    A user's own callback is taken as it is: in this process it may collect what the user reads
    afterwards. A WiSEFTCallback is told what it can choose by.
    """
    own = tuple(
        copy.deepcopy(callback) if type(callback).__module__.startswith("ftray.") else callback
        for callback in callbacks
    )
    best = next((c.monitor for c in own if isinstance(c, BestModelCheckpoint)), None)
    for callback in own:
        if isinstance(callback, WiSEFTCallback):
            callback.prepare(evaluations, best)
    return own
