"""Averages, frozen models, adapters and batch sizes on two Ray workers; cut off, and going on.

One Ray session and six fits on it. What they are compared with is a fit in this process where that
is enough, for it costs no start-up.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ftray
from ftray.callbacks import Callback, EvaluationCallback
from ftray.callbacks.base import Save
from ftray.events import Event, FitEnded, FitStarted, RankStep, StepEnded
from ftray.models.text import TextEncoder

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Rows = list[dict[str, str]]

AVERAGED: dict[str, Any] = {
    "loss": "ArcFaceLoss",
    "ema_decay": 0.5,
    "loss_optimizer": "SGD",
    "loss_optimizer_options": {"lr": 0.1, "momentum": 0.9},
    "optimizer_options": {"layer_wise_lr_decay": 0.5},
    "scheduler_options": {"scheduler_step": "epoch"},
    "batch_size": 16,
    "epochs": 3,
}
HEAD: dict[str, Any] = {
    "freeze": True,
    "output_dim": 16,
    "optimizer": "SGD",  # small differences stay small; the momentum is to be continued
    "optimizer_options": {"momentum": 0.9},
    "learning_rate": 0.1,
    "epochs": 4,
}
ADAPTERS: dict[str, Any] = {
    "lora": {"r": 4, "target_modules": ["query", "value"]},
    "learning_rate": 1e-2,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("surgery")


def fit(folder: Path, model: Path, rows: Rows, **fields: Any) -> ftray.Run:
    given = {
        "model": str(model),
        "train_data": rows,
        "loss": "SupConLoss",
        "batch_size": 32,
        "learning_rate": 1e-3,
        "num_workers": 2,
        "device": "cpu",
        "storage_path": str(folder / "runs"),
        **fields,
    }
    return ftray.fit(listeners=[], **given)


def events(run: ftray.Run, kind: type[Event]) -> list[Any]:
    return [event for event in run._record.events() if isinstance(event, kind)]


def losses(run: ftray.Run) -> list[float]:
    return [event.loss for event in events(run, StepEnded)]


def tensors(folder: Path | str) -> dict[str, Tensor]:
    """All tensors in a folder, by file and name."""
    return {
        f"{file.relative_to(folder)}/{name}": tensor
        for file in sorted(Path(folder).rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def unequal(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    assert first and first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


# ---------------------------------------------------------------- an average, and the loss's own


class SaveAndDie(Callback):
    """Saves in mid-epoch; three steps later rank 0 kills its own process, once."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_train_batch_end(self, state: Any) -> Any:
        saved = state.steps_per_epoch + 2
        if state.global_step == saved + 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Save() if state.global_step == saved else None


def test_a_lost_worker_changes_no_bit_of_averages_and_of_the_losss_own_weights(
    session: None, folder: Path, dropout_model: Path, labelled_rows: Rows
) -> None:
    given = (folder, dropout_model, labelled_rows)
    marker = folder / "died"
    cut = fit(*given, run_name="cut", callbacks=[SaveAndDie(marker)], **AVERAGED)
    assert marker.exists()
    whole = fit(*given, run_name="whole", callbacks=[SaveAndDie(marker)], **AVERAGED)
    assert "Workers were lost" in cut.logs() and "Workers were lost" not in whole.logs()
    assert "Continuing from checkpoint epoch-0001-step-000002" in cut.logs()
    assert events(whole, FitStarted)[-1].world_size == 2
    assert losses(cut) == losses(whole)
    assert not unequal(tensors(cut.artifact_id), tensors(whole.artifact_id))
    ends = [tensors(f"{run.path}/checkpoints/epoch-0003") for run in (cut, whole)]
    files = {name.split("/")[0] for name in ends[0]}
    trained = {"model", "average", "loss", "optimizer", "loss_optimizer"}
    assert files == {f"{name}.safetensors" for name in trained}
    assert not unequal(*ends)
    prefix = "average.safetensors/"
    averages = {name.removeprefix(prefix): t for name, t in ends[0].items() if prefix in name}
    assert any(not torch.equal(t, ends[0][f"model.safetensors/{n}"]) for n, t in averages.items())


# ---------------------------------------------------------------- a frozen model with a head


class EncodesNoMore(Callback):
    """Once the fit has begun, rank 0 fails where the frozen model is asked again."""

    def on_fit_begin(self, state: Any) -> None:
        def refuse(self: Any, inputs: Any) -> Any:
            raise RuntimeError("encoded again, once the fit has begun")

        TextEncoder.first_part = TextEncoder.encode = refuse  # type: ignore[method-assign]


class AskToStop(Callback):
    """Asks from within to stop as others do from outside, once, and waits to be heard."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker
        self.asked = False

    def on_train_batch_end(self, state: Any) -> None:
        if state.global_step == state.steps_per_epoch + 1 and not self.marker.exists():
            self.marker.touch()
            self.asked = True
            ftray.get_run(state.run_path).stop()
        if self.asked:
            time.sleep(1.5)


def test_a_head_goes_on_after_a_stop_and_what_is_frozen_is_encoded_once(
    session: None, folder: Path, dropout_model: Path, labelled_rows: Rows
) -> None:
    def evaluation() -> EvaluationCallback:
        return EvaluationCallback(labelled_rows[:20], labelled_rows[20:])

    here = fit(
        folder / "here",
        dropout_model,
        labelled_rows,
        num_workers=0,
        callbacks=[evaluation()],
        **HEAD,
    )
    fields = {
        **HEAD,
        "run_name": "head",
        "callbacks": [evaluation(), EncodesNoMore(), AskToStop(folder / "asked")],
    }
    stopped = fit(folder, dropout_model, labelled_rows, **fields)
    done = len(losses(stopped))
    assert stopped.status() == "STOPPED" and 0 < done < len(losses(here))
    run = fit(folder, dropout_model, labelled_rows, resume="must", **fields)
    assert run.status() == "FINISHED" and run.path == stopped.path
    assert re.search(rf"Continuing from checkpoint epoch-\S+ \(step {done}\)", run.logs())

    texts = len({row["text"] for row in labelled_rows})
    told = f"Frozen: {texts} texts of the training data are encoded once"
    assert (here.logs().count(told), run.logs().count(told)) == (1, 2), "once by each attempt"
    assert {event.processed_tokens for event in events(run, StepEnded)} == {0}, "on any rank"
    assert events(run, FitEnded)[-1].seconds["frozen weights"] > 0

    assert losses(run) == pytest.approx(losses(here), abs=1e-5)
    for side in ("before", "after"):
        assert run.metrics()[side] == pytest.approx(here.metrics()[side], abs=1e-5)
    ours, theirs = tensors(run.artifact_id), tensors(here.artifact_id)
    different = set(unequal(ours, theirs))
    head = {name for name in ours if ours[name].shape[0] == HEAD["output_dim"]}
    assert len(ours) > len(head) > 0 and different <= head
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in head)
    base = tensors(dropout_model)
    assert all(torch.equal(ours[name], base[name]) for name in base)


# ---------------------------------------------------------------- adapters, and a batch size


class KeepStart(Callback):
    """Writes the weights that training begins with."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_fit_begin(self, state: Any) -> None:
        save_file(state.weights(), self.file)


@pytest.fixture(scope="module")
def adapted(session: None, folder: Path, tiny_model: Path, labelled_rows: Rows) -> ftray.Run:
    return fit(folder, tiny_model, labelled_rows, run_name="adapted", **ADAPTERS)


def continued(folder: Path, model: Path, rows: Rows, first: ftray.Run, **fields: Any) -> ftray.Run:
    artifact = first.artifact_id
    return fit(
        folder, model, rows, model_artifact=artifact, log_rows=True, **{**ADAPTERS, **fields}
    )


@pytest.fixture(scope="module")
def many_rows(labelled_rows: Rows) -> Rows:
    return [
        {**row, "text": f"{row['text']} {word}"} for word in ("a", "the") for row in labelled_rows
    ]


@pytest.fixture(scope="module")
def again(folder: Path, tiny_model: Path, many_rows: Rows, adapted: ftray.Run) -> ftray.Run:
    fields = {
        "epochs": 2,
        "batch_size": "auto",
        "callbacks": [KeepStart(folder / "start.safetensors")],
    }
    return continued(folder, tiny_model, many_rows, adapted, run_name="again", **fields)


def test_adapters_go_on_from_the_artifact_of_a_fit_with_adapters(
    folder: Path, tiny_model: Path, adapted: ftray.Run, again: ftray.Run
) -> None:
    first = adapted.artifact_id
    assert f"It begins with the weights of {first} of the run 'adapted'" in again.logs()
    base, artifact = (load_file(f"{at}/model.safetensors") for at in (tiny_model, first))
    assert len(unequal(base, artifact)) == 4, "query and value of two layers"
    start = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in load_file(folder / "start.safetensors").items()
    }
    for name, tensor in artifact.items():
        (found,) = (start[known] for known in start if known.endswith(f".{name}"))
        assert torch.equal(found, tensor), name
    new = [tensor for name, tensor in start.items() if ".lora_B." in name]
    assert len(new) == 4 and not any(tensor.any() for tensor in new)
    assert len(unequal(artifact, load_file(f"{again.artifact_id}/model.safetensors"))) == 4


def test_two_workers_train_with_the_batch_size_that_was_found(
    folder: Path, tiny_model: Path, many_rows: Rows, adapted: ftray.Run, again: ftray.Run
) -> None:
    """Also: both have the weights of the artifact, or the losses were others than here."""
    found = re.search(r"batch_size is (\d+), found in .* that it may take", again.logs())
    assert found is not None
    size = int(found[1])
    assert size == 128, "the most that 192 rows give"
    started = events(again, FitStarted)[-1]
    assert (started.world_size, started.batch_size) == (2, size)
    assert {event.rows for event in events(again, StepEnded)} == {size}
    shares = events(again, RankStep)
    assert {event.rank for event in shares} == {0, 1} and all(event.items for event in shares)
    here = continued(
        folder,
        tiny_model,
        many_rows,
        adapted,
        num_workers=0,
        run_name="here",
        epochs=2,
        batch_size=size,
    )
    assert losses(again) == pytest.approx(losses(here), abs=1e-5)
