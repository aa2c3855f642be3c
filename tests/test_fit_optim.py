"""A fit with an average of weights, an optimizer for the loss, rates by layer and by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import ftray
from ftray.callbacks import BestModelCheckpoint, Callback, EvaluationCallback
from ftray.callbacks.base import Save
from ftray.errors import FtrayError
from ftray.events import EpochEnded, StepEnded
from ftray.training.learner import Learner
from tests.test_fit_local import assert_bit_equal, fit

EVERYTHING: dict[str, Any] = {
    "loss": "ProxyAnchorLoss",
    "ema_decay": 0.5,
    "loss_optimizer": "SGD",
    "loss_optimizer_options": {"lr": 0.1, "momentum": 0.9},
    "optimizer_options": {"layer_wise_lr_decay": 0.5},
    "scheduler_options": {"scheduler_step": "epoch"},
    "epochs": 3,
}


class SaveAndFail(Callback):
    """Saves in mid-epoch, and fails a step later."""

    on = True

    def on_train_batch_end(self, state: Any) -> Any:
        if self.on and state.global_step == state.steps_per_epoch + 3:
            raise ValueError("cut off")
        return Save() if state.global_step == state.steps_per_epoch + 2 else None


@pytest.fixture
def cut_off() -> Iterator[None]:
    SaveAndFail.on = True
    yield
    SaveAndFail.on = False


def test_a_run_continues_bit_equal_in_mid_epoch(
    tmp_path: Path, dropout_model: Path, labelled_rows: list[Any], cut_off: None
) -> None:
    given = {
        **EVERYTHING,
        "model": str(dropout_model),
        "train_data": labelled_rows,
        "batch_size": 16,
    }
    given["callbacks"] = [SaveAndFail()]
    with pytest.raises(FtrayError, match="cut off"):
        fit(tmp_path / "a", run_name="run", **given)
    SaveAndFail.on = False
    continued = fit(tmp_path / "a", run_name="run", resume="must", **given)
    assert "step-000002" in continued.logs()
    whole = fit(tmp_path / "b", run_name="run", **given)
    assert_bit_equal(whole, continued)
    seen = [
        [
            (e.global_step, e.loss, e.learning_rate)
            for e in run._record.events()
            if type(e) is StepEnded
        ]
        for run in (whole, continued)
    ]
    assert seen[0] == seen[1]
    rates = [rate for _, _, rate in seen[0]]
    steps = len(rates) // 3
    assert [len(set(rates[i * steps : (i + 1) * steps])) for i in range(3)] == [1, 1, 1]
    assert len(set(rates)) == 3


def test_the_artifact_has_the_average_and_training_does_not(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, Tensor]] = []
    step = Learner.step

    def watched(self: Learner, *given: Any) -> Any:
        if not trained:
            trained.append({n: t.clone() for n, t in self.encoder.model.state_dict().items()})
        learned = step(self, *given)
        trained.append({n: t.clone() for n, t in self.encoder.model.state_dict().items()})
        return learned

    given = {"model": str(tiny_model), "train_data": labelled_rows, "val_split": 0.25}
    plain = fit(tmp_path / "plain", **given)
    monkeypatch.setattr(Learner, "step", watched)
    run = fit(tmp_path / "ema", ema_decay=0.9, **given)
    want = trained[0]
    for number, state in enumerate(trained[1:]):
        share = min(0.9, (1 + number) / (10 + number))
        want = {n: share * want[n] + (1 - share) * t.double() for n, t in state.items()}
    got = load_file(f"{run.artifact_id}/model.safetensors")
    assert got
    for name, tensor in got.items():
        known = next(t for n, t in want.items() if n.endswith(name))
        assert torch.allclose(tensor.double(), known.double(), atol=1e-6), name
    metrics = [
        [
            (e.metrics["train_loss"], e.metrics["val_loss"])
            for e in one._record.events()
            if type(e) is EpochEnded
        ]
        for one in (plain, run)
    ]
    assert [train for train, _ in metrics[0]] == [train for train, _ in metrics[1]]
    assert all(a != b for (_, a), (_, b) in zip(*metrics, strict=True)), "of the average"


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_metrics_and_the_best_checkpoint_are_of_the_average(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any], mode: str, overlap: bool
) -> None:
    """With mode = max the best epoch by training loss is the first: an earlier checkpoint's."""
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        ema_decay=0.8,
        learning_rate=5e-3,
        callbacks=[
            EvaluationCallback(labelled_rows[:30], labelled_rows[30:], overlap=overlap),
            BestModelCheckpoint("train_loss", mode=mode),
        ],
    )
    again = ftray.evaluate(run.artifact_id, labelled_rows[:30], labelled_rows[30:])
    assert run.metrics()["after"]["ndcg_at_k"] == pytest.approx(again["ndcg_at_k"], abs=1e-6)


def test_rates_of_layers_are_seen_by_callbacks(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any]
) -> None:
    seen: list[dict[str, float]] = []

    class Watch(Callback):
        def on_train_batch_end(self, state: Any) -> None:
            seen.append(dict(state.learning_rates))

    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        epochs=1,
        scheduler="constant",
        optimizer_options={"layer_wise_lr_decay": 0.5},
        callbacks=[Watch()],
    )
    rates = seen[0]
    assert {rates["layer_01"] / rates["layer_00"], rates["layer_00"] / rates["embeddings"]} == {2.0}
    steps = [e.learning_rate for e in run._record.events() if type(e) is StepEnded]
    assert set(steps) == {max(rates.values())} == {1e-3}


def test_a_decay_by_layers_needs_layers(tmp_path: Path) -> None:
    rows = [{"features": [float(i % 4), i / 16], "label": f"c{i % 4}"} for i in range(16)]
    with pytest.raises(FtrayError, match="no layers can be told apart in 'mlp'"):
        fit(
            tmp_path,
            model="mlp",
            train_data=rows,
            batch_size=8,
            optimizer_options={"layer_wise_lr_decay": 0.5},
        )


SHARP: dict[str, Any] = {
    "precision": "fp16",
    "loss_options": {"temperature": 3e-3},
    "ema_decay": 0.9,
    "batch_size": 16,
    "epochs": 3,
}
"""The first gradients, times the loss scale, are too large for fp16."""


def test_what_fp16_leaves_out_moves_nothing_and_a_run_continues_bit_equal(
    tmp_path: Path, dropout_model: Path, labelled_rows: list[Any], cut_off: None
) -> None:
    given = {**SHARP, "model": str(dropout_model), "train_data": labelled_rows}
    given["callbacks"] = [SaveAndFail()]
    with pytest.raises(FtrayError, match="cut off"):
        fit(tmp_path / "a", run_name="run", **given)
    SaveAndFail.on = False
    continued = fit(tmp_path / "a", run_name="run", resume="must", **given)
    assert "step-000002" in continued.logs()
    whole = fit(tmp_path / "b", run_name="run", **given)
    assert_bit_equal(whole, continued)
    steps = [e for e in whole._record.events() if type(e) is StepEnded]
    left_out = [e for e in steps if not math.isfinite(e.grad_norm)]
    assert 1 <= len(left_out) < len(steps) and f"{len(left_out)} step" in whole.logs()
    rates = [e.learning_rate for e in steps]
    made = [e.learning_rate for e in steps if math.isfinite(e.grad_norm)]
    assert set(rates[: len(left_out) + 1]) == {0.0}, "warm-up begins with the first step made"
    assert made[0] < made[1] < made[2]


def test_fp16_that_never_makes_a_step_has_diverged(
    tmp_path: Path, tiny_model: Path, labelled_rows: list[Any]
) -> None:
    given = {"model": str(tiny_model), "train_data": labelled_rows, **SHARP}
    given["loss_options"] = {"temperature": 1e-7}
    with pytest.raises(FtrayError, match=r"Training diverged: fp16 left out 12 steps in a row, as"):
        fit(tmp_path, **given)
    with pytest.raises(FtrayError, match=r"left out \d steps in a row.* at epoch 1, step \d\."):
        fit(tmp_path, **{**given, "epochs": 1})
