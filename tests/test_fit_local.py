"""A fit in this process: the record, the metrics, the hooks, stopping and continuing."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import ftray
from ftray.callbacks import BestModelCheckpoint, Callback, EarlyStopping, EvaluationCallback
from ftray.callbacks.base import FINETUNER_HOOKS, LogMetrics, Stop
from ftray.errors import ConfigError, RunExistsError, RunFailedError


def fit(tmp_path: Path, **fields):
    fields = {
        "loss": "SupConLoss",
        "epochs": 2,
        "batch_size": 32,
        "num_workers": 0,
        "learning_rate": 1e-3,
        "storage_path": str(tmp_path / "runs"),
        **fields,
    }
    return ftray.fit(listeners=[], **fields)


def weights(run) -> dict[str, np.ndarray]:
    return {k: v.numpy() for k, v in load_file(f"{run.artifact_id}/model.safetensors").items()}


def assert_bit_equal(a, b):
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not np.array_equal(first[name], second[name])]
    assert not different


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model, labelled_rows):
    tmp_path = tmp_path_factory.mktemp("finished")
    return fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        val_split=0.25,
        epochs=3,
        log_rows=True,
        callbacks=[
            BestModelCheckpoint("ndcg_at_k"),
            EvaluationCallback(labelled_rows[:40], labelled_rows[40:], gather_examples=True),
        ],
    )


def test_a_fit_learns_and_says_so(finished):
    assert finished.status() == "FINISHED"
    metrics = finished.metrics()
    assert metrics["after"]["ndcg_at_k"] > metrics["before"]["ndcg_at_k"]
    losses = [x for x in finished.history()["loss"].to_pylist() if x is not None]
    assert losses[-1] < losses[0]


def test_best_metrics_are_those_of_the_artifact(finished):
    best = [e for e in finished._evaluations() if e.when != "before"]
    top = max(best, key=lambda e: e.metrics["ndcg_at_k"])
    assert finished.metrics()["after"]["ndcg_at_k"] == top.metrics["ndcg_at_k"]
    facts = json.loads(Path(f"{finished.artifact_id}/ftray.json").read_text())
    assert facts["global_step"] == top.global_step


def test_the_artifact_gives_the_metrics_that_the_run_reports(finished, labelled_rows):
    again = ftray.evaluate(finished.artifact_id, labelled_rows[:40], labelled_rows[40:])
    after = finished.metrics()["after"]
    assert again == pytest.approx({name: after[name] for name in again}, abs=1e-6)


def test_the_record_answers_in_a_new_process_without_torch_or_ray(finished):
    code = """
        import sys, json, ftray
        run = ftray.get_run(sys.argv[1])
        print(json.dumps([run.status(), run.metrics(), run.history().num_rows, run.logs()]))
        assert not {"torch", "ray"} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), finished.path],
        capture_output=True,
        text=True,
        check=True,
    )
    status, metrics, rows, logs = json.loads(done.stdout)
    assert (status, metrics, logs) == (finished.status(), finished.metrics(), finished.logs())
    assert rows == finished.history().num_rows > 9


def test_logs_speak_finetuners_words(finished):
    logs = finished.logs()
    assert "Done ✨" in logs
    assert "Finetuning took 0 days, 0 hours 0 minutes" in logs
    assert "Metric: 'tiny_ndcg_at_k' before fine-tuning: 0." in logs
    assert "Model improved from -inf to 0." in logs
    assert list(finished.stream_logs()) == logs.splitlines()


def test_examples_are_kept_before_and_after(finished, labelled_rows):
    results = finished.example_results()
    assert list(results["before"]) == [row["text"] for row in labelled_rows[:5]]
    assert results["before"].keys() == results["after"].keys()
    for matches in results["after"].values():
        assert len(matches) == 20
        assert [m["score"] for m in matches] == sorted((m["score"] for m in matches), reverse=True)
    finished.display_examples(k=2)
    finished.display_metrics()


def test_history_has_a_row_for_each_step_evaluation_and_epoch(finished):
    kinds = finished.history()["kind"].to_pylist()
    steps = finished.history()["global_step"].to_pylist()
    assert kinds.count("epoch") == 3
    assert kinds.count("evaluation") == 4
    assert [s for s, k in zip(steps, kinds, strict=True) if k == "step"] == list(
        range(1, kinds.count("step") + 1)
    )


def test_an_artifact_is_copied_once_and_never_overwritten(finished, tmp_path):
    folder = finished.save_artifact(tmp_path / "artifacts")
    assert (folder / "model.safetensors").exists()
    with pytest.raises(ftray.FtrayError, match="exists already"):
        finished.save_artifact(tmp_path / "artifacts")


def test_a_run_name_that_exists_is_refused_before_anything_is_written(finished, labelled_rows):
    before = sorted(p.name for p in Path(finished.path).rglob("*"))
    root = Path(finished.path).parent.parent
    with pytest.raises(RunExistsError, match="exists"):
        ftray.fit(
            listeners=[],
            model=finished.config["model"],
            train_data=labelled_rows,
            run_name=finished.name,
            storage_path=str(root),
            num_workers=0,
        )
    assert before == sorted(p.name for p in Path(finished.path).rglob("*"))


class Recorder(Callback):
    def __init__(self):
        self.trace = []

    def __getattribute__(self, name):
        if name in FINETUNER_HOOKS:
            return lambda state, *rest: self.trace.append(name)
        return super().__getattribute__(name)


def test_hooks_come_in_finetuners_order(tmp_path, tiny_model, labelled_rows):
    recorder = Recorder()
    fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows[:64],
        eval_data=labelled_rows[64:96],
        sampler="random",
        callbacks=[recorder],
    )
    batch = ["on_train_batch_begin", "on_train_batch_end"]
    validation = ["on_val_begin", "on_val_batch_begin", "on_val_batch_end", "on_val_end"]
    epoch = [
        "on_epoch_begin",
        "on_train_epoch_begin",
        *batch * 2,
        "on_train_epoch_end",
        *validation,
        "on_epoch_end",
    ]
    assert recorder.trace == ["on_fit_begin", *epoch * 2, "on_fit_end"]


def test_without_evaluation_data_there_are_no_validation_hooks(tmp_path, tiny_model, labelled_rows):
    recorder = Recorder()
    fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows[:32],
        sampler="random",
        epochs=1,
        callbacks=[recorder],
    )
    assert not [name for name in recorder.trace if "val" in name]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_order_of_callbacks_does_not_matter(tmp_path, tiny_model, labelled_rows, position):
    callbacks = [
        EvaluationCallback(labelled_rows[:24], labelled_rows[24:]),
        BestModelCheckpoint("ndcg_at_k"),
        EarlyStopping("ndcg_at_k", patience=9),
    ]
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        callbacks=callbacks[position:] + callbacks[:position],
    )
    evaluations = [e.metrics["ndcg_at_k"] for e in run._evaluations()]
    best = json.loads(Path(f"{run.artifact_id}/ftray.json").read_text())["best"]
    assert best["value"] == max(evaluations[1:])


def test_early_stopping_ends_the_run_and_says_why(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        epochs=9,
        callbacks=[EarlyStopping("train_loss", patience=2, baseline=0.0)],
    )
    assert run.status() == "FINISHED"
    assert run.history()["kind"].to_pylist().count("epoch") == 2
    assert "no improvement of 'train_loss' for 2 epochs" in run.logs()
    assert "7 of 9 epochs saved" in run.logs()


def test_a_monitor_that_will_never_exist_is_refused_and_nothing_is_written(
    tmp_path, tiny_model, labelled_rows
):
    with pytest.raises(ConfigError, match=r"val_loss.*never have.*eval_data.*train_loss"):
        fit(
            tmp_path,
            model=str(tiny_model),
            train_data=labelled_rows,
            callbacks=[BestModelCheckpoint()],
        )
    assert not (tmp_path / "runs").exists()


class Failing(Callback):
    def on_train_batch_end(self, state):
        raise ValueError("no good")


def test_a_failing_callback_fails_the_run_by_name(tmp_path, tiny_model, labelled_rows):
    with pytest.raises(RunFailedError, match=r"Failing\.on_train_batch_end failed.*no good"):
        fit(
            tmp_path,
            model=str(tiny_model),
            train_data=labelled_rows,
            run_name="x",
            callbacks=[Failing()],
        )
    run = ftray.get_run("x", storage_path=str(tmp_path / "runs"))
    assert run.status() == "FAILED"
    assert "Failing.on_train_batch_end" in run.details
    with pytest.raises(RunFailedError, match="no good"):
        run.metrics()


class OwnMetric(Callback):
    metric_names = ("answer",)

    def on_train_epoch_end(self, state):
        return LogMetrics({"answer": 41.0 + state.epoch})

    def on_evaluation_end(self, state, result):
        assert result.keys["ndcg_at_k"] in state.metrics


def test_a_users_metric_can_be_monitored(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        callbacks=[BestModelCheckpoint("answer"), OwnMetric()],
    )
    assert "Model improved from 41.000 to 42.000!" in run.logs()
    assert run.history()["answer"].to_pylist()[-1] == 42.0


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step(tmp_path, tiny_model, labelled_rows):
    with pytest.raises(RunFailedError, match=r"loss is (nan|inf).*epoch \d.*step \d"):
        fit(
            tmp_path,
            model=str(tiny_model),
            train_data=labelled_rows,
            loss="NormalizedSoftmaxLoss",
            loss_options={"temperature": 0.0},
        )


def test_zero_epochs_evaluate_only(tmp_path, tiny_model, labelled_rows):
    run = fit(
        tmp_path,
        model=str(tiny_model),
        train_data=labelled_rows,
        epochs=0,
        callbacks=[
            EvaluationCallback(labelled_rows, gather_examples=True),
            BestModelCheckpoint("ndcg_at_k"),
        ],
    )
    assert run.status() == "FINISHED"
    assert run.history()["kind"].to_pylist() == ["evaluation"]  # and no step
    assert not Path(run.path, "checkpoints").exists()
    for said in (run.metrics(), run.example_results()):
        assert said["before"] and said["after"] == said["before"]
    assert run.per_query("after").equals(run.per_query("before"))
    base = load_file(tiny_model / "model.safetensors")
    given = load_file(f"{run.artifact_id}/model.safetensors")
    assert base.keys() == given.keys()
    assert all(tensor.equal(given[name]) for name, tensor in base.items())
    facts = json.loads(Path(run.artifact_id, "ftray.json").read_text())
    assert facts["metrics"] == run.metrics()["after"] and facts["global_step"] == 0


def test_layouts_are_the_same_mathematics(tmp_path, tiny_model, pair_rows):
    runs = [
        fit(
            tmp_path,
            model=str(tiny_model),
            train_data=pair_rows,
            loss="MultipleNegativesRankingLoss",
            packing=packing,
            batch_size=16,
        )
        for packing in ("packed", "bucketed", "padded")
    ]
    losses = [[x for x in run.history()["loss"].to_pylist() if x is not None] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, state):
        return Stop("enough") if state.global_step == self.step else None


def test_a_stop_in_mid_epoch_keeps_a_checkpoint(tmp_path, tiny_model, labelled_rows):
    run = fit(tmp_path, model=str(tiny_model), train_data=labelled_rows, callbacks=[StopAt(2)])
    assert sorted(os.listdir(f"{run.path}/checkpoints")) == ["epoch-0000-step-000002"]
    assert run.history()["kind"].to_pylist() == ["step", "step"]


CRASH = """
    import os, sys, json, ftray
    from ftray.callbacks import Callback, BestModelCheckpoint, EarlyStopping

    class Crash(Callback):
        def on_train_batch_end(self, state):
            if state.global_step == int(sys.argv[4]):
                os._exit(9)

    ftray.fit(listeners=[], model=sys.argv[1], train_data=json.load(open(sys.argv[2])),
              loss="ProxyAnchorLoss", epochs=3, batch_size=32, num_workers=0, learning_rate=1e-3,
              storage_path=sys.argv[3], run_name="run", resume="auto", sampler="class",
              callbacks=[BestModelCheckpoint("train_loss"),
                         EarlyStopping("train_loss", patience=2), Crash()])
"""


@pytest.fixture(scope="module")
def crash(tmp_path_factory, dropout_model, labelled_rows):
    folder = tmp_path_factory.mktemp("crash")
    (folder / "rows.json").write_text(json.dumps(labelled_rows))

    def run(storage: str, crash_at: int) -> int:
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(CRASH),
            str(dropout_model),
            str(folder / "rows.json"),
            str(folder / storage),
            str(crash_at),
        ]
        return subprocess.run(command, check=False).returncode

    return folder, run


def test_a_killed_run_continues_to_bit_equal_weights(crash):
    """Dropout on, a loss with parameters, a schedule, callbacks with state: nothing may differ."""
    folder, run = crash
    assert run("whole", -1) == 0
    assert run("killed", 5) == 9
    killed = ftray.get_run("run", storage_path=str(folder / "killed"))
    assert killed.status() == "FAILED" and "is gone" in killed.details
    assert run("killed", -1) == 0
    whole = ftray.get_run("run", storage_path=str(folder / "whole"))
    assert_bit_equal(whole, killed)
    assert "Continuing from checkpoint epoch-0001" in killed.logs()

    def losses(r):
        return [x for x in r.history()["loss"].to_pylist() if x is not None]

    assert losses(whole) == losses(killed)


def test_a_run_continues_only_with_what_it_began_with(crash, labelled_rows):
    folder, run = crash
    assert run("other", 5) == 9
    with pytest.raises(ConfigError, match="started with loss = 'ProxyAnchorLoss'"):
        ftray.fit(
            listeners=[],
            **{
                **_as_begun(folder / "other"),
                "train_data": labelled_rows,
                "loss": "SupConLoss",
                "resume": "auto",
            },
        )


def _as_begun(storage: Path) -> dict:
    config = ftray.get_run("run", storage_path=str(storage)).config
    return {k: v for k, v in config.items() if k not in ("callbacks", "csv_options")}


def test_delete_asks_and_then_deletes_everything(tmp_path, tiny_model, labelled_rows, monkeypatch):
    run = fit(tmp_path, model=str(tiny_model), train_data=labelled_rows, epochs=0)
    storage = str(tmp_path / "runs")
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    assert not ftray.delete_run(run.name, storage_path=storage)
    assert Path(run.path).exists()
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    assert ftray.delete_run(run.name, storage_path=storage)
    assert not Path(run.path).exists()


def test_encode_gives_a_row_for_each_text_in_order(tiny_model, labelled_rows):
    texts = [row["text"] for row in labelled_rows]
    model = ftray.get_model(str(tiny_model))
    vectors = ftray.encode(model, texts)
    assert vectors.shape == (96, model.embedding_dim) and vectors.dtype == np.float32
    assert np.allclose(vectors[7], ftray.encode(model, [texts[7]])[0], atol=1e-6)
    assert math.isclose(float(np.linalg.norm(vectors[0])), 1.0, abs_tol=1e-5)


def test_a_doclist_comes_back_with_embeddings(tiny_model):
    from docarray import DocList
    from docarray.documents import TextDoc

    docs = DocList[TextDoc]([TextDoc(text="card lost"), TextDoc(text="send money")])
    out = ftray.encode(str(tiny_model), docs)
    assert [doc.text for doc in out] == ["card lost", "send money"]
    assert np.allclose(
        np.stack([doc.embedding for doc in out]),
        ftray.encode(str(tiny_model), ["card lost", "send money"]),
    )
    assert docs[0].embedding is None
