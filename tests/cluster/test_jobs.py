"""Fits as jobs of a Ray cluster: submitted from another process and folder, followed, stopped.

Two heads as `ray start` makes them: one asks for a token, one does not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray.run import Run
from tests.cluster.heads import Head, started_head

pytestmark = pytest.mark.ray

FTRAY = [sys.executable, "-m", "ftray"]
RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "a-token-of-the-test-0123456789"


@pytest.fixture(scope="module")
def locked() -> Iterator[Head]:
    with started_head(token=TOKEN) as head:
        yield head


@pytest.fixture(scope="module")
def open_head() -> Iterator[Head]:
    with started_head(token=None) as head:
        yield head


@pytest.fixture
def work(tmp_path: Path, tiny_model: Path, labelled_csv: Path) -> Path:
    """A folder with data, a model, and a YAML file that names them relative to it."""
    folder = tmp_path / "work"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "tiny").symlink_to(tiny_model)
    (folder / "train.csv").write_bytes(labelled_csv.read_bytes())
    lines = [
        "model: models/tiny",
        "train_data: train.csv",
        "loss: SupConLoss",
        "epochs: 2",
        "batch_size: 32",
        "num_workers: 0",
        "run_name: mine",
        f"storage_path: {tmp_path / 'runs'}",
        "callbacks: [{EvaluationCallback: {query_data: train.csv}}]",
    ]
    (folder / "fit.yaml").write_text("\n".join(lines) + "\n")
    return folder


def call(
    command: list[str], folder: Path, head: Head, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**head.environment, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )


def submit(folder: Path, head: Head, *options: str, **environment: str) -> Any:
    command = [*FTRAY, "submit", "fit.yaml", "--address", head.address, *options]
    return call(command, folder, head, **environment)


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


# ---------------------------------------------------------------- a cluster with a token


def test_a_job_is_submitted_followed_and_read_from_another_folder(
    work: Path, locked: Head, tmp_path: Path
) -> None:
    (work / "env.yaml").write_text("env_vars: {TOKENIZERS_PARALLELISM: 'false'}")  # as we set it
    options = ["--runtime-env", "env.yaml", "--set", "num_workers=1"]
    done = submit(work, locked, "--follow", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    run = ftray.get_run("mine", storage_path=str(tmp_path / "runs"))
    job = re.search(r"goes on as the job (ftray-mine-\w+): (\S+)", done.stdout)
    assert job is not None and job[2] == run.path
    assert "on 1 Ray worker" in run.logs() and f"Ray job {job[1]}, submitted from" in run.logs()
    for line in run.logs().splitlines():
        assert line in done.stdout
    assert run.status() == "FINISHED"
    assert run.metrics()["after"]["ndcg_at_k"] > run.metrics()["before"]["ndcg_at_k"]
    assert (run.config["model"], run.config["train_data"]) == ("models/tiny", "train.csv")
    assert not [name for name in os.listdir(tmp_path / "runs") if name != "default"]


MODULE = """
import time
from ftray.callbacks import Callback

class Slow(Callback):
    def on_train_batch_end(self, state):
        time.sleep(0.5)
"""
STOPPED = """
import json, sys
import ftray
from ftray.callbacks import Callback
from slow import Slow

class Says(Callback):
    def on_train_batch_end(self, state):
        print("step", state.global_step, flush=True)

run = ftray.submit(
    model="models/tiny", train_data=json.load(open("rows.json")), loss="SupConLoss",
    epochs=500, batch_size=32, num_workers=0, callbacks=[Says(), Slow()], run_name="slow",
    storage_path=sys.argv[2], address=sys.argv[1], working_dir=".",
)
print(run.status(), run.job_status(), type(run).__name__)
lines = run.stream_job_logs(0.2)
while "step 2" not in next(lines):
    pass
run.stop()
print(run.wait(0.2).status())
print(sum("step" in line for line in lines), run.job_status(), "stop was requested" in run.details)
"""


@pytest.mark.slow
def test_a_job_is_stopped_with_its_checkpoint(
    work: Path, locked: Head, tmp_path: Path, labelled_rows: Any
) -> None:
    (work / "rows.json").write_text(json.dumps(labelled_rows))
    (work / "slow.py").write_text(MODULE)
    (work / "stopped.py").write_text(STOPPED)
    script = [sys.executable, "stopped.py", locked.address, str(tmp_path / "runs")]
    done = call(script, work, locked)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second, third = done.stdout.splitlines()[-3:]
    assert (first, second) == ("STARTED RUNNING SubmittedRun", "STOPPED")
    more, status, asked = third.split()
    assert int(more) < 20 and (status, asked) == ("SUCCEEDED", "True")
    run = ftray.get_run("slow", storage_path=str(tmp_path / "runs"))
    assert list(Path(run.path, "checkpoints").glob("*/state.json"))
    assert Path(run.artifact_id, "ftray.json").exists()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and none was sent"),
        ({"RAY_AUTH_TOKEN": "another-token"}, "does not accept this token"),
    ],
)
def test_who_has_not_the_token_is_told_so(
    work: Path, locked: Head, environment: dict[str, str], said: str
) -> None:
    done = submit(work, locked, **environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert said in done.stderr and "RAY_AUTH_TOKEN_PATH" in done.stderr


# ---------------------------------------------------------------- a cluster without


@pytest.mark.slow
def test_what_is_wrong_is_said_before_anything_is_on_record(
    work: Path, open_head: Head, tmp_path: Path
) -> None:
    options = "--set", "storage_path=/proc/self/cwd/runs"  # another folder for each process
    unshared = submit(work, open_head, *options)
    assert unshared.returncode == 2 and "is not shared" in unshared.stderr, unshared.stderr
    assert os.listdir(work / "runs") == []
    without = submit(work, open_head, "--python", "/no/such/python")
    assert without.returncode == 2 and "has no ftray" in without.stderr, without.stderr
    here = submit(work, open_head, "--set", "train_data=trian.csv")
    assert here.returncode == 2 and "Did you mean 'train.csv'" in here.stderr
    assert not (tmp_path / "runs" / "default").exists()


@pytest.mark.slow
def test_ray_job_submit_runs_ftray_fit_and_ray_job_stop_keeps_a_checkpoint(
    work: Path, open_head: Head, tmp_path: Path, tiny_model: Path
) -> None:
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    settings = ["--set", f"model={tiny_model}", "--set", "epochs=100000"]
    os.remove(work / "models" / "tiny")  # a link out of the folder is not packed
    address = ["--address", open_head.address]
    job = [RAY, "job", "submit", "--no-wait", "--submission-id=by-hand", *address]
    job += ["--working-dir", ".", "--runtime-env-json", environment, "--"]
    done = call([*job, *FTRAY, "fit", "fit.yaml", *settings], work, open_head)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = str(tmp_path / "runs")
    until(lambda: [run for run in ftray.list_runs(storage_path=runs) if "Training" in run.logs()])
    run: Run = ftray.get_run("mine", storage_path=runs)
    stopped = call([RAY, "job", "stop", "by-hand", *address], work, open_head)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert run.wait(0.1).status() == "STOPPED" and "SIGTERM" in run.details
    assert list(Path(run.path, "checkpoints").glob("*/state.json"))
