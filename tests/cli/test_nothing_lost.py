"""What is on record stays, whatever happens: runs, checkpoints and data, byte for byte.

The mistakes themselves are in test_mistakes.py, whose `refused` compares every file as well; here
there are runs that could be lost, and runs that end before their time.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray.losses.metric import MetricLoss
from tests.cli.conftest import contents

STEPS = 3  # of an epoch: 96 rows, 32 a step


@contextmanager
def at_step(step: int, act: Callable[[Any], Any]) -> Iterator[None]:
    """Within it, the loss of the given step of a fit is what `act` makes of it."""
    forward, count = MetricLoss.forward, itertools.count(1)

    def counted(self: MetricLoss, *arguments: Any) -> Any:
        loss = forward(self, *arguments)
        return act(loss) if next(count) == step else loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricLoss, "forward", counted)
        yield


def record(folder: Path, name: str) -> Path:
    return folder / "runs" / "default" / name


def checkpoints(folder: Path, name: str) -> list[str]:
    return sorted(os.listdir(record(folder, name) / "checkpoints"))


def steps_on_record(name: str) -> list[int]:
    history = ftray.get_run(name).history()
    rows = zip(history["kind"].to_pylist(), history["global_step"].to_pylist(), strict=True)
    return [step for kind, step in rows if kind == "step"]


def weights(folder: Path, name: str) -> bytes:
    return (record(folder, name) / "artifact" / "model.safetensors").read_bytes()


def assert_still_there(before: dict[str, bytes | None]) -> None:
    """Files as they were; the log may have grown."""
    for path, data in before.items():
        now = Path(path).read_bytes() if data is not None else None
        grows = path.endswith("logs.txt")
        assert now == data or (grows and now is not None and now.startswith(data or b"")), path


# ------------------------------------------------------------------ runs that could be lost


@pytest.fixture
def half_done(cli, config, folder):
    """A run that Ctrl-C stopped in its second epoch, beside one that is finished."""
    assert cli("fit", config(run_name="done")).code == 0
    with at_step(STEPS + 2, press_ctrl_c):
        assert cli("fit", config(run_name="half", epochs=4)).code == 130
    return record(folder, "half")


def press_ctrl_c(loss):
    os.kill(os.getpid(), signal.SIGINT)
    return loss


OTHERWISE = [
    ({"epochs": 5}, "started with epochs = 4, not 5"),
    ({"loss": "TripletMarginLoss"}, "started with loss = 'SupConLoss', not 'TripletMarginLoss'"),
    ({"loss_options": {"temperature": 1.0}}, "started with loss_options = {}, not {'temp"),
    ({"batch_size": 16}, "started with batch_size = 32, not 16"),
    ({"learning_rate": 1e-4}, "started with learning_rate = 0.001, not 0.0001"),
    ({"optimizer": "SGD"}, "started with optimizer = 'AdamW', not 'SGD'"),
    ({"scheduler": "cosine"}, "started with scheduler = None, not 'cosine'"),
    ({"seed": 1}, "started with seed = 0, not 1"),
    ({"val_split": 0.25}, "started with val_split = 0.0, not 0.25"),
    ({"csv_options": {"size": 90}}, "started with csv_options = "),
    (
        {"callbacks": [{"EarlyStopping": {"monitor": "train_loss"}}]},
        "started with callbacks = none, not EarlyStopping",
    ),
]


def test_a_run_is_not_continued_with_another_config(refused, config, half_done):
    for resume in ("auto", "must"):
        for changed, said in OTHERWISE:
            fields = {"run_name": "half", "epochs": 4, "resume": resume, **changed}
            message = refused("fit", config(**fields))
            assert f"The run {half_done} was {said}" in message
            assert "a run continues with what it began with" in message


def test_a_run_is_not_continued_with_other_data_or_another_model(
    cli, refused, config, half_done, folder, labelled_csv, dropout_model
):
    same = {"run_name": "half", "epochs": 4, "resume": "auto"}
    lines = labelled_csv.read_text().splitlines()
    (folder / "train.csv").write_text("\n".join([*lines[:-1], "another text,c7"]) + "\n")
    message = refused("fit", config(**same, train_data="train.csv"))
    assert f"train_data is not what the run {half_done} was started with" in message
    message = refused("fit", config(**same, model=str(dropout_model)))
    assert "was started with model = " in message
    (folder / "train.csv").write_text("\n".join(lines) + "\n")  # the same data at another place
    assert cli("fit", config(**same, train_data="train.csv")).code == 0


def test_a_name_that_is_taken_leaves_both_runs_as_they_are(refused, config, half_done):
    for name in ("done", "half"):
        message = refused("fit", config(run_name=name, epochs=4))
        assert f"default/{name} exists. Give another run_name" in message
    message = refused("fit", config(run_name="done", resume="must"))
    assert "is FINISHED: there is nothing to continue" in message


def test_a_run_that_goes_on_is_not_started_twice(refused, config, half_done):
    status = json.loads((half_done / "status.json").read_text())
    status.update(status="STARTED", pid=os.getpid())
    (half_done / "status.json").write_text(json.dumps(status))
    message = refused("fit", config(run_name="half", epochs=4, resume="auto"))
    assert f"half is running (process {os.getpid()} on " in message
    assert "stop it first, or give another run_name" in message


def test_mistakes_beside_other_runs_leave_them_as_they_are(refused, config, half_done, unwritable):
    """`refused` compares every file of both runs."""
    for wrong in (
        {"model": "minlm"},
        {"loss": "SupCon"},
        {"optimizer_options": {"beta": 1}},
        {"batch_size": 1000},
        {"train_data": "nope.csv"},
        {"max_length": 4096},
        {"storage_path": f"{unwritable}/runs"},
        {"run_name": "a/b"},
        {"resume": "must", "run_name": "haf"},
        {"callbacks": [{"EvaluationCallback": {"query_data": "nope.csv"}}]},
    ):
        refused("fit", config(**wrong))
        refused("fit", config(**{"run_name": "half", "epochs": 4, "resume": "auto", **wrong}))


# ------------------------------------------------------------------ a loss that is no number


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was(
    cli, config, folder, labelled_csv, bad
):
    """Exit 1 with the step, FAILED; epoch 1 stays, and the mended run ends as if nothing had been.

    Bit-equal: the run that diverged left no trace in what it goes on from.
    """
    callback = {"EvaluationCallback": {"query_data": str(labelled_csv)}}
    fields = {"epochs": 2, "callbacks": [callback]}
    assert cli("fit", config(run_name="whole", **fields)).code == 0
    kept: dict[str, bytes | None] = {}

    def diverge(loss):
        kept.update(
            contents(record(folder, "bad") / "checkpoints", record(folder, "bad") / "events")
        )
        return loss * bad

    with at_step(STEPS + 2, diverge):
        done = cli("fit", config(run_name="bad", **fields))
    assert done.code == 1
    assert done.err == (
        f"ftray: Training diverged: the training loss is {bad} at epoch 2, step 2. A lower "
        "learning_rate, precision: fp32, or other loss_options are the usual cures.\n"
    )
    assert "Failed: Training diverged" in cli("logs", "bad").out
    shown = cli("show", "bad")
    assert shown.code == 0 and "FAILED: Training diverged: the training loss is" in shown.out
    assert any("epoch-0001/model.safetensors" in path for path in kept)
    assert_still_there(kept)
    assert checkpoints(folder, "bad") == ["epoch-0001"]
    assert steps_on_record("bad") == [1, 2, 3, 4]
    rows = ftray.get_run("bad").history().to_pylist()
    assert sum(row["kind"] == "evaluation" for row in rows) == 2
    assert not (record(folder, "bad") / "artifact").exists()

    again = cli("fit", config(run_name="bad", resume="auto", **fields))
    assert again.code == 0 and "Continuing from checkpoint epoch-0001" in again.out
    assert ftray.get_run("bad").status() == "FINISHED"
    assert steps_on_record("bad") == steps_on_record("whole") == list(range(1, 2 * STEPS + 1))
    assert weights(folder, "bad") == weights(folder, "whole")


# ------------------------------------------------------------------ Ctrl-C


def test_ctrl_c_keeps_the_step_and_resume_ends_as_if_it_had_not_been(
    cli, config, folder, half_done
):
    assert cli("show", "half").out.count("STOPPED: Ctrl-C was received") == 1
    newest = "epoch-0001-step-000002"
    assert checkpoints(folder, "half") == ["epoch-0001", newest]
    assert steps_on_record("half") == [1, 2, 3, 4, 5]
    before = contents(half_done / "events", half_done / "logs.txt")

    again = cli("fit", config(run_name="half", epochs=4, resume="must"))
    assert again.code == 0 and f"Continuing from checkpoint {newest}" in again.out
    assert_still_there(before)
    assert ftray.get_run("half").status() == "FINISHED"
    assert steps_on_record("half") == list(range(1, 4 * STEPS + 1))
    assert cli("fit", config(run_name="whole", epochs=4)).code == 0
    assert weights(folder, "half") == weights(folder, "whole")


def test_a_damaged_checkpoint_costs_no_more_than_the_steps_since_the_one_before(
    cli, config, folder, half_done
):
    (half_done / "checkpoints" / "epoch-0001-step-000002" / "state.json").write_text('{"format":')
    again = cli("fit", config(run_name="half", epochs=4, resume="auto"))
    assert again.code == 0 and "Continuing from checkpoint epoch-0001 " in again.out
    assert steps_on_record("half") == list(range(1, 4 * STEPS + 1))
    assert cli("fit", config(run_name="whole", epochs=4)).code == 0
    assert weights(folder, "half") == weights(folder, "whole")


def test_ctrl_c_twice_keeps_the_last_whole_epoch(cli, config, folder):
    def press_twice(loss):
        press_ctrl_c(loss)
        return press_ctrl_c(loss)

    with at_step(STEPS + 2, press_twice):
        done = cli("fit", config(run_name="half", epochs=2))
    assert done.code == 130 and done.err == "ftray: interrupted\n"
    assert "STOPPED: interrupted" in cli("show", "half").out
    assert checkpoints(folder, "half") == ["epoch-0001"]
    again = cli("fit", config(run_name="half", epochs=2, resume="auto"))
    assert again.code == 0 and "Continuing from checkpoint epoch-0001" in again.out
    assert steps_on_record("half") == list(range(1, 2 * STEPS + 1))


# ------------------------------------------------------------------ a disk that is full


def test_a_full_disk_ends_the_run_and_keeps_the_epochs_before(cli, config, folder, monkeypatch):
    replace = os.replace

    def full(source, target):
        if "checkpoints/epoch-0002" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        done = cli("fit", config(run_name="full", epochs=3))
    assert done.code == 1 and done.err.count("\n") == 1
    assert "epoch-0002/model.safetensors cannot be written: " in done.err
    assert "No space left on device" in done.err
    assert "FAILED: " in cli("show", "full").out
    before = contents(record(folder, "full") / "checkpoints" / "epoch-0001")
    assert before and not list(record(folder, "full").rglob(".*.tmp"))
    again = cli("fit", config(run_name="full", epochs=3, resume="auto"))
    assert again.code == 0 and "Continuing from checkpoint epoch-0001" in again.out
    assert steps_on_record("full") == list(range(1, 3 * STEPS + 1))
