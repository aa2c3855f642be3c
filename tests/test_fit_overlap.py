"""Evaluation that overlaps training comes to the decisions of one that does not.

In this process the evaluation runs in a thread; tests/cluster/test_ray_overlap.py has the actors.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ftray
from ftray.callbacks import BestModelCheckpoint, Callback, EarlyStopping, EvaluationCallback
from ftray.callbacks.base import FINETUNER_HOOKS, LogMetrics
from ftray.errors import RunFailedError
from ftray.events import EvaluationEnded, StepEnded, StepsDiscarded
from ftray.training import overlap

SLOW_S = 0.15


@pytest.fixture
def slow_evaluation(monkeypatch):
    """Results come several steps, even epochs, after they were asked for."""
    evaluate = overlap.SnapshotEvaluator.__call__

    def slowly(self, *arguments):
        time.sleep(SLOW_S)
        return evaluate(self, *arguments)

    monkeypatch.setattr(overlap.SnapshotEvaluator, "__call__", slowly)


def fit(folder: Path, model: Path, rows: list[dict[str, str]], *, overlapped: bool, **fields: Any):
    options = {"overlap": overlapped, **fields.pop("evaluation", {})}
    fields = {
        "loss": "SupConLoss",
        "epochs": 6,
        "batch_size": 32,
        "learning_rate": 2e-3,
        "callbacks": [],
        **fields,
    }
    fields["callbacks"] = [
        *fields["callbacks"],
        EvaluationCallback(rows[:40], rows[40:], **options),
    ]
    return ftray.fit(
        listeners=[],
        model=str(model),
        train_data=rows,
        num_workers=0,
        storage_path=str(folder),
        run_name="overlapped" if overlapped else "blocking",
        **fields,
    )


def both(folder: Path, model: Path, rows: list[dict[str, str]], callbacks: Any, **fields: Any):
    return [
        fit(folder, model, rows, overlapped=overlapped, callbacks=callbacks(), **fields)
        for overlapped in (False, True)
    ]


def evaluations(run) -> dict[int, dict[str, float]]:
    found = [e for e in run._record.events() if isinstance(e, EvaluationEnded)]
    return {e.global_step: e.metrics for e in found}


def artifact(run) -> dict[str, Any]:
    return json.loads(Path(run.artifact_id, "ftray.json").read_text())


def assert_same_run(blocking, overlapped) -> None:
    first, second = evaluations(blocking), evaluations(overlapped)
    assert list(first) == list(second)
    for step, metrics in first.items():
        assert second[step] == pytest.approx(metrics, abs=1e-6), step
    one, two = artifact(blocking), artifact(overlapped)
    assert (one["global_step"], one["metrics"]) == (
        two["global_step"],
        pytest.approx(two["metrics"], abs=1e-6),
    )
    keys = ("name", "value", "epoch", "global_step")
    if one["best"] is None:
        assert two["best"] is None
    else:
        wanted = {key: one["best"][key] for key in keys}
        assert {key: two["best"][key] for key in keys} == pytest.approx(wanted)
    weights = [load_file(f"{run.artifact_id}/model.safetensors") for run in (blocking, overlapped)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert overlapped.metrics()["after"] == pytest.approx(blocking.metrics()["after"], abs=1e-6)
    assert overlapped.metrics()["before"] == pytest.approx(blocking.metrics()["before"], abs=1e-6)


def steps(run) -> list[int]:
    return [e.global_step for e in run._record.events() if isinstance(e, StepEnded)]


def test_results_are_those_of_a_run_that_waits(
    tmp_path, tiny_model, labelled_rows, slow_evaluation
):
    runs = both(
        tmp_path, tiny_model, labelled_rows, lambda: [BestModelCheckpoint("average_precision")]
    )
    assert_same_run(*runs)
    assert steps(runs[1]) == steps(runs[0])
    found = [e for e in runs[1]._record.events() if isinstance(e, EvaluationEnded)]
    assert found and all(e.overlapped for e in found)


def test_training_goes_on_meanwhile(tmp_path, tiny_model, labelled_rows, slow_evaluation):
    run = fit(tmp_path, tiny_model, labelled_rows, overlapped=True)
    events = list(run._record.all_events())
    late = [
        i
        for i, event in enumerate(events)
        if isinstance(event, EvaluationEnded)
        and any(isinstance(e, StepEnded) and e.global_step > event.global_step for e in events[:i])
    ]
    assert late


@pytest.mark.parametrize("patience", [1, 2])
def test_a_stop_that_comes_late_is_one_at_its_own_step(
    tmp_path, tiny_model, labelled_rows, slow_evaluation, patience
):
    """What was trained beyond is discarded: the kept weights of the stop's step stand."""
    runs = both(
        tmp_path,
        tiny_model,
        labelled_rows,
        lambda: [EarlyStopping("average_precision", patience=patience, baseline=2.0)],
        epochs=9,
    )
    assert_same_run(*runs)
    assert steps(runs[1]) == steps(runs[0]) == list(range(1, 3 * patience + 1))
    trained = [e.global_step for e in runs[1]._record.all_events() if isinstance(e, StepEnded)]
    assert max(trained) > 3 * patience, "nothing overlapped"
    assert [e for e in runs[1]._record.all_events() if isinstance(e, StepsDiscarded)]
    assert f"{9 - patience} of 9 epochs saved" in runs[1].logs()
    left = os.listdir(f"{runs[1].path}/checkpoints")
    assert max(left) == f"epoch-{patience:04d}"


def test_stop_and_best_model_together(tmp_path, tiny_model, labelled_rows, slow_evaluation):
    runs = both(
        tmp_path,
        tiny_model,
        labelled_rows,
        lambda: [
            EarlyStopping("hit_at_k", patience=1, min_delta=0.2),
            BestModelCheckpoint("average_precision"),
        ],
        epochs=9,
    )
    assert_same_run(*runs)


@pytest.mark.parametrize("overlapped", [False, True])
def test_an_evaluation_in_mid_epoch_can_be_the_best_and_stop_the_run(
    tmp_path, tiny_model, labelled_rows, slow_evaluation, overlapped
):
    run = fit(
        tmp_path,
        tiny_model,
        labelled_rows,
        overlapped=overlapped,
        evaluation={"steps_per_interval": 2},
        callbacks=[
            BestModelCheckpoint("average_precision"),
            EarlyStopping("average_precision", patience=3, baseline=2.0),
        ],
    )
    # steps 2, 3 (end of an epoch), 4: three evaluations without improvement
    assert list(evaluations(run)) == [0, 2, 3, 4]
    assert steps(run) == [1, 2, 3, 4]
    assert "for 3 evaluations" in run.logs()
    assert "counts evaluations" in run.logs()
    best = max((m["average_precision"], -s) for s, m in list(evaluations(run).items())[1:])
    assert artifact(run)["global_step"] == -best[1]
    values = evaluations(run)[artifact(run)["global_step"]]
    assert run.metrics()["after"] == pytest.approx(values)


class Slowly(Callback):
    """The best weights are those in mid-epoch."""

    metric_names = ("score",)

    def on_evaluation_end(self, state, result):
        return LogMetrics({"score": 1.0 if result.global_step == 2 else 0.0})


def test_mid_epoch_weights_that_are_best_are_in_the_artifact(
    tmp_path, tiny_model, labelled_rows, slow_evaluation
):
    runs = both(
        tmp_path,
        tiny_model,
        labelled_rows,
        lambda: [BestModelCheckpoint("score"), Slowly()],
        epochs=3,
        evaluation={"steps_per_interval": 2},
    )
    assert_same_run(*runs)
    assert artifact(runs[1])["best"]["name"] == "epoch-0000-step-000002"


class Trace(Callback):
    def __init__(self):
        self.hooks = []

    def __getattribute__(self, name):
        if name in FINETUNER_HOOKS:
            return lambda state, *rest: self.hooks.append(name)
        return super().__getattribute__(name)


def test_the_trace_of_hooks_is_the_same(tmp_path, tiny_model, labelled_rows, slow_evaluation):
    traces = [Trace(), Trace()]
    for trace, overlapped in zip(traces, (False, True), strict=True):
        fit(tmp_path, tiny_model, labelled_rows, overlapped=overlapped, callbacks=[trace])
    assert traces[0].hooks == traces[1].hooks


def test_an_evaluation_that_fails_meanwhile_fails_the_run(
    tmp_path, tiny_model, labelled_rows, monkeypatch
):
    def broken(self, *arguments):
        raise ValueError("no disk")

    monkeypatch.setattr(overlap.SnapshotEvaluator, "__call__", broken)
    with pytest.raises((RunFailedError, ValueError), match="no disk"):
        fit(tmp_path, tiny_model, labelled_rows, overlapped=True)
    assert ftray.get_run("overlapped", storage_path=str(tmp_path)).status() == "FAILED"


def test_training_waits_where_results_are_too_slow(
    tmp_path, tiny_model, labelled_rows, monkeypatch
):
    monkeypatch.setattr(overlap, "MAX_WAITING", 1)
    started = []
    evaluate = overlap.SnapshotEvaluator.__call__

    def slowly(self, *arguments):
        started.append(time.monotonic())
        time.sleep(0.1)
        return evaluate(self, *arguments)

    monkeypatch.setattr(overlap.SnapshotEvaluator, "__call__", slowly)
    run = fit(tmp_path, tiny_model, labelled_rows, overlapped=True, epochs=4)
    assert len(started) == len(evaluations(run)) == 5


KILLED = """
    import json, os, sys, time, ftray
    from ftray.callbacks import BestModelCheckpoint, Callback, EarlyStopping, EvaluationCallback
    from ftray.training import overlap

    evaluate = overlap.SnapshotEvaluator.__call__
    def slowly(self, *arguments):
        time.sleep(0.3)
        return evaluate(self, *arguments)
    overlap.SnapshotEvaluator.__call__ = slowly

    class Crash(Callback):
        def on_train_batch_end(self, state):
            if state.global_step == int(sys.argv[4]):
                os._exit(9)

    rows = json.load(open(sys.argv[2]))
    ftray.fit(listeners=[], model=sys.argv[1], train_data=rows, loss="SupConLoss", epochs=6,
              batch_size=32, num_workers=0, learning_rate=2e-3, storage_path=sys.argv[3],
              run_name="run", resume="auto", callbacks=[
                  BestModelCheckpoint("average_precision"),
                  EarlyStopping("average_precision", patience=3, baseline=2.0),
                  EvaluationCallback(rows[:40], rows[40:], overlap=True), Crash()])
"""


def test_a_killed_run_evaluates_anew_what_was_under_way(tmp_path, tiny_model, labelled_rows):
    (tmp_path / "rows.json").write_text(json.dumps(labelled_rows))

    def run(storage: str, crash_at: int) -> int:
        program = [sys.executable, "-c", textwrap.dedent(KILLED), str(tiny_model)]
        arguments = [str(tmp_path / "rows.json"), str(tmp_path / storage), str(crash_at)]
        return subprocess.run([*program, *arguments], check=False).returncode

    assert run("whole", -1) == 0
    assert run("killed", 8) == 9  # the results of the first epochs are not in
    state = json.loads(
        Path(tmp_path, "killed/default/run/checkpoints/epoch-0002/state.json").read_text()
    )
    assert state["points"], "the test is to kill a run with evaluations under way"
    assert run("killed", -1) == 0
    runs = [ftray.get_run("run", storage_path=str(tmp_path / n)) for n in ("whole", "killed")]
    assert_same_run(*runs)
    shutil.rmtree(tmp_path / "killed")
