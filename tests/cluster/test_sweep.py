"""Sweeps on Ray Tune: they end, leave nothing behind, go on after a kill, and hand weights on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ftray
from ftray.callbacks import Callback, EvaluationCallback
from ftray.callbacks.base import State
from ftray.events import FitStarted

pytestmark = pytest.mark.ray

RATES = [1e-3, 3e-3, 1e-2, 1e-6, 2e-6, 3e-6, 4e-6, 5e-6]


@pytest.fixture(scope="module")
def session():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


def fields(model: Path, rows: Any, **more: Any) -> dict[str, Any]:
    fit = {
        "model": str(model),
        "train_data": rows,
        "loss": "SupConLoss",
        "epochs": 4,
        "batch_size": 32,
        "num_workers": 0,
        "callbacks": [EvaluationCallback(rows[:41], rows[41:])],
    }
    return {**fit, **more}


def groups_that_live() -> int:
    import ray

    table = ray.util.placement_group_table().values()
    return sum(group["state"] != "REMOVED" for group in table)


def actors_that_live() -> int:
    from ray._private.state import actors

    return sum(actor["State"] != "DEAD" for actor in actors().values())


def test_asha_ends_trials_early_and_nothing_is_left(
    session: None, tmp_path: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    """Eight trials on two cores; one of them fails, and the sweep goes on."""
    import ray

    lines: list[str] = []
    before = actors_that_live()
    sweep = ftray.sweep(
        fields(tiny_model, labelled_rows),
        {
            "learning_rate": {"grid": RATES},
            "loss_options.temperature": {"choice": [0.1]},
            "batch_size": {"choice": [10_000], "if": {"learning_rate": RATES[-1]}},
        },
        metric="ndcg_at_k",
        num_samples=1,
        scheduler="asha",
        storage_path=str(tmp_path),
        name="asha",
        say=lines.append,
    )
    assert (sweep.status(), sweep.name) == ("FINISHED", "asha")
    assert len(sweep.trials) == 8
    outcomes = [trial.outcome for trial in sweep.trials]
    assert outcomes.count("stopped") >= 3 and "finished" in outcomes, outcomes
    assert list(sweep.errors) == [7] and "10000" in sweep.errors[7]
    for trial in sweep.trials[:7]:
        run = sweep.run(trial.number)
        assert run.status() == ("FINISHED" if trial.outcome == "finished" else "STOPPED")
        assert len(trial.epochs) == (
            4 if trial.outcome == "finished" else trial.epochs[-1]["epoch"]
        )
        assert run.metrics()["after"]["ndcg_at_k"] == trial.score, "of the artifact's weights"
        assert run.config["learning_rate"] == RATES[trial.number]
        assert trial.outcome == "finished" or "asha: others are better" in run.details
    scores = {trial.number: trial.score for trial in sweep.trials if trial.score is not None}
    assert sweep.best.name == f"trial-{max(scores, key=lambda n: scores[n]):03d}"
    vectors = ftray.encode(ftray.get_model(sweep.best.artifact_id), ["lost card", "pin"])
    assert vectors.shape[0] == 2 and np.isfinite(vectors).all()
    frame = sweep.to_pandas()
    assert frame["batch_size"].notna().sum() == 1, "null where the condition is not met"
    assert [experiment.name for experiment in ftray.list_experiments(str(tmp_path))] == ["asha"]
    assert any("trial-007 failed" in line for line in lines)
    deadline = time.monotonic() + 20
    while actors_that_live() > before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert actors_that_live() == before and groups_that_live() == 0
    assert ray.available_resources()["CPU"] == 2


@pytest.mark.slow
def test_trials_with_workers_run_on_ray_train_and_leave_no_placement_group(
    session: None, tmp_path: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    sweep = ftray.sweep(
        fields(tiny_model, labelled_rows, num_workers=1, epochs=80),
        {"learning_rate": {"grid": [1e-2, 1e-6]}},
        metric="ndcg_at_k",
        search="grid",
        scheduler="asha",
        max_concurrent_trials=1,
        storage_path=str(tmp_path),
        say=lambda line: None,
    )
    assert [trial.outcome for trial in sweep.trials] == ["finished", "stopped"], sweep.errors
    assert len(sweep.trials[1].epochs) < 80, "its workers hear of it a little later"
    started = [e for e in sweep.run(1)._record.events() if isinstance(e, FitStarted)]
    assert "Ray worker" in started[-1].where
    assert sweep.run(1).artifact_id and sweep.best.name == "trial-000"
    deadline = time.monotonic() + 20
    while groups_that_live() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert groups_that_live() == 0


class Keep(Callback):
    """Notes the digest of the weights as training begins, and at the end of each epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_begin(self, state: State) -> None:
        self._keep(state, "begins", state.epoch)

    def on_epoch_end(self, state: State) -> None:
        self._keep(state, "ends", state.epoch + 1)

    def _keep(self, state: State, when: str, epochs: int) -> None:
        digest = hashlib.sha256()
        for name, tensor in sorted(state.weights().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        run = state.run_path.rsplit("/", 1)[-1]
        note = {"when": when, "run": run, "epochs": epochs, "digest": digest.hexdigest()}
        (self.folder / f"{time.time_ns()}.json").write_text(json.dumps(note))


@pytest.mark.slow
def test_under_pbt_the_weights_are_the_donors(
    session: None, tmp_path: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    """A trial that took over begins, bit for bit, with what the other had, at another rate."""
    notes = tmp_path / "notes"
    notes.mkdir()
    fit = fields(tiny_model, labelled_rows, scheduler="constant")
    fit["callbacks"] = [*fit["callbacks"], Keep(notes)]
    sweep = ftray.sweep(
        fit,
        {"learning_rate": {"loguniform": [1e-6, 1e-2]}},
        metric="ndcg_at_k",
        num_samples=4,
        scheduler="pbt",
        scheduler_options={"quantile_fraction": 0.5},
        storage_path=str(tmp_path / "runs"),
        say=lambda line: None,
    )
    assert [trial.outcome for trial in sweep.trials] == ["finished"] * 4, sweep.errors
    assert not Path(sweep.path, "sweep", "tune").exists(), "what was handed on is not kept"
    seen = [json.loads(file.read_text()) for file in sorted(notes.iterdir())]
    ends: dict[Any, set[str]] = {}
    for note in seen:
        if note["when"] == "ends":
            ends.setdefault((note["run"], note["epochs"]), set()).add(note["digest"])
    took = [trial for trial in sweep.trials if trial.history]
    assert took, [trial.values for trial in sweep.trials]
    for trial in took:
        logs = sweep.run(trial.number).logs()
        given = re.findall(r"Weights and optimizer are those of (trial-\d+), epoch-(\d+)", logs)
        assert len(given) == len(trial.history)
        begun = {n["digest"] for n in seen if (n["run"], n["when"]) == (trial.name, "begins")}
        for donor, epochs in given:
            assert donor != trial.name and ends[donor, int(epochs)] & begun
        steps = [r for r in sweep.run(trial.number).history().to_pylist() if r["kind"] == "step"]
        rate = trial.values["learning_rate"]
        assert steps[-1]["learning_rate"] == pytest.approx(rate, rel=1e-12)
        assert rate != trial.history[0]["values"]["learning_rate"]


PROGRAM = """
import json, sys
import ftray
from tests.cluster.test_sweep import fields

model, rows, place = sys.argv[1:]
with open(rows) as file:
    rows = json.load(file)
ftray.sweep(
    fields(model, rows, epochs=30),
    {"learning_rate": {"loguniform": [1e-5, 1e-3]}},
    metric="ndcg_at_k", num_samples=3, storage_path=place, name="killed", resume="auto",
)
"""


@pytest.mark.slow
def test_a_sweep_that_was_killed_finishes_the_same_trials(
    tmp_path: Path, tiny_model: Path, labelled_rows: Any
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps(labelled_rows))
    place = tmp_path / "runs"
    words = [sys.executable, "-c", PROGRAM, str(tiny_model), str(rows), str(place)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=-3, text=True
        )

    first = begin()
    assert first.stdout is not None
    for line in first.stdout:
        if "epoch 3:" in line:
            break
    first.send_signal(signal.SIGKILL)
    first.wait()
    sweep = ftray.get_sweep("killed", str(place))
    assert sweep.status() == "FAILED" and "resume: auto goes on" in sweep.state.details
    before = {trial.number: trial for trial in sweep.trials}
    done = {n: t.epochs for n, t in before.items()}
    assert any(len(epochs) >= 3 for epochs in done.values())
    deadline = time.monotonic() + 60
    while trials_alive(place) and time.monotonic() < deadline:
        time.sleep(0.5)
    again = begin()
    said, _ = again.communicate(timeout=400)
    assert again.returncode == 0, said
    assert sweep.status() == "FINISHED"
    assert [trial.outcome for trial in sweep.trials] == ["finished"] * 3
    for trial in sweep.trials:
        assert len(trial.epochs) == 30
        if trial.number in before:
            assert trial.values == before[trial.number].values
            known = [row["ndcg_at_k"] for row in done[trial.number]]
            assert [row["ndcg_at_k"] for row in trial.epochs][: len(known)] == known
    resumed = [trial for trial in sweep.trials if done.get(trial.number)]
    assert all("Continuing from checkpoint" in sweep.run(t.number).logs() for t in resumed)


def trials_alive(place: Path) -> bool:
    """Whether a process of the sweep that was killed still writes to one of its runs."""
    statuses = [json.loads(file.read_text()) for file in place.glob("killed/trial-*/status.json")]
    for status in statuses:
        try:
            os.kill(status["pid"], 0)
        except ProcessLookupError:
            continue
        return True
    return False
