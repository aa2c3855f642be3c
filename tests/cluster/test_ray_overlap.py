"""Overlapped evaluation in actors, hooks on rank 0, and what Ray's own record says of the best.

One Ray session for the module; each fit costs its start-up, so there are few.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ftray
from ftray.callbacks import (
    BestModelCheckpoint,
    Callback,
    EarlyStopping,
    EvaluationCallback,
    TrainingCheckpoint,
)
from ftray.callbacks.base import FINETUNER_HOOKS
from ftray.events import EvaluationEnded, StepEnded, StepsDiscarded

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def session():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("overlap")


def fit(folder: Path, model: Path, rows, callbacks, **fields: Any):
    return ftray.fit(
        listeners=[],
        **{
            "model": str(model),
            "train_data": rows,
            "loss": "SupConLoss",
            "epochs": 6,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "num_workers": 2,
            "storage_path": str(folder / "runs"),
            "callbacks": callbacks,
            **fields,
        },
    )


def callbacks(rows, *, overlap: bool) -> list[Callback]:
    return [
        EarlyStopping("average_precision", patience=3, baseline=2.0),
        BestModelCheckpoint("average_precision"),
        TrainingCheckpoint(2),
        EvaluationCallback(rows[:40], rows[40:], overlap=overlap),
    ]


def evaluations(run) -> dict[int, dict[str, float]]:
    found = [e for e in run._record.events() if isinstance(e, EvaluationEnded)]
    return {e.global_step: e.metrics for e in found}


def artifact(run) -> dict[str, Any]:
    return json.loads(Path(run.artifact_id, "ftray.json").read_text())


@pytest.fixture(scope="module")
def blocking(session, folder, tiny_model, labelled_rows):
    return fit(folder, tiny_model, labelled_rows, callbacks(labelled_rows, overlap=False))


@pytest.fixture(scope="module")
def overlapped(session, folder, tiny_model, labelled_rows):
    return fit(folder, tiny_model, labelled_rows, callbacks(labelled_rows, overlap=True))


def test_stop_and_best_model_are_those_of_a_run_that_waits(blocking, overlapped):
    assert_same(blocking, overlapped)
    assert "3 of 6 epochs saved" in overlapped.logs()


def assert_same(blocking, overlapped) -> None:
    one, two = evaluations(blocking), evaluations(overlapped)
    assert list(one) == list(two)
    for step, metrics in one.items():
        assert two[step] == pytest.approx(metrics, abs=1e-6)
    keys = ("name", "epoch", "global_step")
    bests = [{key: artifact(run)["best"][key] for key in keys} for run in (blocking, overlapped)]
    assert bests[0] == bests[1]
    weights = [load_file(f"{run.artifact_id}/model.safetensors") for run in (blocking, overlapped)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    steps = [
        [e.global_step for e in run._record.events() if isinstance(e, StepEnded)]
        for run in (blocking, overlapped)
    ]
    assert steps[0] == steps[1] == list(range(1, 10))


def test_training_went_on_meanwhile(overlapped):
    trained = [e for e in overlapped._record.all_events() if isinstance(e, StepEnded)]
    discarded = [e for e in overlapped._record.all_events() if isinstance(e, StepsDiscarded)]
    assert max(e.global_step for e in trained) > 9 and discarded


@pytest.mark.parametrize("which", ["blocking", "overlapped"])
def test_rays_own_record_names_our_best_checkpoint_and_it_is_there(which, request):
    """Of what Ray was told, the best and the newest must not be pruned."""
    import ray.train

    run = request.getfixturevalue(which)
    result = ray.train.Result.from_path(f"{run.path}/checkpoints")
    best = result.get_best_checkpoint("average_precision", "max")
    assert Path(best.path).name == artifact(run)["best"]["name"]
    assert Path(best.path, "model.safetensors").exists()
    assert Path(result.checkpoint.path, "model.safetensors").exists()
    assert {"epoch-0002", "epoch-0003"} <= set(os.listdir(f"{run.path}/checkpoints"))


class KillEvaluator(Callback):
    """Ends the process of the evaluation actor while it works."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_epoch_end(self, state):
        if state.epoch == 1 and not self.marker.exists():
            pids = _pids("EvaluatorActor")
            self.marker.write_text(str(pids))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)


def _pids(name: str) -> list[int]:
    """Processes of this session whose title holds the name."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if name in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_an_evaluator_that_dies_is_started_again(
    session, folder, tiny_model, labelled_rows, blocking
):
    marker = folder / "killed"
    run = fit(
        folder,
        tiny_model,
        labelled_rows,
        [*callbacks(labelled_rows, overlap=True), KillEvaluator(marker)],
    )
    assert marker.read_text() != "[]"
    assert_same(blocking, run)


class Trace(Callback):
    """Writes each hook of Finetuner's, and the process it runs in, to a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __getattribute__(self, name):
        if name in FINETUNER_HOOKS:
            return lambda state, *rest: self._note(name)
        return super().__getattribute__(name)

    def _note(self, hook: str) -> None:
        import ray.train

        rank = ray.train.get_context().get_world_rank()
        with self.file.open("a") as file:
            file.write(f"{hook} {rank}\n")


@pytest.mark.parametrize("validated", [True, False])
def test_hooks_fire_once_on_rank_0_in_finetuners_order(
    session, folder, tiny_model, labelled_rows, validated
):
    file = folder / f"trace-{validated}"
    fit(
        folder,
        tiny_model,
        labelled_rows[:64],
        [Trace(file)],
        epochs=2,
        sampler="random",
        eval_data=labelled_rows[64:96] if validated else None,
    )
    batch = ["on_train_batch_begin", "on_train_batch_end"]
    validation = ["on_val_begin", "on_val_batch_begin", "on_val_batch_end", "on_val_end"]
    epoch = ["on_epoch_begin", "on_train_epoch_begin", *batch * 2, "on_train_epoch_end"]
    epoch += [*(validation if validated else []), "on_epoch_end"]
    wanted = ["on_fit_begin", *epoch * 2, "on_fit_end"]
    assert file.read_text().splitlines() == [f"{hook} 0" for hook in wanted]
