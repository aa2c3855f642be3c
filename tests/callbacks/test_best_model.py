"""BestModelCheckpoint: which epoch is marked as the best, and the lines in the log."""

from __future__ import annotations

import json
import math
from types import MappingProxyType
from typing import Any

import pytest

from ftray.callbacks.base import MarkBest, Say, State
from ftray.callbacks.best_model import BestModelCheckpoint
from ftray.errors import ConfigError


def decisions(callback: BestModelCheckpoint, key: str, *values: float) -> list[list[Any]]:
    return [
        callback.on_metrics(
            State(
                epochs=9,
                epoch=epoch,
                steps_per_epoch=4,
                step=3,
                global_step=4 * (epoch + 1),
                loss=0.0,
                metrics=MappingProxyType({key: value}),
                fresh=frozenset({key, "train_loss"}),
            )
        )
        for epoch, value in enumerate(values)
    ]


def said(decided: list[list[Any]]) -> list[str]:
    return [d.message for ds in decided for d in ds if isinstance(d, Say)]


def marked(decided: list[list[Any]]) -> list[float | None]:
    return [next((d.value for d in ds if isinstance(d, MarkBest)), None) for ds in decided]


def test_log_lines_are_finetuners() -> None:
    decided = decisions(BestModelCheckpoint(), "val_loss", 2.756, 2.711, 2.712, math.nan)
    assert said(decided) == [
        "Model improved from inf to 2.756!",
        "Model improved from 2.756 to 2.711!",
        "Model did not improve",
        "Model did not improve",
    ]
    assert marked(decided) == [2.756, 2.711, None, None]


def test_of_a_metric_the_highest_value_is_the_best() -> None:
    callback = BestModelCheckpoint("faq_recall_at_k")
    decided = decisions(callback, "faq_recall_at_k", 0.25, 0.2, 0.25, 0.5)
    assert marked(decided) == [0.25, None, None, 0.5]
    assert said(decided)[0] == "Model improved from -inf to 0.250!"
    assert decided[3][1] == MarkBest("faq_recall_at_k", 0.5)


def test_epoch_without_the_metric_is_not_the_best() -> None:
    callback = BestModelCheckpoint("recall_at_k")
    assert marked(decisions(callback, "train_loss", 0.1, 0.2)) == [None, None]


def test_mode_can_be_said() -> None:
    assert marked(decisions(BestModelCheckpoint("x", "min"), "x", 2, 1, 3)) == [2, 1, None]
    with pytest.raises(ConfigError, match="mode = 'maximum'"):
        BestModelCheckpoint("x", "maximum")  # type: ignore[arg-type]


def test_restart_in_the_middle_changes_nothing() -> None:
    values = (2.0, 1.0, 1.5, 0.5)
    whole = decisions(BestModelCheckpoint(), "val_loss", *values)
    for cut in range(len(values)):
        first, second = BestModelCheckpoint(), BestModelCheckpoint()
        before = decisions(first, "val_loss", *values[:cut])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert before + decisions(second, "val_loss", *values[cut:]) == whole
