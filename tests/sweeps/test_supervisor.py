"""What a sweep decides and records, without Ray: its calls are made here, in Tune's order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray.errors import ConfigError, RunExistsError, RunNotFoundError, StorageError
from ftray.launch.supervisor import Supervisor
from ftray.launch.sweep import _find_place
from ftray.launch.trial import CLOSING_FILE, EpochReports, TrialRun
from ftray.record.session import STOP_FILE, StopRequests
from ftray.record.storage import Storage
from ftray.sweeps.config import SweepConfig, sweep_facts, validated_sweep
from ftray.sweeps.record import SweepRecord, SweepState, read_state
from ftray.sweeps.sweep import Sweep

ROWS = [{"item": f"{word} {n}", "label": word} for word in ("card", "pin", "fee") for n in range(8)]


def asked(tmp_path: Path, **fields: Any) -> SweepConfig:
    fit = {"model": str(tmp_path / "model"), "train_data": ROWS, "num_workers": 0}
    space = {"learning_rate": {"grid": [1e-4, 1e-3, 1e-2]}}
    return validated_sweep(
        {
            "fit": fit,
            "space": space,
            "search": "grid",
            "metric": "train_loss",
            "name": "mine",
            "storage_path": str(tmp_path / "runs"),
            **fields,
        }
    )


class Opened:
    """A sweep on record, and its supervisor."""

    def __init__(self, sweep: SweepConfig, state: SweepState | None = None) -> None:
        self.storage = Storage(sweep.storage_path).under("mine")
        self.storage.create()
        state = state or SweepState(metric="train_loss", mode="min")
        self.record = SweepRecord(self.storage, state)
        self.lines: list[str] = []
        self.supervisor = Supervisor(
            sweep, self.record, sweep.points(), StopRequests(self.storage), self.lines.append
        )
        self.supervisor.open(sweep_facts(sweep))

    def run_directory(self, number: int, status: str) -> Storage:
        run = self.storage.under(f"trial-{number:03d}")
        run.create()
        run.write_text("run.yaml", "config: {}\n")
        run.write_text("status.json", json.dumps({"status": status, "details": ""}))
        return run


def row(epoch: int, loss: float) -> dict[str, float]:
    return {"epoch": epoch, "global_step": 3 * epoch, "train_loss": loss}


def test_every_point_is_a_trial_and_its_epochs_are_on_record(tmp_path: Path) -> None:
    opened = Opened(asked(tmp_path))
    supervisor = opened.supervisor
    given = [supervisor.suggest(None) for _ in range(4)]
    assert [g and (g.number, g.values["learning_rate"]) for g in given] == [
        (0, 1e-4),
        (1, 1e-3),
        (2, 1e-2),
        None,
    ]
    for number, losses in enumerate([(3.0, 2.0), (3.0, 1.0), (9.0,)]):
        opened.run_directory(number, "FINISHED")
        supervisor.started(number, opened.record.state.trials[number].values)
        for epoch, loss in enumerate(losses, start=1):
            supervisor.reported(number, row(epoch, loss))
    supervisor.ended(0, "")
    supervisor.ended(1, "")
    supervisor.ended(2, "ValueError: no")
    opened.record.close("FINISHED", "")
    sweep = Sweep(opened.storage)
    assert sweep.best.name == "trial-001"
    assert sweep.errors == {2: "ValueError: no"}
    table = sweep.to_pandas()
    assert table["outcome"].tolist() == ["finished", "finished", "failed"]
    assert table["train_loss"].tolist()[:2] == [2.0, 1.0]
    assert table["learning_rate"].tolist() == [1e-4, 1e-3, 1e-2]
    assert sweep.trials[0].series("train_loss") == [(1, 3.0), (2, 2.0)]
    assert "trial-002 failed (ValueError: no)" in opened.lines


def test_a_trial_that_is_asked_to_stop_finds_the_reason(tmp_path: Path) -> None:
    opened = Opened(asked(tmp_path))
    opened.supervisor.suggest(None)
    run = opened.run_directory(0, "STOPPED")
    opened.supervisor.started(0, {"learning_rate": 1e-4})
    opened.supervisor.ask_to_stop(0, "asha: others are better at epoch 1")
    assert StopRequests(run)() == "asha: others are better at epoch 1"
    opened.supervisor.reported(0, row(1, 2.5))
    opened.supervisor.ended(0, "")
    (trial,) = read_state(opened.storage).trials
    assert (trial.outcome, trial.score) == ("stopped", 2.5)
    assert trial.reason == "asha: others are better at epoch 1"


def test_a_time_budget_ends_what_runs_and_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(asked(tmp_path, time_budget_s=1e-9))
    opened.supervisor.suggest(None)
    run = opened.run_directory(0, "STOPPED")
    opened.supervisor.started(0, {"learning_rate": 1e-4})
    opened.supervisor.tick("")
    assert run.exists(STOP_FILE) and opened.supervisor.suggest(None) is None
    assert "time budget" in opened.supervisor.closing
    assert not opened.supervisor.stopped_from_outside
    assert opened.storage.exists(CLOSING_FILE), "a trial that waits in Tune's queue sees it"
    run.delete(STOP_FILE)
    monkeypatch.setattr("ftray.launch.supervisor.ASK_EVERY_S", 0.0)
    opened.supervisor.tick("")
    assert run.exists(STOP_FILE), "a run that was just beginning has not seen it"
    opened.supervisor.ended(0, "")
    assert read_state(opened.storage).trials[0].outcome == "stopped"


def test_a_stop_from_outside_interrupts_trials_which_go_on_later(tmp_path: Path) -> None:
    sweep = asked(tmp_path)
    opened = Opened(sweep)
    opened.supervisor.suggest(None)
    opened.run_directory(0, "STOPPED")
    opened.supervisor.started(0, {"learning_rate": 1e-4})
    Sweep(opened.storage).stop()
    opened.supervisor.tick("")
    assert opened.supervisor.stopped_from_outside
    opened.supervisor.ended(0, "")
    opened.record.close("STOPPED", opened.supervisor.closing)
    storage, state = _find_place(asked(tmp_path, resume="must"))
    assert state.trials[0].outcome == "interrupted"
    again = Opened(sweep, state)
    assert again.supervisor.done == frozenset()
    first = again.supervisor.suggest(None)
    assert first is not None and first.number == 0
    assert storage.uri == opened.storage.uri


def test_weights_that_are_taken_over_are_on_record_whatever_the_values(tmp_path: Path) -> None:
    """PBT may come to the values again that the trial has already."""
    space = {"learning_rate": {"loguniform": [1e-6, 1.0]}}
    given = {"search": "random", "num_samples": 2, "space": space}
    opened = Opened(asked(tmp_path, scheduler="pbt", **given))
    for _ in range(2):
        opened.supervisor.suggest(lambda: {"learning_rate": 1e-3})
    trial = opened.record.state.trials[1]
    values = dict(trial.values)
    opened.supervisor.started(1, values)
    for epoch, donor in ((1, "trial-001"), (2, "trial-000"), (3, "trial-000")):
        opened.supervisor.reported(1, row(epoch, 3.0))
        for _ in range(2):  # the second time after an error, with the same weights
            opened.supervisor.started(1, values, donor)
    assert trial.history == [{"epoch": epoch, "values": values} for epoch in (2, 3)]
    opened.supervisor.started(1, {"learning_rate": 0.5}, "trial-000")
    assert trial.history[2:] == [{"epoch": 3, "values": values}]
    assert trial.values == {"learning_rate": 0.5}


def test_a_resumed_sweep_keeps_what_is_done(tmp_path: Path) -> None:
    sweep = asked(tmp_path)
    opened = Opened(sweep)
    for number in range(2):
        opened.supervisor.suggest(None)
        opened.run_directory(number, "FINISHED")
        opened.supervisor.started(number, {"learning_rate": 10.0 ** (number - 4)})
        opened.supervisor.reported(number, row(1, 3.0))
    opened.supervisor.ended(0, "")
    opened.record.close("STOPPED", "")
    _, state = _find_place(asked(tmp_path, resume="auto"))
    again = Opened(sweep, state)
    assert again.supervisor.done == {0}
    numbers = [again.supervisor.suggest(None) for _ in range(3)]
    assert [n.number if n else None for n in numbers] == [1, 2, None]
    again.supervisor.reported(0, row(1, 99.0))
    again.supervisor.ended(0, "nonsense")
    assert again.record.state.trials[0].outcome == "finished", "it is done, whatever is replayed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "val_loss"}, "started with metric = 'train_loss', not 'val_loss'"),
        ({"space": {"learning_rate": {"grid": [1e-4]}}}, "started with space"),
        ({"seed": 4}, "started with seed = 0, not 4"),
    ],
)
def test_another_sweep_does_not_go_on_in_its_place(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    opened = Opened(asked(tmp_path))
    opened.record.close("STOPPED", "")
    with pytest.raises(ConfigError, match=message):
        _find_place(asked(tmp_path, resume="auto", **change))


def test_places_that_are_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="there is no sweep"):
        _find_place(asked(tmp_path, resume="must"))
    other = tmp_path / "runs" / "mine"
    other.mkdir(parents=True)
    (other / "notes.txt").write_text("mine")
    with pytest.raises(RunExistsError, match="holds other things than a sweep"):
        _find_place(asked(tmp_path, resume="auto"))
    (other / "notes.txt").unlink()
    opened = Opened(asked(tmp_path))
    with pytest.raises(RunExistsError, match="Give another name"):
        _find_place(asked(tmp_path))
    with pytest.raises(RunExistsError, match=f"is running \\(process {os.getpid()}"):
        _find_place(asked(tmp_path, resume="auto"))
    for number in range(3):
        opened.supervisor.suggest(None)
        opened.run_directory(number, "FINISHED")
        opened.supervisor.ended(number, "")
    opened.record.close("FINISHED", "")
    with pytest.raises(RunExistsError, match="all of its trials are done"):
        _find_place(asked(tmp_path, resume="auto"))


def test_a_sweep_whose_process_is_gone_says_so(tmp_path: Path) -> None:
    opened = Opened(asked(tmp_path))
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    opened.record.state.pid = int(gone.stdout)
    opened.record.write()
    state = read_state(opened.storage)
    assert state.status == "FAILED" and "resume: auto goes on" in state.details


def test_sweeps_are_found_by_name_and_deleted_with_their_runs(tmp_path: Path) -> None:
    opened = Opened(asked(tmp_path))
    opened.supervisor.suggest(None)
    opened.run_directory(0, "FINISHED")
    opened.record.close("FINISHED", "")
    place = str(tmp_path / "runs")
    assert [sweep.name for sweep in ftray.list_sweeps(place)] == ["mine"]
    assert ftray.get_sweep("mine", place).path == opened.storage.uri
    assert ftray.get_sweep(opened.storage.uri).name == "mine"
    with pytest.raises(RunNotFoundError, match="Did you mean 'mine'"):
        ftray.get_sweep("mien", place)
    assert ftray.delete_experiment("mine", place, confirm=True)
    assert not Path(opened.storage.uri).exists()


def test_schedulers_that_compare_hear_of_what_is_done_again(tmp_path: Path) -> None:
    sweep = asked(tmp_path, scheduler="asha")
    opened = Opened(sweep)
    opened.supervisor.suggest(None)
    opened.run_directory(0, "FINISHED")
    opened.supervisor.ended(0, "")
    opened.record.close("STOPPED", "")
    again = Opened(sweep, read_state(opened.storage))
    first = again.supervisor.suggest(None)
    assert first is not None and first.number == 0


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        ("FINISHED", "", "finished"),
        ("FAILED", "", "failed"),
        ("FAILED", "ValueError: no", "failed"),
        ("STOPPED", "", "stopped"),
        ("", "", "waiting"),
    ],
)
def test_how_a_trial_ended_is_what_its_record_says(
    tmp_path: Path, status: str, error: str, outcome: str
) -> None:
    opened = Opened(asked(tmp_path))
    opened.supervisor.suggest(None)
    if status:
        opened.run_directory(0, status)
    opened.supervisor.ended(0, error)
    assert opened.record.state.trials[0].outcome == outcome


def test_what_tune_pickles_of_a_sweep_is_nothing(tmp_path: Path) -> None:
    """Its data, and whatever `say` is bound to, stay here."""
    import threading

    import cloudpickle

    opened = Opened(asked(tmp_path))
    opened.supervisor._say = threading.Lock().__enter__  # cannot be pickled
    assert len(cloudpickle.dumps(opened.supervisor)) < 500


def test_a_trial_begins_in_the_folder_of_its_sweep_unless_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(asked(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    home = tmp_path / "home"
    home.mkdir()
    trial = TrialRun(
        sweep=asked(tmp_path),
        name="mine",
        metric="train_loss",
        late=False,
        done=frozenset(),
        folder=str(home),
    )
    opened.storage.write_text(CLOSING_FILE, "the time is up")
    trial(0, {"learning_rate": 1e-4}, None, lambda row, _: None, None)
    assert Path.cwd() == home and not opened.storage.exists("trial-000")
    other = replace(trial, name="unknown")
    with pytest.raises(StorageError, match="cannot see the sweep"):
        other(0, {"learning_rate": 1e-4}, None, lambda row, _: None, None)


def test_a_trial_waits_for_the_process_that_had_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost machine says STARTED for three minutes."""
    from ftray.launch import trial
    from ftray.record.reader import RecordReader

    run = Storage(str(tmp_path / "run"))
    run.create()
    run.write_text("run.yaml", "config: {}\n")

    def say(seen_s: float) -> None:
        facts = {"status": "STARTED", "details": "", "pid": 1, "host": "lost", "seen_s": seen_s}
        run.write_text("status.json", json.dumps(facts))

    say(time.time())
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            say(time.time() - 1000)

    monkeypatch.setattr(trial.time, "sleep", sleep)
    trial._wait_until_free(RecordReader(run))
    assert len(waited) == 3


# ---------------------------------------------------------------- what a trial reports


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real run of three epochs, and what it said."""
    from tests.tiny import tiny_text_model

    folder = tmp_path_factory.mktemp("trial")
    model = tiny_text_model(folder / "model")
    reported: list[dict[str, float]] = []
    reports = EpochReports("train_loss", lambda row, _: reported.append(dict(row)))
    run = ftray.fit(
        model=str(model),
        train_data=ROWS,
        epochs=3,
        batch_size=12,
        num_workers=0,
        storage_path=str(folder / "runs"),
        listeners=[reports],
    )
    return run, reported


def test_each_epoch_is_reported_once_when_its_checkpoint_is_there(record: Any) -> None:
    run, reported = record
    epochs = [r for r in run.history().to_pylist() if r["kind"] == "epoch"]
    assert [r["epoch"] for r in reported] == [1, 2, 3]
    assert [r["train_loss"] for r in reported] == [r["train_loss"] for r in epochs]


def test_what_a_run_did_is_reported_again_when_it_is_resumed(record: Any) -> None:
    run, reported = record
    again: list[dict[str, float]] = []
    reports = EpochReports("train_loss", lambda row, _: again.append(dict(row)))
    reports.replay(run._record)
    assert again == reported


def test_a_metric_that_comes_late_holds_its_epoch_and_those_after_it_back() -> None:
    from ftray.events import CheckpointSaved, EpochEnded, EvaluationEnded

    rows: list[dict[str, float]] = []
    reports = EpochReports("mrr", lambda row, _: rows.append(row), late=True)
    blocking: list[dict[str, float]] = []
    prompt = EpochReports("mrr", lambda row, _: blocking.append(row))

    def epoch(number: int) -> None:
        step = 5 * (number + 1)
        common = {"seconds": {}, "texts_per_rank": [1]}
        saved = {"name": "x", "epoch": number + 1, "step": 0, "best": False, "metrics": {}}
        metrics = {"train_loss": 1.0}
        for each, more in ((reports, {}), (prompt, {"mrr": 0.5} if number else {})):
            values = {**metrics, **more}
            each(EpochEnded(epoch=number, global_step=step, metrics=values, **common))
            each(CheckpointSaved(global_step=step, **saved))

    def result(step: int, value: float) -> None:
        about = {"name": "e", "caption": None, "when": "epoch", "epoch": 0, "wall_s": 1.0}
        metrics = {"metrics": {"m": value}, "keys": {"m": "mrr"}, "rows_encoded": [1]}
        reports(EvaluationEnded(global_step=step, **about, **metrics))

    epoch(0)
    epoch(1)
    assert rows == []
    result(10, 0.2)
    assert rows == []
    result(5, 0.1)
    assert [(r["epoch"], r["mrr"]) for r in rows] == [(1, 0.1), (2, 0.2)]
    assert [(r["epoch"], r["mrr"]) for r in blocking] == [(2, 0.5)], "logged every other epoch"


def test_a_trial_that_diverged_is_never_the_best(tmp_path: Path) -> None:
    opened = Opened(asked(tmp_path))
    for number, loss in enumerate([float("nan"), 2.0, float("inf")]):
        opened.supervisor.suggest(None)
        opened.run_directory(number, "FINISHED")
        opened.supervisor.started(number, {})
        opened.supervisor.reported(number, row(1, loss))
        opened.supervisor.ended(number, "")
    opened.record.close("FINISHED", "")
    sweep = Sweep(opened.storage)
    assert sweep.best.name == "trial-001"
    assert [trial.number for trial in sweep.state.ordered()] == [1, 0, 2]
    sweep.display()


def test_what_was_asked_for_is_on_record_without_the_data_themselves(tmp_path: Path) -> None:
    from ray import tune

    opened = Opened(
        asked(tmp_path, space={"learning_rate": tune.loguniform(1e-5, 1e-3)}, search="random")
    )
    config = Sweep(opened.storage).config["config"]
    assert config["fit"]["train_data"] == "a list of 24 records"
    assert config["space"] == {"learning_rate": {"loguniform": [1e-5, 1e-3]}}
    assert Sweep(opened.storage).config["reproducible"] is False


def test_verbs_that_take_runs_take_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ftray.cli import show, stop

    opened = Opened(asked(tmp_path))
    opened.supervisor.suggest(None)
    opened.run_directory(0, "FINISHED")
    opened.supervisor.started(0, {"learning_rate": 1e-4})
    opened.supervisor.reported(0, row(1, 2.0))
    place = str(tmp_path / "runs")
    stop.run("mine", place, None)
    assert "Sweep 'mine' was asked to stop" in capsys.readouterr().out
    assert StopRequests(opened.storage)()
    opened.supervisor.ended(0, "")
    opened.record.close("FINISHED", "")
    show.run("mine", place, None, False)
    said = capsys.readouterr().out
    assert "trial-000/artifact" in said and "0.0001" in said and "FINISHED" in said
    show.run("mine", place, None, True)
    assert json.loads(capsys.readouterr().out)["trials"][0]["train_loss"] == 2.0
