"""A fit on Ray equals a fit in this process; lost workers, stops and errors end as they should.

One Ray session for the module; each fit costs its start-up, so there are few.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import ftray
from ftray.callbacks import BestModelCheckpoint, Callback, EvaluationCallback
from ftray.callbacks.base import Stop
from ftray.errors import ClusterError, RunFailedError
from ftray.events import EpochEnded, FitStarted, RankStep, StepEnded

pytestmark = pytest.mark.ray

FIXED = ["lost my card", "send money", "open the app", "find the code", "pin and rate", "fee"]


@pytest.fixture(scope="module")
def session():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", address="local")
    yield
    ray.shutdown()


def fit(tmp_path: Path, model: Path, rows, **fields):
    fields = {
        "loss": "SupConLoss",
        "epochs": 4,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "log_rows": True,
        "storage_path": str(tmp_path / "runs"),
        **fields,
    }
    return ftray.fit(listeners=[], model=str(model), train_data=rows, **fields)


def callbacks(rows):
    return [
        EvaluationCallback(rows[:41], rows[41:]),
        BestModelCheckpoint("train_loss"),
    ]


class KillOnce(Callback):
    """Rank 0 kills its own process, the first time it reaches a step."""

    def __init__(self, step: int, marker: Path) -> None:
        self.step = step
        self.marker = marker

    def on_train_batch_end(self, state):
        if state.global_step == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def events(run, kind):
    return [event for event in run._record.events() if isinstance(event, kind)]


def losses(run) -> list[float]:
    return [event.loss for event in events(run, StepEnded)]


def global_batches(run) -> dict[tuple[int, int], tuple[list[int], list[str]]]:
    """The rows of each step, and the texts that all ranks together encoded in it."""
    batches: dict[tuple[int, int], tuple[list[int], list[str]]] = {}
    for event in events(run, RankStep):
        rows, texts = batches.setdefault((event.epoch, event.step), (event.rows, []))
        assert rows == event.rows
        texts.extend(event.items)
    return {key: (rows, sorted(texts)) for key, (rows, texts) in batches.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def alone(folder, tiny_model, labelled_rows):
    return fit(folder, tiny_model, labelled_rows, num_workers=0, callbacks=callbacks(labelled_rows))


@pytest.fixture(scope="module")
def two_workers(session, folder, tiny_model, labelled_rows):
    return fit(
        folder,
        tiny_model,
        labelled_rows,
        num_workers=2,
        index_shards=3,
        callbacks=callbacks(labelled_rows),
    )


def test_the_index_of_two_workers_was_in_shards(alone, two_workers):
    """So the metrics below are those of shards, too."""
    assert "the index of 'evaluation' is in 3 shards" in two_workers.logs()
    assert "shards" not in alone.logs()


def test_two_workers_train_the_same_global_batches(alone, two_workers):
    assert events(two_workers, FitStarted)[-1].world_size == 2
    assert global_batches(two_workers) == global_batches(alone)
    per_rank = events(two_workers, EpochEnded)[-1].texts_per_rank
    assert len(per_rank) == 2 and min(per_rank) > 0
    assert sum(per_rank) == sum(events(alone, EpochEnded)[-1].texts_per_rank)


def test_two_workers_log_the_same_losses_and_metrics(alone, two_workers):
    assert len(losses(alone)) <= 50
    assert losses(two_workers) == pytest.approx(losses(alone), abs=1e-5)
    for side in ("before", "after"):
        assert two_workers.metrics()[side] == pytest.approx(alone.metrics()[side], abs=1e-5)


def test_two_workers_end_with_the_same_embeddings(alone, two_workers, labelled_rows):
    texts = list(dict.fromkeys([*FIXED, *(row["text"] for row in labelled_rows)]))[:64]
    assert len(texts) == 64
    one, two = (ftray.encode(run.artifact_id, texts) for run in (alone, two_workers))
    assert np.abs(one - two).max() < 1e-5


def test_each_worker_encodes_its_share_of_the_evaluation(two_workers):
    evaluation = two_workers._evaluations()[-1]
    assert sum(evaluation.rows_encoded) == evaluation.queries + evaluation.documents
    assert min(evaluation.rows_encoded) > 0


def test_rays_own_record_names_the_best_checkpoint_of_ours(two_workers):
    snapshot = json.loads(
        Path(f"{two_workers.path}/checkpoints/checkpoint_manager_snapshot.json").read_text()
    )
    results = {r["checkpoint_dir_name"]: r["metrics"] for r in snapshot["checkpoint_results"]}
    best = json.loads(Path(f"{two_workers.artifact_id}/ftray.json").read_text())["best"]
    assert min(results, key=lambda name: results[name]["train_loss"]) == best["name"]


def test_a_lost_worker_is_replaced_and_the_weights_are_bit_equal(
    session, folder, tiny_model, labelled_rows, two_workers
):
    run = fit(
        folder,
        tiny_model,
        labelled_rows,
        num_workers=2,
        index_shards=2,
        callbacks=[*callbacks(labelled_rows), KillOnce(7, folder / "killed")],
    )
    assert (folder / "killed").exists()
    assert run.status() == "FINISHED"
    assert "Workers were lost" in run.logs() and "Continuing from checkpoint" in run.logs()
    first, second = (load_file(f"{r.artifact_id}/model.safetensors") for r in (two_workers, run))
    assert all(first[name].equal(second[name]) for name in first)
    assert losses(run) == losses(two_workers)
    assert global_batches(run) == global_batches(two_workers)
    assert run.metrics() == two_workers.metrics()


class Failing(Callback):
    def on_train_batch_end(self, state):
        raise ValueError("no good")


def test_an_error_that_would_come_again_is_not_tried_again(
    session, folder, tiny_model, labelled_rows
):
    with pytest.raises(RunFailedError, match=r"Failing\.on_train_batch_end failed.*no good"):
        fit(
            folder,
            tiny_model,
            labelled_rows,
            num_workers=1,
            run_name="failing",
            callbacks=[Failing()],
        )
    run = ftray.get_run("failing", storage_path=str(folder / "runs"))
    assert run.status() == "FAILED" and "no good" in run.details
    assert len([e for e in run._record.all_events() if isinstance(e, FitStarted)]) == 1


class StopAt(Callback):
    def on_train_batch_end(self, state):
        return Stop("enough") if state.global_step == 5 else None


@pytest.mark.slow
@pytest.mark.parametrize("keep_best", [False, True])
def test_two_workers_agree_on_what_follows_a_stop_in_mid_epoch(
    session, folder, tiny_model, labelled_rows, keep_best
):
    """With a best checkpoint the artifact is evaluated already, without one it is evaluated now:
    a rank that saw it otherwise would wait for the others for ever.
    """
    run = fit(
        folder,
        tiny_model,
        labelled_rows,
        num_workers=2,
        callbacks=[
            EvaluationCallback(labelled_rows[:41], labelled_rows[41:]),
            StopAt(),
            *([BestModelCheckpoint("train_loss")] if keep_best else []),
        ],
    )
    assert run.status() == "FINISHED"
    steps = [e.global_step for e in run._evaluations()]
    assert steps == ([0, 3] if keep_best else [0, 3, 5])


def test_a_run_is_stopped_from_outside(session, folder, tiny_model, labelled_rows):
    name = "long"

    def stop() -> None:
        storage = str(folder / "runs")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            time.sleep(0.3)
            try:
                run = ftray.get_run(name, storage_path=storage)
            except ftray.FtrayError:
                continue
            if "Checkpoint epoch-0001" in run.logs():
                run.stop()
                return

    thread = threading.Thread(target=stop)
    thread.start()
    run = fit(folder, tiny_model, labelled_rows, num_workers=1, run_name=name, epochs=5000)
    thread.join()
    assert run.status() == "STOPPED"
    assert any(n.startswith("epoch-") for n in os.listdir(f"{run.path}/checkpoints"))
    assert Path(run.artifact_id).exists()


def test_more_workers_than_the_cluster_has_is_refused_with_what_it_has(
    session, folder, tiny_model, labelled_rows
):
    with pytest.raises(ClusterError, match=r"num_workers = 64.*room for 2\..*num_workers: 2"):
        fit(folder, tiny_model, labelled_rows, num_workers=64)


def test_nothing_is_left_in_a_session_that_ftray_did_not_start(session, two_workers):
    import ray

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ray.available_resources()["CPU"] == 2
    assert not [
        group
        for group in ray.util.placement_group_table().values()
        if group["state"] not in ("REMOVED",)
    ]
