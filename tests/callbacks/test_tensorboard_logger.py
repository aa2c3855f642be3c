"""TensorBoardLogger, by the event files that TensorBoard reads."""

from __future__ import annotations

import os
import pickle
import shlex
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import ftray
from ftray.callbacks import EvaluationCallback, TensorBoardLogger
from ftray.callbacks.registry import resolve_callbacks
from ftray.callbacks.tracker import EXAMPLE_COLUMNS
from ftray.errors import ConfigError
from tests.callbacks.by_hand import (
    BY_BATCH,
    BY_EPOCH,
    ONCE_AN_EPOCH,
    evaluated,
    run_directory,
    state,
    whole_run,
)


def events(folder: Path) -> Iterator[Any]:
    """The events of a folder: records of (length, checksum, protobuf, checksum)."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.out.tfevents.*"), key=os.path.getmtime):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                point = (event.step, pytest.approx(value.simple_value))
                found.setdefault(value.tag, []).append(point)
    return found


def texts(folder: Path, name: str) -> list[str]:
    return [
        value.tensor.string_val[0].decode()
        for event in events(folder)
        for value in event.summary.value
        if value.tag.partition("/")[0] == name
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return run_directory(tmp_path)


@pytest.mark.parametrize(("step", "training"), [("epoch", BY_EPOCH), ("batch", BY_BATCH)])
def test_each_value_stands_at_its_step(path, step, training):
    whole_run(TensorBoardLogger(metrics_logger_step=step), path)
    found = scalars(path / "tensorboard")
    epochs = found.pop("epoch")
    assert found == {**ONCE_AN_EPOCH, **training}
    assert (epochs[0], epochs[-1]) == ((0, 0), (4, 2))


def test_options_and_examples_are_texts(path):
    whole_run(TensorBoardLogger(), path)
    (config,) = texts(path / "tensorboard", "config")
    assert yaml.safe_load(config)["miner_options"] == {"m": 0.1}
    assert all(line.startswith("    ") for line in config.splitlines())
    (examples,) = texts(path / "tensorboard", "examples")
    lines = examples.splitlines()
    assert lines[0] == f"| {' | '.join(EXAMPLE_COLUMNS)} |"
    assert lines[2] == "| before | which tree? | 1 | a \\| text at 0 | 0.5000 | yes |"
    assert lines[-1] == "| after epoch 2 | which tree? | 2 | other | 0.3500 | no |"


def test_interpolated_weights_stand_at_thousandths_of_alpha(path):
    logger = TensorBoardLogger()
    logger.on_fit_begin(state(path))
    for alpha in (0.0, 0.125, 1.0):
        result = evaluated(alpha / 2, "final", 4, alpha=alpha, weights=f"alpha {alpha:g}")
        logger.on_evaluation_end(state(path, 4), result)
    logger.on_run_end(state(path, 4), "FINISHED")
    found = scalars(path / "tensorboard")
    assert found == {"wise_ft/ndcg_at_k": [(0, 0.0), (125, 0.0625), (1000, 0.5)]}


def test_a_resumed_run_hides_what_a_lost_attempt_logged_beyond_the_checkpoint(path):
    from tensorboardX.proto.event_pb2 import SessionLog

    first, second = TensorBoardLogger(), TensorBoardLogger()
    first.on_fit_begin(state(path))
    first.on_train_epoch_end(state(path, 4, metrics={"train_loss": 1.0}))
    first.on_run_end(state(path, 4), "LOST")
    second.on_fit_begin(state(path, 2))
    second.on_train_epoch_end(state(path, 4, metrics={"train_loss": 2.0}))
    second.on_run_end(state(path, 4), "FINISHED")
    folder = path / "tensorboard"
    assert scalars(folder)["train/loss"] == [(4, 1.0), (4, 2.0)]
    restarts = [e.step for e in events(folder) if e.session_log.status == SessionLog.START]
    assert restarts == [3]
    assert len(texts(folder, "config")) == 1


@pytest.mark.parametrize("status", ["STOPPED", "FAILED", "LOST"])
def test_everything_is_in_the_files_however_the_run_ended(path, status):
    whole_run(TensorBoardLogger(metrics_logger_step="batch"), path, status)
    assert scalars(path / "tensorboard")["train/loss"] == BY_BATCH["train/loss"]


def test_an_end_without_a_beginning_is_nothing(path):
    TensorBoardLogger().on_run_end(state(path), "FAILED")
    assert not (path / "tensorboard").exists()


def test_the_folder_may_be_given_and_is_the_same_on_a_worker(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logger = TensorBoardLogger("boards/a b")
    assert TensorBoardLogger(Path("boards/a b")).log_dir == logger.log_dir
    monkeypatch.chdir("/")
    said = whole_run(pickle.loads(pickle.dumps(logger)), path)
    assert said.message == f"TensorBoard: tensorboard --logdir '{tmp_path}/boards/a b'"
    assert scalars(tmp_path / "boards/a b")["val/loss"] == ONCE_AN_EPOCH["val/loss"]
    assert not (path / "tensorboard").exists()


def test_a_run_directory_elsewhere_gets_a_folder_that_the_log_names(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    said = whole_run(TensorBoardLogger(), "mock:///runs/trees/oak-1")
    folder = Path(shlex.split(said.message)[-1])
    assert folder.is_relative_to(tmp_path)
    assert scalars(folder)["val/loss"] == ONCE_AN_EPOCH["val/loss"]


def test_a_configuration_file_may_name_it():
    (logger,) = resolve_callbacks([{"TensorBoardLogger": {"metrics_logger_step": "batch"}}])
    assert isinstance(logger, TensorBoardLogger) and logger.metrics_logger_step == "batch"
    with pytest.raises(ConfigError, match=r"no option 'logdir'\. Did you mean 'log_dir'"):
        resolve_callbacks([{"TensorBoardLogger": {"logdir": "x"}}])
    with pytest.raises(ConfigError, match=r"TensorBoardLogger.*Valid: 'batch', 'epoch'"):
        TensorBoardLogger(metrics_logger_step="step")  # type: ignore[arg-type]


def test_a_fit_is_logged_as_its_record_has_it(tmp_path, tiny_model, labelled_rows):
    run = ftray.fit(
        model=str(tiny_model),
        train_data=labelled_rows,
        val_split=0.25,
        loss="SupConLoss",
        epochs=2,
        batch_size=32,
        num_workers=0,
        storage_path=str(tmp_path / "runs"),
        callbacks=[
            TensorBoardLogger(metrics_logger_step="batch"),
            EvaluationCallback(labelled_rows[:40], labelled_rows[40:]),
        ],
        listeners=[],
    )
    assert run.status() == "FINISHED"
    found = scalars(Path(run.path, "tensorboard"))
    steps = [row for row in run.history().to_pylist() if row["kind"] == "step"]
    assert found["train/loss"] == [(row["global_step"], row["loss"]) for row in steps]
    assert [rate for _, rate in found["lr/decayed"]] == [row["learning_rate"] for row in steps]
    ranked = [found["metrics/ndcg_at_k"][i][1] for i in (0, -1)]
    assert ranked == [run.metrics()[side]["ndcg_at_k"] for side in ("before", "after")]
    assert len(found["val/loss"]) == 2
