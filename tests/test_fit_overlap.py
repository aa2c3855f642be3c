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
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ftray
from ftray.callbacks import (
    BestModelCheckpoint,
    Callback,
    EarlyStopping,
    Evaluate,
    EvaluationCallback,
    Interpolation,
    LogMetrics,
    Save,
    Stop,
    TrainingCheckpoint,
    WiSEFTCallback,
)
from ftray.callbacks.base import FINETUNER_HOOKS
from ftray.errors import RunFailedError
from ftray.events import EvaluationEnded, StepEnded, StepsDiscarded
from ftray.training import judge, overlap
from ftray.training.judge import Judge

LAG = 4


@pytest.fixture
def lag(monkeypatch):
    """Results come exactly so many steps after their own step, however fast they are made.

    At the end of a run, and where training waits for room, they come at once.
    """
    later = {"steps": LAG}
    now = [0]
    receive = Judge.receive

    def receive_late(self, wait_s=0.0):
        now[0] = self._position.global_step if wait_s == 0 else sys.maxsize
        self._runtime.evaluator.due = {
            ticket: point.global_step + later["steps"]
            for ticket, (point, _) in self.queue._tickets.items()
        }
        receive(self, wait_s)

    def finished(self, wait_s=0.0):
        due = [f for f, ticket in self._waiting.items() if self.due.get(ticket, 0) <= now[0]]
        wait(due)
        return [(self._waiting.pop(future), future.result()) for future in due]

    monkeypatch.setattr(Judge, "receive", receive_late)
    monkeypatch.setattr(overlap.ThreadEvaluator, "finished", finished)
    monkeypatch.setattr(judge, "MAX_WAITING", 99)

    def set_steps(steps: int) -> None:
        later["steps"] = steps

    return set_steps


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


def test_results_are_those_of_a_run_that_waits(tmp_path, tiny_model, labelled_rows, lag):
    runs = both(
        tmp_path, tiny_model, labelled_rows, lambda: [BestModelCheckpoint("average_precision")]
    )
    assert_same_run(*runs)
    assert steps(runs[1]) == steps(runs[0])
    found = [e for e in runs[1]._record.events() if isinstance(e, EvaluationEnded)]
    assert found and all(e.overlapped for e in found)


def test_training_goes_on_meanwhile(tmp_path, tiny_model, labelled_rows, lag):
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
    tmp_path, tiny_model, labelled_rows, lag, patience
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


def test_stop_and_best_model_together(tmp_path, tiny_model, labelled_rows, lag):
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
    tmp_path, tiny_model, labelled_rows, lag, overlapped
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


class BestInMidEpoch(Callback):
    """Scores the second step highest."""

    metric_names = ("score",)

    def on_evaluation_end(self, state, result):
        return LogMetrics({"score": 1.0 if result.global_step == 2 else 0.0})


def test_mid_epoch_weights_that_are_best_are_in_the_artifact(
    tmp_path, tiny_model, labelled_rows, lag
):
    runs = both(
        tmp_path,
        tiny_model,
        labelled_rows,
        lambda: [BestModelCheckpoint("score"), BestInMidEpoch()],
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


def test_the_trace_of_hooks_is_the_same(tmp_path, tiny_model, labelled_rows, lag):
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
    monkeypatch.setattr(judge, "MAX_WAITING", 1)
    waiting = []
    evaluate = overlap.SnapshotEvaluator.__call__
    submit = overlap.ThreadEvaluator.submit

    def slowly(self, *arguments):
        time.sleep(0.1)
        return evaluate(self, *arguments)

    def counted(self, *arguments):
        submit(self, *arguments)
        waiting.append(len(self._waiting))

    monkeypatch.setattr(overlap.SnapshotEvaluator, "__call__", slowly)
    monkeypatch.setattr(overlap.ThreadEvaluator, "submit", counted)
    run = fit(tmp_path, tiny_model, labelled_rows, overlapped=True, epochs=4)
    assert len(evaluations(run)) == 5
    assert waiting == [1] * 5


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


@pytest.mark.slow
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


class UserStop(Callback):
    def on_train_batch_end(self, state):
        return Stop("enough") if state.global_step == 5 else None


class StopsOnResult(Callback):
    def on_evaluation_end(self, state, result):
        return Stop("good") if result.when == "epoch" and result.epoch == 1 else None


class Counts(Callback):
    """Hears results, and keeps them."""

    def __init__(self):
        self.heard = []

    def on_evaluation_end(self, state, result):
        self.heard.append(result.global_step)

    def state_dict(self):
        return {"heard": self.heard}

    def load_state_dict(self, state):
        self.heard = state["heard"]


class LogsOnResult(Callback):
    metric_names = ("mine",)

    def on_evaluation_end(self, state, result):
        return LogMetrics({"mine": float(result.global_step)}) if result.epoch != 1 else None


class EvaluatesAgain(Callback):
    """Asks for other weights when it hears of a result."""

    def on_evaluation_end(self, state, result):
        if result.when == "epoch" and result.alpha is None:
            return Evaluate(weights=Interpolation(0.5))
        return None


def several(rows, overlapped: bool) -> list[Callback]:
    return [
        EvaluationCallback(rows[:40], rows[40:], caption="a", overlap=overlapped),
        EvaluationCallback(
            rows[:40], rows[40:], caption="b", overlap=overlapped, steps_per_interval=2
        ),
    ]


def one_of_two(rows, overlapped: bool) -> list[Callback]:
    first, second = several(rows, overlapped)
    second.overlap = False
    return [first, second]


def lone(rows, overlapped: bool, **options: Any) -> list[Callback]:
    return [EvaluationCallback(rows[:40], rows[40:], overlap=overlapped, **options)]


def stopping(monitor: str = "average_precision", patience: int = 2) -> EarlyStopping:
    return EarlyStopping(monitor, patience=patience, mode="max", baseline=2.0)


CASES: dict[str, Any] = {
    "a user stops": lambda r, o: [UserStop(), BestModelCheckpoint("hit_at_k"), *lone(r, o)],
    "a user stops, no best": lambda r, o: [UserStop(), *lone(r, o)],
    "a user stops, after an early stop": lambda r, o: [
        UserStop(),
        stopping(patience=1),
        *lone(r, o),
    ],
    "validation loss beside": lambda r, o: [
        EarlyStopping("val_loss", patience=1, baseline=-1.0),
        BestModelCheckpoint("val_loss"),
        *lone(r, o),
    ],
    "two evaluations": lambda r, o: [
        stopping("b_hit_at_k"),
        BestModelCheckpoint("a_average_precision"),
        *several(r, o),
    ],
    "one of two overlaps": lambda r, o: [
        stopping("b_hit_at_k"),
        BestModelCheckpoint("b_average_precision"),
        *one_of_two(r, o),
    ],
    "every step": lambda r, o: [
        stopping(patience=3),
        BestModelCheckpoint("hit_at_k"),
        *lone(r, o, steps_per_interval=1),
    ],
    "interpolated": lambda r, o: [
        stopping(),
        BestModelCheckpoint("average_precision", mode="min"),
        WiSEFTCallback([0.0, 0.5, 1.0]),
        *lone(r, o),
    ],
    "a result stops": lambda r, o: [StopsOnResult(), *lone(r, o)],
    "a result logs": lambda r, o: [
        EarlyStopping("mine", patience=2, mode="min", baseline=4.0),
        LogsOnResult(),
        *lone(r, o),
    ],
    "a result asks": lambda r, o: [EvaluatesAgain(), stopping(), *lone(r, o)],
}


def story(run) -> dict[str, Any]:
    facts = artifact(run)
    found = [e for e in run._record.events() if isinstance(e, EvaluationEnded)]
    return {
        "status": run.status(),
        "steps": steps(run),
        "artifact": (
            facts["global_step"],
            facts["weights"],
            facts["best"] and facts["best"]["name"],
        ),
        "metrics": {k: round(v, 6) for k, v in sorted(facts["metrics"].items())},
        "evaluations": sorted(
            (e.name, e.when, e.global_step, e.weights, round(sum(e.metrics.values()), 5))
            for e in found
        ),
        "after": {k: round(v, 6) for k, v in sorted(run.metrics()["after"].items())},
    }


def told(folder: Path, model: Any, rows, callbacks: list[Callback], **fields: Any):
    return ftray.fit(
        listeners=[],
        **{
            "model": str(model) if isinstance(model, Path) else model,
            "train_data": rows,
            "loss": "SupConLoss",
            "epochs": 5,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "num_workers": 0,
            "storage_path": str(folder),
            "callbacks": callbacks,
            **fields,
        },
    )


@pytest.mark.parametrize("steps_later", [1, 4])
@pytest.mark.parametrize("case", CASES)
def test_the_story_is_the_same_however_late_results_come(
    tmp_path, tiny_model, labelled_rows, lag, case, steps_later
):
    fields = {"eval_data": labelled_rows[64:]} if "loss" in case else {}
    lag(steps_later)
    runs = [
        told(tmp_path, tiny_model, labelled_rows, CASES[case](labelled_rows, overlapped), **fields)
        for overlapped in (False, True)
    ]
    assert story(runs[1]) == story(runs[0])


def test_callbacks_that_hear_results_keep_what_they_heard(tmp_path, tiny_model, labelled_rows, lag):
    counts = [Counts(), Counts()]
    for one, overlapped in zip(counts, (False, True), strict=True):
        told(
            tmp_path, tiny_model, labelled_rows, [one, stopping(), *lone(labelled_rows, overlapped)]
        )
    assert counts[1].heard == counts[0].heard == [0, 3, 6]


def test_the_last_epochs_before_a_late_stop_are_kept(tmp_path, tiny_model, labelled_rows, lag):
    lag(7)
    callbacks = [TrainingCheckpoint(3), stopping(patience=4), *lone(labelled_rows, True)]
    run = told(tmp_path, tiny_model, labelled_rows, callbacks, epochs=9)
    kept = sorted(n for n in os.listdir(f"{run.path}/checkpoints") if n.startswith("epoch"))
    assert kept[-3:] == ["epoch-0002", "epoch-0003", "epoch-0004"]


class Crash(Callback):
    def __init__(self, at: int | None) -> None:
        self.at = at

    def on_train_batch_begin(self, state):
        if state.global_step == self.at:
            raise ValueError("power cut")


@pytest.mark.parametrize("at", range(1, 9))
def test_a_run_cut_off_at_any_step_goes_on_to_the_same_end(
    tmp_path, tiny_model, labelled_rows, lag, at
):
    def callbacks(crash: int | None) -> list[Callback]:
        return [
            stopping(patience=3),
            BestModelCheckpoint("average_precision"),
            TrainingCheckpoint(2),
            Crash(crash),
            *lone(labelled_rows, True, steps_per_interval=2),
        ]

    whole = told(tmp_path / "whole", tiny_model, labelled_rows, callbacks(None), epochs=4)
    fields = {"epochs": 4, "run_name": "cut"}
    if at < max(e.global_step for e in whole._record.all_events() if isinstance(e, StepEnded)):
        with pytest.raises(RunFailedError, match="power cut"):
            told(tmp_path, tiny_model, labelled_rows, callbacks(at), **fields)
        fields["resume"] = "must"
    run = told(tmp_path, tiny_model, labelled_rows, callbacks(None), **fields)
    assert story(run) == story(whole)


class SavesAndEvaluates(Callback):
    def on_train_batch_end(self, state):
        return [Save(), Evaluate()] if state.global_step in (2, 4) else None


def test_a_checkpoint_that_is_asked_for_knows_what_was_judged(tmp_path, tiny_model, labelled_rows):
    def callbacks(crash: int | None) -> list[Callback]:
        return [
            stopping(patience=3),
            SavesAndEvaluates(),
            Crash(crash),
            *lone(labelled_rows, False),
        ]

    whole = told(tmp_path / "whole", tiny_model, labelled_rows, callbacks(None))
    with pytest.raises(RunFailedError, match="power cut"):
        told(tmp_path, tiny_model, labelled_rows, callbacks(2), run_name="cut")
    run = told(tmp_path, tiny_model, labelled_rows, callbacks(None), run_name="cut", resume="must")
    assert story(run) == story(whole)


def test_interpolation_of_a_model_object_reads_the_runs_own_copy(
    tmp_path, tiny_model, labelled_rows
):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    run = told(
        tmp_path,
        model,
        labelled_rows,
        [WiSEFTCallback(0.5), *lone(labelled_rows, True)],
        epochs=1,
    )
    assert artifact(run)["weights"] == "alpha 0.5"


def test_a_logged_value_that_is_no_number_names_the_callback(tmp_path, tiny_model, labelled_rows):
    class Wrong(Callback):
        def on_epoch_end(self, state):
            return LogMetrics({"x": None})

    with pytest.raises(RunFailedError, match=r"Wrong\.on_epoch_end logged x = None: a number"):
        told(tmp_path, tiny_model, labelled_rows, [Wrong()])


class EvaluatesAtTheEnd(Callback):
    """Asks when an epoch's metrics are judged already."""

    def on_epoch_end(self, state):
        return Evaluate(1)


def test_a_result_that_nobody_judges_is_waited_for_all_the_same(
    tmp_path, tiny_model, labelled_rows, lag
):
    class OnlyBefore(EvaluationCallback):
        def on_train_epoch_end(self, state):
            return None

    lag(9)
    rows = labelled_rows
    callbacks = [
        EvaluationCallback(rows[:40], rows[40:], caption="a"),
        OnlyBefore(rows[:40], rows[40:], caption="b", overlap=True),
        EvaluatesAtTheEnd(),
    ]
    run = told(tmp_path, tiny_model, rows, callbacks, epochs=2)
    found = [e for e in run._record.events() if isinstance(e, EvaluationEnded) and e.name == "b"]
    assert [(e.when, e.global_step) for e in found] == [("before", 0), ("epoch", 3), ("epoch", 6)]
