"""What a user's own callback may do, and what happens when one fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ftray
from ftray.callbacks import (
    BestModelCheckpoint,
    Callback,
    EarlyStopping,
    Evaluate,
    EvaluationCallback,
    GivenWeights,
    Logger,
    LogMetrics,
    MarkBest,
    ReplaceWeights,
    Save,
    Stop,
    TrainingCheckpoint,
)
from ftray.errors import ConfigError, RunFailedError
from ftray.events import EvaluationEnded, Log


def fit(folder: Path, model: Path, rows: list[dict[str, str]], **fields: Any):
    return ftray.fit(
        listeners=[],
        **{
            "model": str(model),
            "train_data": rows,
            "loss": "SupConLoss",
            "epochs": 2,
            "batch_size": 32,
            "num_workers": 0,
            "learning_rate": 1e-3,
            "storage_path": str(folder),
            **fields,
        },
    )


def checkpoints(run) -> list[str]:
    return sorted(n for n in os.listdir(f"{run.path}/checkpoints") if n.startswith("epoch"))


@pytest.mark.parametrize(
    ("last", "kept"),
    [
        (3, ["epoch-0004", "epoch-0005", "epoch-0006"]),
        (1, ["epoch-0005", "epoch-0006"]),
        (None, [f"epoch-000{i}" for i in range(1, 7)]),
    ],
)
def test_the_last_epochs_are_kept(tmp_path, tiny_model, labelled_rows, last, kept):
    run = fit(tmp_path, tiny_model, labelled_rows, epochs=6, callbacks=[TrainingCheckpoint(last)])
    assert checkpoints(run) == kept


def test_the_best_is_kept_beside_the_last(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        tiny_model,
        labelled_rows,
        epochs=6,
        callbacks=[TrainingCheckpoint(2), BestModelCheckpoint("train_loss", mode="max")],
    )
    assert checkpoints(run) == ["epoch-0001", "epoch-0005", "epoch-0006"]


def test_each_kept_checkpoint_is_one_to_continue_from(tmp_path, dropout_model, labelled_rows):
    """The newest removed, the run goes on from the one before, to the same weights."""

    class Crash(Callback):
        def on_epoch_begin(self, state):
            if state.epoch == 4 and crash:
                raise ValueError("power cut")

    crash = True
    fields = {"epochs": 5, "run_name": "x", "callbacks": [TrainingCheckpoint(3), Crash()]}
    with pytest.raises(RunFailedError, match="power cut"):
        fit(tmp_path / "a", dropout_model, labelled_rows, **fields)
    run = ftray.get_run("x", storage_path=str(tmp_path / "a"))
    assert checkpoints(run) == ["epoch-0002", "epoch-0003", "epoch-0004"]
    for name in ("epoch-0004", "epoch-0003"):
        for file in Path(run.path, "checkpoints", name).iterdir():
            file.unlink()
    crash = False
    run = fit(tmp_path / "a", dropout_model, labelled_rows, resume="must", **fields)
    assert "Continuing from checkpoint epoch-0002" in run.logs()
    whole = fit(tmp_path / "b", dropout_model, labelled_rows, **fields)
    one, two = (load_file(f"{r.artifact_id}/model.safetensors") for r in (run, whole))
    assert all(one[name].equal(two[name]) for name in one)


def test_a_number_of_epochs_that_cannot_be_kept_is_refused():
    with pytest.raises(ConfigError, match=r"last_k_epochs = 0: at least 1, or None"):
        TrainingCheckpoint(0)


class Average(Callback):
    """The mean of the weights after each step: what Polyak averaging is."""

    def __init__(self):
        self.sum: dict[str, torch.Tensor] = {}
        self.count = 0

    def on_train_batch_end(self, state):
        for name, tensor in state.weights().items():
            self.sum[name] = self.sum.get(name, 0) + tensor
        self.count += 1

    def on_fit_end(self, state):
        mean = {
            name: total / self.count if total.is_floating_point() else total
            for name, total in self.sum.items()
        }
        weights = GivenWeights("average", mean)
        return [Evaluate(weights=weights), ReplaceWeights(weights)]


def test_a_callback_can_replace_the_final_weights(tmp_path, tiny_model, labelled_rows):
    average = Average()
    run = fit(
        tmp_path,
        tiny_model,
        labelled_rows,
        callbacks=[average, EvaluationCallback(labelled_rows[:40], labelled_rows[40:])],
    )
    for name, tensor in ftray.get_model(run.artifact_id).state_dict().items():
        if tensor.is_floating_point():
            assert torch.allclose(tensor, average.sum[name] / average.count, atol=1e-6), name
    measured = ftray.evaluate(run.artifact_id, labelled_rows[:40], labelled_rows[40:])
    assert run.metrics()["after"] == pytest.approx(measured, abs=1e-6)
    facts = json.loads(Path(run.artifact_id, "ftray.json").read_text())
    assert facts["weights"] == "average"


class Wrong(Callback):
    def __init__(self, hook, decision):
        self.hook, self.decision = hook, decision

    def __getattribute__(self, name):
        if name.startswith("on_") and name == object.__getattribute__(self, "hook"):
            return lambda *arguments: object.__getattribute__(self, "decision")
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("hook", "decision", "said"),
    [
        ("on_epoch_end", MarkBest("x", 1.0), "MarkBest can be decided in on_metrics only"),
        (
            "on_epoch_end",
            ReplaceWeights(GivenWeights("x", {})),
            "ReplaceWeights can be decided in on_fit_end only",
        ),
        (
            "on_fit_end",
            ReplaceWeights(GivenWeights("x", {"a": torch.ones(1)})),
            "weights of 'x' are not those of the model",
        ),
        ("on_epoch_end", "stop", "a decision"),
    ],
)
def test_a_decision_that_cannot_be_carried_out_fails_the_run(
    tmp_path, tiny_model, labelled_rows, hook, decision, said
):
    with pytest.raises(RunFailedError, match=said):
        fit(tmp_path, tiny_model, labelled_rows, callbacks=[Wrong(hook, decision)])


class Asking(Callback):
    """Evaluates, saves and logs in mid-epoch."""

    metric_names = ("mine",)

    def on_train_batch_end(self, state):
        if state.global_step == 2:
            return [Save(), Evaluate(), LogMetrics({"mine": 7.0})]
        return None

    def on_train_epoch_end(self, state):
        return LogMetrics({"mine": 1.0})


def test_a_callback_can_evaluate_save_and_log(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        tiny_model,
        labelled_rows,
        epochs=1,
        callbacks=[
            Asking(),
            EvaluationCallback(labelled_rows[:40], labelled_rows[40:]),
            BestModelCheckpoint("mine", mode="max"),
        ],
    )
    evaluated = [e for e in run._record.events() if isinstance(e, EvaluationEnded)]
    assert [(e.when, e.global_step) for e in evaluated] == [
        ("before", 0),
        ("step", 2),
        ("epoch", 3),
    ]
    assert checkpoints(run)[0] == "epoch-0000-step-000002"
    best = json.loads(Path(run.artifact_id, "ftray.json").read_text())["best"]
    assert (best["value"], best["global_step"]) == (7.0, 2)


class FailingLogger(Logger):
    def __init__(self):
        self.calls = 0

    def on_train_batch_end(self, state):
        self.calls += 1
        raise OSError("the disk of the logger is full")


def test_a_failing_logger_is_a_warning_and_the_run_goes_on(tmp_path, tiny_model, labelled_rows):
    logger = FailingLogger()
    run = fit(tmp_path, tiny_model, labelled_rows, callbacks=[logger])
    assert run.status() == "FINISHED" and logger.calls == 1
    warnings = [
        e.message
        for e in run._record.events()
        if isinstance(e, Log) and e.level == "WARNING" and "logger" in e.message
    ]
    (line,) = warnings
    assert "FailingLogger.on_train_batch_end failed: OSError: the disk" in line


class Ends(Callback):
    def __init__(self, fails_at=None, stops_at=None):
        self.seen: list[Any] = []
        self.fails_at, self.stops_at = fails_at, stops_at

    def on_train_batch_end(self, state):
        if state.global_step == self.fails_at:
            raise ValueError("no good")
        return Stop("enough") if state.global_step == self.stops_at else None

    def on_fit_end(self, state):
        self.seen.append("fit_end")

    def on_exception(self, state, exception):
        self.seen.append(type(exception).__name__)

    def on_run_end(self, state, status):
        artifact = Path(state.run_path, "artifact/ftray.json").exists()
        self.seen.append((status, artifact))


def test_every_callback_hears_how_the_run_ended(tmp_path, tiny_model, labelled_rows):
    good, stopped, bad, other = Ends(), Ends(stops_at=2), Ends(fails_at=2), Ends()
    fit(tmp_path, tiny_model, labelled_rows, callbacks=[good])
    fit(tmp_path, tiny_model, labelled_rows, callbacks=[stopped])
    with pytest.raises(RunFailedError, match=r"Ends\.on_train_batch_end failed.*no good"):
        fit(tmp_path, tiny_model, labelled_rows, callbacks=[bad, other])
    assert good.seen == stopped.seen == ["fit_end", ("FINISHED", True)]
    assert bad.seen == other.seen == ["RunFailedError", ("FAILED", False)]


def test_all_orders_of_three_callbacks_give_the_same_record(tmp_path, tiny_model, labelled_rows):
    from itertools import permutations

    records = []
    for order in permutations(range(3)):
        callbacks = [
            EvaluationCallback(labelled_rows[:40], labelled_rows[40:]),
            BestModelCheckpoint("ndcg_at_k"),
            EarlyStopping("ndcg_at_k", patience=1, min_delta=0.05),
        ]
        run = fit(
            tmp_path,
            tiny_model,
            labelled_rows,
            epochs=4,
            run_name=f"order-{order[0]}{order[1]}{order[2]}",
            callbacks=[callbacks[i] for i in order],
        )
        records.append([told for e in run._record.events() if (told := _told(e, run)) is not None])
    for record in records[1:]:
        assert record == records[0]
    assert len(records[0]) > 20


TIMED = ("Time:", "Evaluated ", "Training [", "This will take", "Finetuning took")


def _told(event: Any, run: Any) -> Any:
    """What does not hang on the clock or on the run's own name."""
    values = json.loads(event.to_json())
    if values["kind"] == "log" and values["message"].startswith(TIMED):
        return None
    for name in ("time_s", "seconds", "wall_s", "data_s", "step_s"):
        values.pop(name, None)
    return json.loads(json.dumps(values).replace(run.name, "RUN"))
