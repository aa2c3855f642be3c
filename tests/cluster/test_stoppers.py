"""The rule of EarlyStopping as a `ray.tune.Stopper`."""

from __future__ import annotations

import math

import pytest
from ray import cloudpickle

from ftray.cluster.stoppers import EarlyStoppingStopper
from ftray.errors import ConfigError


def stops_after(stopper: EarlyStoppingStopper, values: list[float], trial: str = "a") -> int | None:
    for epoch, value in enumerate(values, start=1):
        if stopper(trial, {"val_loss": value}):
            return epoch
    return None


@pytest.mark.parametrize(
    ("values", "options", "epoch"),
    [
        ([0.5, 0.6, 0.7, 0.8], {}, 3),
        ([0.5, 0.5, 0.5], {}, 3),
        ([0.5, 0.6, 0.4, 0.45, 0.46], {}, 5),
        ([0.5, 0.6], {"patience": 1}, 2),
        ([1, 0.95, 0.92], {"min_delta": 0.1}, 3),
        ([0.35, 0.36, 0.37, 0.38], {"baseline": 0.4}, None),
        ([math.nan, math.nan], {}, 2),
    ],
)
def test_it_stops_where_early_stopping_stops(values, options, epoch):
    assert stops_after(EarlyStoppingStopper("val_loss", **options), values) == epoch


def test_trials_do_not_share_their_patience():
    stopper = EarlyStoppingStopper("val_loss")
    assert not stopper("a", {"val_loss": 0.5}) and not stopper("a", {"val_loss": 0.6})
    assert not stopper("b", {"val_loss": 0.9}) and not stopper("b", {"val_loss": 0.95})
    assert stopper("a", {"val_loss": 0.7})
    assert not stopper("b", {"val_loss": 0.8})
    assert not stopper.stop_all()


def test_it_continues_after_a_restart():
    stopper = EarlyStoppingStopper("val_loss")
    assert stops_after(stopper, [0.5, 0.6]) is None
    assert stops_after(cloudpickle.loads(cloudpickle.dumps(stopper)), [0.7]) == 1


def test_patience_zero_is_refused():
    with pytest.raises(ConfigError, match="patience = 0"):
        EarlyStoppingStopper(patience=0)
