"""WandBLogger, by the files that W&B writes."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import shlex
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import ftray
from ftray.callbacks import Callback, EvaluationCallback, WandBLogger
from ftray.callbacks.base import LogMetrics
from ftray.callbacks.registry import resolve_callbacks
from ftray.callbacks.tracker import EXAMPLE_COLUMNS
from ftray.callbacks.wandb_logger import INIT_OPTIONS
from ftray.errors import ConfigError
from tests.callbacks.by_hand import (
    AFTER_ROWS,
    BEFORE_ROWS,
    BY_BATCH,
    BY_EPOCH,
    ONCE_AN_EPOCH,
    RUN_ID,
    evaluated,
    run_directory,
    state,
    whole_run,
)
from tests.wandb_files import WandBFiles, offline_runs
from tests.wandb_server import WandBServer, wandb_server

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user with a home of their own who never used W&B."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    wandb.teardown()  # its settings are those of the environment when it is first used
    return home


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return run_directory(tmp_path)


def logged(path: Path, logger: WandBLogger, status: str = "FINISHED") -> WandBFiles:
    whole_run(logger, path, status)
    (run,) = offline_runs(path)
    return run


def series(run: WandBFiles, keys: Any) -> dict[str, list[tuple[float, float]]]:
    return {key: run.series(key) for key in keys}


def test_by_epoch_each_value_stands_at_its_step(path):
    run = logged(path, WandBLogger())
    expected = {**ONCE_AN_EPOCH, **BY_EPOCH}
    assert series(run, expected) == expected
    keys = {key for row in run.history for key in row}
    assert keys == {*expected, "epoch", "global_step", "examples"}
    assert {step: epoch for step, epoch in run.series("epoch")} == {0: 0, 2: 1, 4: 2}


def test_by_batch_there_is_a_row_for_each_step(path):
    run = logged(path, WandBLogger("batch"))
    expected = {**ONCE_AN_EPOCH, **BY_BATCH}
    assert series(run, expected) == expected
    assert run.series("epoch")[1:3] == [(1, 1), (2, 1)]


def test_the_step_of_each_value_is_our_global_step(path):
    run = logged(path, WandBLogger())
    steps = {m.name or m.glob_name: m.step_metric for m in run.of("metric")}
    groups = ("train/*", "val/*", "lr/*", "metrics/*", "epoch")
    assert {name: steps[name] for name in groups} == dict.fromkeys(groups, "global_step")
    assert steps["wise_ft/*"] == "alpha"


def test_a_result_that_comes_late_stands_at_the_step_of_its_weights(path):
    logger = WandBLogger("batch")
    logger.on_fit_begin(state(path))
    for step in (1, 2, 3):
        logger.on_train_batch_end(state(path, step))
    logger.on_evaluation_end(state(path, 3), evaluated(0.4, "step", 1, examples=None))
    logger.on_train_batch_end(state(path, 4))
    logger.on_run_end(state(path, 4), "FINISHED")
    (run,) = offline_runs(path)
    assert run.series("metrics/ndcg_at_k") == [(1, 0.4)]
    assert [step for step, _ in run.series("train/loss")] == [1, 2, 3, 4]


def test_without_zero_shot_nothing_stands_before_training(path):
    run = logged(path, WandBLogger(log_zero_shot=False))
    assert run.series("metrics/ndcg_at_k") == ONCE_AN_EPOCH["metrics/ndcg_at_k"][1:]
    (table,) = run.tables("examples")
    assert table["data"] == AFTER_ROWS


def test_examples_are_a_table_with_before_and_after(path):
    (table,) = logged(path, WandBLogger()).tables("examples")
    assert table["columns"] == list(EXAMPLE_COLUMNS)
    assert table["data"] == BEFORE_ROWS + AFTER_ROWS


def test_examples_of_two_evaluations_are_two_tables(path):
    logger = WandBLogger()
    logger.on_fit_begin(state(path))
    logger.on_evaluation_end(state(path), evaluated(0.5, "before"))
    logger.on_evaluation_end(state(path), evaluated(0.4, "before", caption="law"))
    logger.on_run_end(state(path), "FINISHED")
    (run,) = offline_runs(path)
    assert run.tables("examples")[0]["data"][0][4] == 0.5
    assert run.tables("law_examples")[0]["data"][0][4] == 0.4


def test_interpolated_weights_are_a_curve_over_alpha(path):
    logger = WandBLogger()
    logger.on_fit_begin(state(path))
    for alpha in (0.0, 0.5, 1.0):
        result = evaluated(alpha / 2, "final", 4, alpha=alpha, weights=f"alpha {alpha:g}")
        logger.on_evaluation_end(state(path, 4), result)
    averaged = evaluated(0.9, "final", 4, weights="mean of the last 3")
    logger.on_evaluation_end(state(path, 4), averaged)
    logger.on_run_end(state(path, 4), "FINISHED")
    (run,) = offline_runs(path)
    curve = [(row["alpha"], row["wise_ft/ndcg_at_k"]) for row in run.history if "alpha" in row]
    assert curve == [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5)]
    assert run.series("metrics/ndcg_at_k") == []
    assert run.series("mean of the last 3/ndcg_at_k") == [(4, 0.9)]
    assert run.tables("examples") == []


def test_the_run_has_the_names_and_the_configuration_of_ours(path):
    logged(path, WandBLogger(config={"batch_size": 9, "note": "mine"}, tags=["a"]))
    (run,) = offline_runs(path)
    told = run.of("run")[0]
    assert (told.run_id, told.project) == (RUN_ID, "ftray")
    assert (told.run_group, told.display_name, list(told.tags)) == ("trees", "oak-1", ["a"])
    assert run.config == {
        "model": "minilm",
        "loss": "InfoNCE",
        "batch_size": 9,
        "miner_options": {"m": 0.1},
        "note": "mine",
    }


def test_options_of_wandb_go_before_ours(path, tmp_path):
    options = {"project": "p", "name": "n", "group": "g", "id": "i", "dir": str(tmp_path)}
    whole_run(WandBLogger(wandb_args=options), path)
    (run,) = offline_runs(tmp_path)
    told = run.of("run")[0]
    found = (told.project, told.display_name, told.run_group, told.run_id)
    assert found == ("p", "n", "g", "i")
    assert not (path / "wandb").exists()


def test_the_environment_goes_before_ours(path, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "p")
    monkeypatch.setenv("WANDB_NAME", "n")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    whole_run(WandBLogger(), path)
    (run,) = offline_runs(tmp_path)
    assert (run.of("run")[0].project, run.of("run")[0].display_name) == ("p", "n")


@pytest.mark.parametrize(
    ("status", "code"), [("FINISHED", 0), ("STOPPED", 0), ("FAILED", 1), ("LOST", 1)]
)
def test_the_run_is_finished_however_ours_ended(path, status, code):
    (ended,) = logged(path, WandBLogger(), status).of("exit")
    assert ended.exit_code == code


def test_an_end_without_a_beginning_is_nothing(path):
    WandBLogger().on_run_end(state(path), "FAILED")
    assert not (path / "wandb").exists()


def test_a_resumed_run_is_the_same_run(path):
    first, second = WandBLogger(), WandBLogger()
    first.on_fit_begin(state(path))
    first.on_val_end(state(path, 2, metrics={"val_loss": 2.0}))
    first.on_run_end(state(path, 2), "LOST")
    (said,) = second.on_fit_begin(state(path, 2))
    second.on_val_end(state(path, 4, metrics={"val_loss": 1.0}))
    second.on_run_end(state(path, 4), "FINISHED")
    runs = offline_runs(path)
    assert [run.of("run")[0].run_id for run in runs] == [RUN_ID, RUN_ID]
    assert [run.series("val/loss") for run in runs] == [[(2, 2.0)], [(4, 1.0)]]
    assert [run.of("exit")[0].exit_code for run in runs] == [1, 0]
    assert shlex.split(said.message.partition("wandb sync ")[2]) == [str(r.folder) for r in runs]


def test_it_works_outside_the_main_thread(path):
    thread = threading.Thread(target=whole_run, args=(WandBLogger(), path))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    (run,) = offline_runs(path)
    assert run.of("exit")[0].exit_code == 0


def test_nothing_is_printed_and_nothing_is_left_in_the_environment(path, capfd):
    before = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    (said,) = whole_run(WandBLogger(), path)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
    assert dict(os.environ) == before
    assert said.message.startswith(f"W&B: offline, in {path}/wandb/offline-run-")


def test_a_run_of_the_users_own_goes_on_beside_it(path, tmp_path):
    import wandb

    own = wandb.init(mode="offline", dir=tmp_path / "own", settings={"silent": True})
    whole_run(WandBLogger(), path)
    assert wandb.run is own
    own.log({"mine": 1})
    own.finish()
    assert offline_runs(path)[0].of("run")[0].run_id == RUN_ID
    (mine,) = offline_runs(tmp_path / "own")
    assert mine.history == [{"mine": 1}]


def test_a_run_directory_elsewhere_gets_a_folder_that_the_log_names(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (said,) = whole_run(WandBLogger(), "mock:///runs/trees/oak-1")
    folder = Path(shlex.split(said.message.partition("wandb sync ")[2])[0])
    assert folder.is_relative_to(tmp_path)
    (run,) = offline_runs(folder.parents[1])
    assert run.folder == folder
    assert (run.of("run")[0].display_name, run.of("run")[0].run_group) == ("oak-1", "trees")
    assert run.config == {"model": "minilm"}


# ---------------------------------------------------------------- online or offline


def start(path: Path, **options: Any) -> list[Any]:
    logger = WandBLogger(**options)
    said = logger.on_fit_begin(state(path))
    logger.on_run_end(state(path), "FINISHED")
    return [(line.level, line.message) for line in said]


def test_a_key_makes_it_online_and_no_network_makes_it_offline(path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    (warning, where) = start(path)
    assert warning == (
        "WARNING",
        "W&B: http://127.0.0.1:9 cannot be reached; logging offline",
    )
    assert where[1].startswith("W&B: offline, in ")
    assert offline_runs(path)[0].of("exit")[0].exit_code == 0


def test_the_key_of_wandb_login_counts(path, nobody, monkeypatch):
    (nobody / ".netrc").write_text(f"machine 127.0.0.1:9 login user password {'k' * 40}\n")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in start(path)[0][1]


def test_online_without_a_key_is_offline_with_a_warning(path):
    (warning, _) = start(path, mode="online")
    assert warning[0] == "WARNING" and "no API key is configured" in warning[1]


def test_offline_stays_offline_with_a_key(path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert len(start(path, mode="offline")) == 1
    assert len(start(path, settings={"mode": "offline"})) == 1
    assert len(start(path)) == 2
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert len(start(path)) == 1


def test_disabled_writes_nothing(path):
    assert start(path, mode="disabled") == [("INFO", "W&B: disabled")]
    assert not (path / "wandb").exists()


def online(server: WandBServer, monkeypatch: pytest.MonkeyPatch) -> WandBLogger:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.address)
    return WandBLogger(settings={"init_timeout": 30, "finish_timeout": 30})


def test_online_the_log_has_the_address_and_the_server_gets_the_run(path, monkeypatch, capfd):
    with wandb_server() as server:
        logger = online(server, monkeypatch)
        (said,) = logger.on_fit_begin(state(path))
        logger.on_val_end(state(path, 2, metrics={"val_loss": 7.0}))
        logger.on_run_end(state(path, 2), "FAILED")
        assert said.message == f"W&B: View run at {server.address}/somebody/ftray/runs/{RUN_ID}"
        assert [(row["global_step"], row["val/loss"]) for row in server.history] == [(2, 7.0)]
        told = server.runs[0]
        assert (told["name"], told["displayName"], told["groupName"]) == (RUN_ID, "oak-1", "trees")
        ended = server.streamed[-1]
        assert (ended["complete"], ended["exitcode"]) == (True, 1)
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_a_stop_in_the_pages_of_wandb_is_a_stop_from_outside(path, monkeypatch):
    with wandb_server() as server:
        server.stop = True
        logger = online(server, monkeypatch)
        logger.on_fit_begin(state(path))
        for _ in range(800):  # wandb asks every 15 seconds
            if (path / "control" / "stop").exists():
                break
            time.sleep(0.05)
        logger.on_run_end(state(path), "STOPPED")
        assert server.streamed[-1]["exitcode"] == 0
    assert (path / "control" / "stop").exists()


# ---------------------------------------------------------------- options


def test_the_options_are_those_of_wandb_init():
    import wandb

    left_out = {"anonymous", "tensorboard"}  # wandb has given them up
    assert set(INIT_OPTIONS) == set(inspect.signature(wandb.init).parameters) - left_out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"projct": "x"}, "no option 'projct', nor has wandb.init. Did you mean 'project'?"),
        ({"log_zeroshot": False}, "Did you mean 'log_zero_shot'?"),
        ({"project": "x", "wandb_args": {"name": "y"}}, "not both"),
        ({"settings": {"api_key": "k"}}, "Set WANDB_API_KEY, or call `wandb login`"),
    ],
)
def test_wrong_options_are_found_before_the_run(options, said):
    with pytest.raises(ConfigError, match="WandBLogger") as caught:
        WandBLogger(**options)
    assert said in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        resolve_callbacks([{"WandBLogger": options}])
    assert said in str(caught.value) and str(caught.value).startswith("callbacks[0]: WandBLogger")


def test_metrics_are_logged_by_epoch_or_batch_only():
    with pytest.raises(ConfigError, match=r"'step'\. Valid: 'batch', 'epoch'"):
        WandBLogger("step")  # type: ignore[arg-type]


def test_a_configuration_file_may_name_options_of_wandb():
    (logger,) = resolve_callbacks(
        [{"WandBLogger": {"project": "p", "metrics_logger_step": "batch"}}]
    )
    assert isinstance(logger, WandBLogger)
    assert (logger.wandb_init_kwargs, logger.metrics_logger_step) == ({"project": "p"}, "batch")
    assert pickle.loads(pickle.dumps(logger)).wandb_init_kwargs == {"project": "p"}


def test_making_one_imports_neither_wandb_nor_torch_nor_ray():
    script = """
        import sys
        from ftray.callbacks import TensorBoardLogger, WandBLogger
        WandBLogger(project="x"), TensorBoardLogger()
        print({"wandb", "tensorboardX", "torch", "ray", "pyarrow"} & set(sys.modules))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------- a real fit


class Speed(Callback):
    """Logs a metric of its own, the same value each epoch."""

    metric_names = ("speed",)

    def on_train_epoch_end(self, state):
        return LogMetrics({"speed": 3.0})


def fit(tmp_path, tiny_model, rows, *callbacks):
    return ftray.fit(
        model=str(tiny_model),
        train_data=rows,
        val_split=0.25,
        loss="SupConLoss",
        epochs=2,
        batch_size=32,
        num_workers=0,
        storage_path=str(tmp_path / "runs"),
        callbacks=list(callbacks),
        listeners=[],
    )


def test_a_fit_is_logged_as_its_record_has_it(tmp_path, tiny_model, labelled_rows):
    evaluation = EvaluationCallback(
        labelled_rows[:40], labelled_rows[40:], gather_examples=True, num_example_queries=2
    )
    run = fit(tmp_path, tiny_model, labelled_rows, WandBLogger("batch"), Speed(), evaluation)
    assert run.status() == "FINISHED"
    (found,) = offline_runs(Path(run.path))
    history = run.history().to_pylist()
    steps = [row for row in history if row["kind"] == "step"]
    assert len(steps) > 2
    assert found.series("train/loss") == [(row["global_step"], row["loss"]) for row in steps]
    assert [rate for _, rate in found.series("lr/decayed")] == [r["learning_rate"] for r in steps]
    ranked = found.series("metrics/ndcg_at_k")
    assert [step for step, _ in ranked] == [0, len(steps) // 2, len(steps)]
    assert ranked[0][1] == run.metrics()["before"]["ndcg_at_k"]
    assert ranked[-1][1] == run.metrics()["after"]["ndcg_at_k"]
    assert [value for _, value in found.series("metrics/speed")] == [3.0, 3.0]
    assert len(found.series("val/loss")) == 2
    assert found.config["loss"] == "SupConLoss"
    told = found.of("run")[0]
    facts = yaml.safe_load(Path(run.path, "run.yaml").read_text())
    assert (told.run_id, told.display_name) == (facts["run_id"], run.name)
    assert found.of("exit")[0].exit_code == 0
    queries = [row[1] for row in found.tables("examples")[-1]["data"]]
    assert list(dict.fromkeys(queries)) == list(run.example_results()["after"])
    assert f"wandb sync {found.folder}" in run.logs()


KILLED = """
import json, os, sys, threading
from pathlib import Path
import ftray
from ftray.callbacks import Callback, WandBLogger

class KillsTheService(Callback):
    def on_epoch_begin(self, state):
        if state.epoch == 1:
            children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
            for pid in children.split():
                if "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(int(pid), 9)
                    print("killed")

model, rows, storage = sys.argv[1:]
run = ftray.fit(
    model=model, train_data=json.loads(Path(rows).read_text()), loss="SupConLoss", epochs=2,
    batch_size=32, num_workers=0, storage_path=storage, listeners=[],
    callbacks=[KillsTheService(), WandBLogger("batch")],
)
print(run.status())
print("\\n".join(line for line in run.logs().splitlines() if "WARNING" in line))
"""


def test_a_fit_goes_on_where_wandb_dies(tmp_path, tiny_model, labelled_rows):
    (tmp_path / "rows.json").write_text(json.dumps(labelled_rows))
    arguments = [str(tiny_model), str(tmp_path / "rows.json"), str(tmp_path / "runs")]
    command = [sys.executable, "-c", KILLED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    killed, status, *warnings = done.stdout.splitlines()
    assert (killed, status) == ("killed", "FINISHED")
    assert len(warnings) == 1 and "WandBLogger.on_train_batch_end failed" in warnings[0]
