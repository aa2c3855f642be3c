"""EarlyStopping: when it stops a run, and what it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import ftray
from ftray.callbacks.base import Callback, LogMetrics, Say, State, Stop
from ftray.callbacks.early_stopping import EarlyStopping
from ftray.errors import ConfigError, RunFailedError


def at_epoch(epoch: int, **metrics: float) -> State:
    return State(
        epochs=10,
        epoch=epoch,
        steps_per_epoch=4,
        step=3,
        global_step=4 * (epoch + 1),
        loss=0.0,
        metrics=MappingProxyType(metrics),
        fresh=frozenset({*metrics, "train_loss"}),
    )


def decisions(callback: EarlyStopping, *losses: float, first: int = 0) -> list[list[Any]]:
    return [
        callback.on_metrics(at_epoch(first + i, val_loss=loss)) for i, loss in enumerate(losses)
    ]


def stop_epoch(callback: EarlyStopping, *losses: float) -> int | None:
    """The number of epochs after which the callback stops the run; None = never."""
    for number, decided in enumerate(decisions(callback, *losses), 1):
        if any(isinstance(decision, Stop) for decision in decided):
            return number
    return None


def test_default_is_val_loss_with_patience_two() -> None:
    callback = EarlyStopping()
    assert (callback.monitor, callback.mode, callback.patience) == ("val_loss", "min", 2)
    assert stop_epoch(callback, 0.5, 0.6, 0.7) == 3
    assert stop_epoch(EarlyStopping(), 0.5, 0.5, 0.5) == 3
    assert stop_epoch(EarlyStopping(), 0.5, 0.6, 0.4, 0.45, 0.46) == 5


def test_patience_of_one_stops_at_the_first_worse_epoch() -> None:
    assert stop_epoch(EarlyStopping(patience=1), 0.5, 0.6) == 2


@pytest.mark.parametrize("name", ["min_delta", "minimum_delta"])
def test_min_delta_goes_by_both_names(name: str) -> None:
    callback = EarlyStopping(**{name: 0.1})  # type: ignore[arg-type]
    assert callback.min_delta == 0.1
    assert stop_epoch(callback, 1, 0.95, 0.92) == 3


def test_values_better_than_the_baseline_never_stop_the_run() -> None:
    assert stop_epoch(EarlyStopping(baseline=0.4), 0.35, 0.36, 0.37, 0.38) is None


def test_epochs_without_the_metric_count_as_no_improvement() -> None:
    callback = EarlyStopping()
    (warning,) = callback.on_metrics(at_epoch(0, train_loss=0.5))
    assert warning.level == "WARNING" and "'val_loss' has no value" in warning.message
    assert Stop in map(type, callback.on_metrics(at_epoch(1, train_loss=0.4)))


def test_stopping_says_why_and_how_much_was_saved() -> None:
    say, stop = decisions(EarlyStopping(), 0.5, 0.6, 0.7)[-1]
    reason = "no improvement of 'val_loss' for 2 epochs (now 0.70000, best 0.50000)"
    assert stop == Stop(reason)
    assert say == Say(f"Training is stopping, {reason}; 7 of 10 epochs saved")
    (_, stop) = decisions(EarlyStopping(patience=1), math.nan)[-1]
    assert stop == Stop("no improvement of 'val_loss' for 1 epoch (now nan, best nan)")
    (_, stop) = decisions(EarlyStopping(patience=1, baseline=0.25), 0.5)[-1]
    assert stop.reason.endswith("for 1 epoch (now 0.50000, baseline 0.25000)")


def test_restart_in_the_middle_changes_nothing() -> None:
    losses = (0.5, 0.6, 0.4, 0.45, 0.46)
    whole = decisions(EarlyStopping(), *losses)
    for cut in range(1, len(losses)):
        first, second = EarlyStopping(), EarlyStopping()
        before = decisions(first, *losses[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + decisions(second, *losses[cut:], first=cut) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "EarlyStopping: patience = 0: at least 1"),
        ({"min_delta": -0.1}, "EarlyStopping: min_delta = -0.1: zero or more"),
        ({"min_delta": 0.1, "minimum_delta": 0.2}, "min_delta or minimum_delta, not both"),
        ({"mode": "mn"}, "mode = 'mn'. Did you mean 'min'?"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EarlyStopping(**options)
    assert message in str(caught.value)


# ---------------------------------------------------------------- in a fit

SEQUENCES = [
    ((0.5, 0.6, 0.7, 0.1), {}, 3),
    ((0.5, 0.6, 0.4, 0.45, 0.46, 0.1), {}, 5),
    ((1.0, 0.95, 0.92, 0.1), {"min_delta": 0.1}, 3),
]


class Losses(Callback):
    """Has a run meet validation losses that are known beforehand; fails before one, if asked to."""

    metric_names = ("val_loss",)

    def __init__(self, losses: tuple[float, ...]) -> None:
        self.losses = losses
        self.fails_before: int | None = None

    def on_epoch_begin(self, state: State) -> None:
        if state.epoch == self.fails_before:
            raise ValueError("power cut")

    def on_train_epoch_end(self, state: State) -> LogMetrics:
        return LogMetrics({"val_loss": self.losses[state.epoch]})


def fit(folder: Path, model: Path, losses: Losses, options: dict[str, Any], **fields: Any) -> Any:
    return ftray.fit(
        model=str(model),
        train_data=[{"text": f"{a} {b}", "label": a} for a in ("card", "bank") for b in ("a", "b")],
        loss="SupConLoss",
        epochs=len(losses.losses),
        num_workers=0,
        run_name="run",
        storage_path=str(folder),
        callbacks=[EarlyStopping(**options), losses],
        listeners=[],
        **fields,
    )


def epochs(run: Any) -> int:
    return int(run.history()["kind"].to_pylist().count("epoch"))


@pytest.mark.parametrize(("losses", "options", "last"), SEQUENCES)
def test_a_fit_stops_where_the_rule_says(
    tmp_path: Path, tiny_model: Path, losses: tuple[float, ...], options: Any, last: int
) -> None:
    run = fit(tmp_path, tiny_model, Losses(losses), options)
    assert epochs(run) == last
    assert f"{len(losses) - last} of {len(losses)} epochs saved" in run.logs()


@pytest.mark.parametrize(("losses", "options", "last"), SEQUENCES)
def test_a_restart_in_the_middle_of_a_fit_changes_nothing(
    tmp_path: Path, tiny_model: Path, losses: tuple[float, ...], options: Any, last: int
) -> None:
    """In every epoch once, so that each part of the patience is interrupted."""
    given = Losses(losses)
    for epoch in range(1, last):
        given.fails_before = epoch
        with pytest.raises(RunFailedError, match="power cut"):
            fit(tmp_path, tiny_model, given, options, resume="auto")
    given.fails_before = None
    run = fit(tmp_path, tiny_model, given, options, resume="must")
    assert epochs(run) == last
    assert run.logs().count("Continuing from checkpoint") == last - 1
    assert run.logs().count("Training is stopping") == 1
