"""Small promises of a fit, each once broken: state, stops, weights, names."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import ftray
from ftray.callbacks import BestModelCheckpoint, Callback, EarlyStopping, EvaluationCallback
from ftray.callbacks.base import Stop
from ftray.errors import ConfigError, RunFailedError
from ftray.events import EpochEnded, StepEnded
from tests.test_fit_local import fit
from tests.tiny import tiny_text_model


def test_a_callback_object_serves_a_second_fit_as_new(tmp_path, tiny_model, labelled_rows):
    best = BestModelCheckpoint("train_loss")
    runs = [
        fit(tmp_path, model=str(tiny_model), train_data=labelled_rows, callbacks=[best])
        for _ in range(2)
    ]
    said = [[line for line in run.logs().splitlines() if "improve" in line] for run in runs]
    assert [line[11:] for line in said[0]] == [line[11:] for line in said[1]]
    assert "Model improved from inf" in said[1][0]


def test_the_artifact_names_the_metrics_of_its_own_weights(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        epochs=3,
        callbacks=[
            EvaluationCallback(labelled_rows[:30], labelled_rows[30:]),
            BestModelCheckpoint("train_loss", mode="max"),  # so that an early epoch is kept
        ],
    )
    facts = json.loads(Path(f"{run.artifact_id}/ftray.json").read_text())
    epochs = [e for e in run._record.events() if isinstance(e, EpochEnded)]
    kept = next(e for e in epochs if e.global_step == facts["global_step"])
    assert facts["metrics"]["train_loss"] == kept.metrics["train_loss"]
    assert kept is not epochs[-1]


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state):
        return Stop("enough") if state.global_step == self.step else None


def test_after_a_stop_in_mid_epoch_the_metrics_are_those_of_the_artifact(
    tmp_path, tiny_model, labelled_rows
):
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        callbacks=[EvaluationCallback(labelled_rows[:30], labelled_rows[30:]), StopAt(5)],
    )
    again = ftray.evaluate(run.artifact_id, labelled_rows[:30], labelled_rows[30:])
    assert run.metrics()["after"]["ndcg_at_k"] == pytest.approx(again["ndcg_at_k"], abs=1e-6)


class StopBeforeTraining(Callback):
    def on_train_epoch_begin(self, state):
        return Stop("not today") if state.epoch == 1 else None


def test_a_stop_before_an_epoch_trains_no_step_of_it(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        callbacks=[StopBeforeTraining()],
    )
    steps = [e for e in run._record.events() if isinstance(e, StepEnded)]
    assert {step.epoch for step in steps} == {0}


class FailAtTheEnd(Callback):
    def __init__(self, fail: bool) -> None:
        self.fail = fail

    def on_fit_end(self, state):
        if self.fail:
            raise ValueError("no disk")


def test_an_early_stop_holds_after_a_restart(tmp_path, tiny_model, labelled_rows):
    def start(fail: bool, resume: str):
        return fit(
            tmp_path,
            model=str(tiny_model),
            train_data=labelled_rows,
            epochs=6,
            run_name="run",
            resume=resume,
            callbacks=[EarlyStopping("train_loss", patience=1, baseline=0.0), FailAtTheEnd(fail)],
        )

    with pytest.raises(RunFailedError, match="no disk"):
        start(True, "never")
    run = start(False, "auto")
    steps = [e.global_step for e in run._record.events() if isinstance(e, StepEnded)]
    assert run.history()["kind"].to_pylist().count("epoch") == 1
    assert steps == sorted(set(steps))


class PoisonGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def test_a_gradient_that_is_not_finite_fails_the_run(
    tmp_path, tiny_model, labelled_rows, monkeypatch
):
    from ftray.models.text import TextEncoder

    forward = TextEncoder.forward
    monkeypatch.setattr(
        TextEncoder, "forward", lambda self, features: PoisonGradient.apply(forward(self, features))
    )
    with pytest.raises(RunFailedError, match=r"Training diverged: the norm.*nan.*step 1"):
        fit(tmp_path, model=str(tiny_model), train_data=labelled_rows)


def test_a_ragged_validation_counts_rows_not_steps(tmp_path, tiny_model, pair_rows):
    """The validation loss of 33 rows is close to that of 32: no step of one row pulls it down."""
    losses = []
    for count in (32, 33):
        run = fit(
            tmp_path,
            model=str(tiny_model),
            train_data=pair_rows[:16],
            eval_data=pair_rows[20 : 20 + count],
            loss="MultipleNegativesRankingLoss",
            batch_size=16,
            epochs=1,
        )
        losses.append(run.history()["val_loss"].to_pylist()[-1])
    assert losses[0] == pytest.approx(losses[1], rel=0.15)


def test_labelled_texts_are_evaluated_as_they_are_trained(tmp_path, labelled_rows):
    """A model with prompts: labelled texts carry none of them, pairs carry both."""
    model = tiny_text_model(
        tmp_path / "m", prompts={"query": "find this: ", "document": "about that: "}
    )
    texts = [row["text"] for row in labelled_rows]
    vectors = ftray.encode(str(model), texts)
    as_query = ftray.encode(str(model), texts, role="query")
    assert np.abs(vectors - as_query).max() > 1e-3
    found = ftray.evaluate(str(model), labelled_rows[:8], labelled_rows[8:], limit=1)
    labels = [row["label"] for row in labelled_rows]
    nearest = (vectors[:8] @ vectors[8:].T).argmax(axis=1)
    hits = np.mean([labels[i] == labels[8 + nearest[i]] for i in range(8)])
    assert found["hit_at_k"] == pytest.approx(hits)


@pytest.mark.parametrize("caption", ["../../../esc", "a/b", ""])
def test_a_caption_is_a_name_not_a_path(caption, labelled_rows):
    with pytest.raises(ConfigError, match="caption"):
        EvaluationCallback(labelled_rows, caption=caption)


def test_two_evaluations_need_two_names(tmp_path, tiny_model, labelled_rows):
    with pytest.raises(ConfigError, match="caption of its own"):
        fit(
            tmp_path,
            model=str(tiny_model),
            train_data=labelled_rows,
            callbacks=[
                EvaluationCallback(labelled_rows),
                EvaluationCallback(labelled_rows, caption="evaluation"),
            ],
        )


def test_two_best_models_are_refused(tmp_path, tiny_model, labelled_rows):
    with pytest.raises(ConfigError, match="two BestModelCheckpoints"):
        fit(
            tmp_path,
            model=str(tiny_model),
            train_data=labelled_rows,
            callbacks=[BestModelCheckpoint("train_loss"), BestModelCheckpoint("train_loss")],
        )


def test_monitor_takes_the_name_that_the_log_prints(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        callbacks=[
            EvaluationCallback(labelled_rows),
            BestModelCheckpoint("tiny_ndcg_at_k"),
        ],
    )
    facts = json.loads(Path(f"{run.artifact_id}/ftray.json").read_text())
    assert facts["best"]["monitor"] == "ndcg_at_k"


def test_what_an_epoch_leaves_out_is_on_record(tmp_path, tiny_model):
    rows = [{"query": "find money", "document": f"card {i} {'app ' * (i % 5)}"} for i in range(20)]
    rows += [{"query": f"pin {i} lost", "document": f"fee {i} rate"} for i in range(20)]
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=rows,
        loss="MultipleNegativesRankingLoss",
        batch_size=8,
    )
    left_out = [e.rows_left_out for e in run._record.events() if isinstance(e, EpochEnded)]
    assert left_out == [15, 15]
    assert "15 of 40 rows do not fit an epoch" in run.logs()


def test_a_validation_split_holds_positives_and_keeps_the_notes(tmp_path, tiny_model):
    """One row held out of each class would have no positive, and a loss of zero."""
    rows = [
        {"text": f"card {word} {i} {'app ' * (i % 4)}", "label": word}
        for word in ("lost", "bank", "money", "pin", "fee", "rate", "open", "send")
        for i in range(10)
    ]
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=rows,
        loss="TripletMarginLoss",
        val_split=0.1,
        callbacks=[BestModelCheckpoint("val_loss")],
    )
    losses = [x for x in run.history()["val_loss"].to_pylist() if x is not None]
    assert all(loss > 0 for loss in losses)
    assert "rows held out for the validation loss: 8 of 80" in run.logs()
    assert "80 texts with 8 labels" in run.logs()


class NotJson(Callback):
    def state_dict(self):
        return {"best": np.float32(1)}


def test_state_that_json_cannot_hold_fails_with_the_callbacks_name(
    tmp_path, tiny_model, labelled_rows
):
    with pytest.raises(RunFailedError, match=r"NotJson\.state_dict gave what JSON cannot hold"):
        fit(tmp_path, model=str(tiny_model), train_data=labelled_rows, callbacks=[NotJson()])


def test_the_artifact_of_a_run_cut_off_in_mid_epoch_claims_no_metrics(
    tmp_path, tiny_model, labelled_rows
):
    class StopFile(Callback):
        def on_train_batch_end(self, state):
            if state.global_step == 1:
                ftray.get_run(state.run_path).stop()

    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        epochs=3000,
        callbacks=[EvaluationCallback(labelled_rows), StopFile()],
    )
    facts = json.loads(Path(f"{run.artifact_id}/ftray.json").read_text())
    assert run.status() == "STOPPED"
    evaluated = {e.global_step: e.metrics for e in run._evaluations()}
    if facts["global_step"] in evaluated:
        assert facts["metrics"]["ndcg_at_k"] == evaluated[facts["global_step"]]["ndcg_at_k"]
    else:
        assert facts["metrics"] == {}
