"""The one rule of "improved", on the sequences that Finetuner's behaviour is documented with."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.callbacks.monitor import Monitor, Patience, check_monitor, resolve_mode
from ftray.errors import ConfigError


def stops_after(values: list[float], patience: int = 2, **rule: Any) -> int | None:
    """The number of values after which patience is over; None = never."""
    wait = Patience(Monitor(rule.pop("mode", "min"), **rule), patience)
    for number, value in enumerate(values, 1):
        wait.update(value)
        if wait.exhausted:
            return number
    return None


@pytest.mark.parametrize(
    ("values", "options", "stop"),
    [
        ([0.5, 0.6, 0.7, 0.1], {}, 3),
        ([0.5, 0.5, 0.5, 0.1], {}, 3),
        ([0.5, 0.6, 0.4, 0.45, 0.46, 0.1], {}, 5),
        ([0.5, 0.6, 0.1], {"patience": 1}, 2),
        ([1, 0.95, 0.92, 0.1], {"min_delta": 0.1}, 3),
        ([1, 0.95, 0.89, 0.1], {"min_delta": 0.1}, None),
        ([0.35, 0.36, 0.37, 0.38], {"baseline": 0.4}, None),
        ([0.5, 0.45, 0.1], {"baseline": 0.4}, 2),
        ([0.35, 0.41, 0.39, 0.41, 0.42], {"baseline": 0.4}, 5),
        ([0.5, 0.6, 0.55, 0.6, 0.7], {"mode": "max"}, 4),
        ([0.1, 0.2, 0.3, 0.4], {"mode": "max"}, None),
        ([0.1, 0.15, 0.19], {"mode": "max", "min_delta": 0.1}, 3),
        ([math.nan, math.nan, 0.5], {}, 2),
        ([0.5, math.nan, 0.4, math.nan, math.nan], {}, 5),
        ([3, 2, 1, 0, -1], {}, None),
    ],
)
def test_patience_ends_after_so_many_values(
    values: list[float], options: dict[str, Any], stop: int | None
) -> None:
    assert stops_after(values, **options) == stop


@pytest.mark.parametrize("patience", [0, -1])
def test_patience_below_one_is_refused(patience: int) -> None:
    with pytest.raises(ConfigError, match=f"patience = {patience}: at least 1"):
        Patience(Monitor("min"), patience)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_first_number_is_an_improvement_and_nan_is_none(mode: Any) -> None:
    rule = Monitor(mode)
    assert not rule.improves(math.nan)
    assert rule.best is None
    assert rule.improves(0.0)
    assert not rule.improves(math.nan)
    assert rule.best == 0.0


def test_change_of_exactly_min_delta_is_no_improvement() -> None:
    rule = Monitor("min", min_delta=0.5)
    assert rule.improves(2.0)
    assert not rule.improves(1.5)
    assert rule.improves(1.25)


def test_with_a_baseline_the_best_value_is_remembered_but_not_compared_with() -> None:
    rule = Monitor("max", baseline=0.5)
    assert [rule.improves(value) for value in (0.4, 0.7, 0.6)] == [False, True, True]
    assert (rule.best, rule.reference) == (0.7, 0.5)


values = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.25, 0.5, math.nan])), min_size=1, max_size=12
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    values=values,
    cut=st.integers(0, 12),
    mode=st.sampled_from(["min", "max"]),
    min_delta=st.sampled_from([0.0, 0.1]),
    baseline=st.sampled_from([None, 0.5]),
)
def test_restart_in_the_middle_changes_nothing(
    values: list[float], cut: int, mode: Any, min_delta: float, baseline: float | None
) -> None:
    def fresh() -> Patience:
        return Patience(Monitor(mode, min_delta, baseline), 2)

    whole, first, second = fresh(), fresh(), fresh()
    expected = [(whole.update(value), whole.exhausted) for value in values]
    seen = [(first.update(value), first.exhausted) for value in values[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    seen += [(second.update(value), second.exhausted) for value in values[cut:]]
    assert seen == expected


def test_state_that_is_not_ours_is_refused() -> None:
    with pytest.raises(KeyError, match="waited"):
        Patience(Monitor("min")).load_state_dict({"best": 1.0})


# ---------------------------------------------------------------- mode and key


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val_loss", "min"),
        ("train_loss", "min"),
        ("average_precision", "max"),
        ("faq_ndcg_at_k", "max"),
        ("lossless_recall", "max"),
    ],
)
def test_auto_is_min_for_losses_and_max_for_metrics(monitor: str, mode: str) -> None:
    assert resolve_mode(monitor, "auto") == mode
    assert resolve_mode(monitor, "min") == "min"
    assert resolve_mode(monitor, "max") == "max"


def test_unknown_mode_is_an_error_not_a_guess() -> None:
    with pytest.raises(ConfigError, match=r"mode = 'maxx'. Did you mean 'max'\?"):
        resolve_mode("val_loss", "maxx")


KEYS = {"train_loss", "ndcg_at_k", "recall_at_k"}


def monitor_refused(monitor: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_monitor("EarlyStopping", monitor, KEYS)
    return str(caught.value)


def test_metric_that_will_never_exist_is_an_error_that_lists_the_keys() -> None:
    message = monitor_refused("ndcg")
    assert message.startswith("EarlyStopping monitors 'ndcg', which this run will never have.")
    assert message.endswith("It will have: ndcg_at_k, recall_at_k, train_loss")
    assert "Did you mean 'ndcg_at_k'?" in monitor_refused("ndcg_at")


def test_validation_loss_without_validation_data_says_what_to_give() -> None:
    assert "For a validation loss give eval_data or val_split." in monitor_refused("val_loss")


def test_metric_that_will_exist_passes() -> None:
    check_monitor("EarlyStopping", "ndcg_at_k", KEYS)
