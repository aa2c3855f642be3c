"""Every verb: what it prints, what it returns, and how Ctrl-C ends it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import ftray

VERBS = "demo fit runs show logs stop evaluate encode export models doctor".split()
METRICS = "average_precision hit_at_k ndcg_at_k precision_at_k recall_at_k reciprocal_rank".split()


def ftray_process(*arguments: object, **options) -> subprocess.Popen[str]:
    """`ftray …` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ftray", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def finished(cli, config, labelled_csv):
    path = config(
        run_name="first",
        callbacks=[{"EvaluationCallback": {"query_data": str(labelled_csv)}}],
    )
    done = cli("fit", path)
    assert done.code == 0
    return done


# ------------------------------------------------------------------ help


def test_every_verb_has_help(cli):
    whole = cli("--help")
    assert whole.code == 0
    for verb in VERBS:
        assert re.search(rf"^\W*{verb} ", whole.out, re.MULTILINE), verb
        own = cli(verb, "--help")
        assert own.code == 0 and f"ftray {verb}" in own.out
        assert cli(verb, "-h").out == own.out


def test_version(cli):
    assert cli("--version").out == f"{ftray.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fitt"], "No such command 'fitt'"),
        (["fit"], "Missing argument"),
        (["fit", "--sat", "x"], "No such option"),
        (["evaluate", "x", "--query", "q", "--limit", "0"], "--limit"),
        (["demo", "--epochs", "0"], "--epochs"),
    ],
)
def test_wrong_usage_is_2_with_help(cli, arguments, said):
    done = cli(*arguments)
    assert done.code == 2
    assert said in done.err and "Usage: ftray" in done.err and "Traceback" not in done.err


def test_help_imports_neither_torch_nor_ray():
    code = """
        import sys
        from ftray.cli import main
        sys.argv = ["ftray", "--help"]
        try:
            main()
        finally:
            heavy = {"torch", "ray", "transformers", "pyarrow", "numpy"} & set(sys.modules)
            assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)


# ------------------------------------------------------------------ fit, and what is on record


def test_fit_logs_metrics_and_places(finished, folder):
    run = folder / "runs" / "default" / "first"
    assert "Finetuning" in finished.out and "Done ✨" in finished.out
    assert "average_precision" in finished.out and "Before" in finished.out
    assert f"Artifact: {run}/artifact" in finished.out
    assert f"Run:      {run} (FINISHED)" in finished.out
    assert finished.err == ""


def test_fit_with_json_prints_one_line_and_logs_to_stderr(cli, config, monkeypatch):
    from ftray.callbacks import EarlyStopping

    monkeypatch.setattr(EarlyStopping, "on_epoch_begin", lambda *_: print("a user's print"))
    path = config(callbacks=[{"EarlyStopping": {"monitor": "train_loss"}}])
    done = cli("fit", path, "--json", "--set", "epochs=2", "--set", "run_name=second")
    assert done.code == 0
    (line,) = done.out.splitlines()
    summary = json.loads(line)
    assert summary["name"] == "second" and summary["status"] == "FINISHED"
    assert Path(summary["artifact"]).is_dir()
    assert "Training [2/" in done.err and "a user's print" in done.err


def test_set_overrides_and_variables_expand(cli, config, monkeypatch, labelled_csv):
    monkeypatch.setenv("DATA_FOLDER", str(labelled_csv.parent))
    path = config(train_data="${DATA_FOLDER}/train.csv", loss="TripletMarginLoss")
    done = cli(
        "fit", path, "--json", "--set", "loss=NTXentLoss", "--set", "loss_options.temperature=5e-1"
    )
    run = ftray.get_run(json.loads(done.out)["name"])
    assert run.config["loss"] == "NTXentLoss"
    assert run.config["loss_options"] == {"temperature": 0.5}


def test_keys_left_empty_in_yaml_stand_for_the_default(cli, config):
    path = config(callbacks=None, loss_options=None, csv_options=None, optimizer_options=None)
    assert cli("fit", path).code == 0


def test_runs(cli, finished, folder):
    assert re.search(r"first\W+default\W+FINISHED", cli("runs").out)
    (row,) = json.loads(cli("runs", "--json").out)
    assert row["name"] == "first" and row["status"] == "FINISHED" and row["loss"] == "SupConLoss"
    assert json.loads(cli("runs", "--experiment", "other", "--json").out) == []
    assert "There are no runs under 'elsewhere'" in cli("runs", "--storage-path", "elsewhere").out


def test_show(cli, finished, folder):
    shown = cli("show", "first")
    assert shown.code == 0
    for part in ("FINISHED", "SupConLoss", "96 rows", "Steps done", "artifact", "ndcg_at_k"):
        assert part in shown.out
    assert cli("show", folder / "runs/default/first").out == shown.out
    facts = json.loads(cli("show", "first", "--json").out)
    assert facts["status"] == "FINISHED" and facts["metrics"]["after"].keys() >= set(METRICS)


def test_logs_of_a_finished_run_end(cli, finished):
    plain = cli("logs", "first")
    assert "Done ✨" in plain.out
    assert cli("logs", "first", "-f").out == plain.out


def test_stop_of_a_finished_run_says_so(cli, finished):
    done = cli("stop", "first")
    assert done.code == 0 and done.out == "Run 'first' is FINISHED already.\n"


def test_stop_ends_a_run_at_its_next_step(cli, config, folder):
    def stop_it():
        log = folder / "runs/default/long/logs.txt"
        while not (log.exists() and "Training [1/" in log.read_text()):
            time.sleep(0.02)
        ftray.get_run("long").stop()  # what `ftray stop` calls

    thread = threading.Thread(target=stop_it)
    thread.start()
    done = cli("fit", config(run_name="long", epochs=2000))
    thread.join()
    assert done.code == 0
    assert "Stopped: a stop was requested" in done.out and "(STOPPED)" in done.out
    assert "run_name: long and resume: auto" in done.out
    assert "STOPPED: a stop was requested" in cli("show", "long").out


def test_a_run_that_fails_is_1_and_on_record(cli, config):
    path = config(
        loss="NormalizedSoftmaxLoss", loss_options={"temperature": 0.0}, run_name="broken"
    )
    done = cli("fit", path)
    assert done.code == 1
    assert (
        done.err.startswith("ftray: Training diverged: the training loss is nan")
        and "Traceback" not in done.err
    )
    shown = cli("show", "broken")
    assert shown.code == 0 and "FAILED: Training diverged: the training loss is nan" in shown.out
    assert json.loads(cli("show", "broken", "--json").out)["status"] == "FAILED"


# ------------------------------------------------------------------ evaluate, encode


@pytest.fixture
def pairs_csv(folder, pair_rows):
    path = folder / "pairs.csv"
    lines = ["query,document", *(f"{row['query']},{row['document']}" for row in pair_rows)]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def beir(folder):
    place = folder / "beir"
    (place / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "text": f"card number {i} lost"} for i in range(6)]
    queries = [{"_id": f"q{i}", "text": f"where is card {i}"} for i in range(3)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (place / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    judged = "\n".join(f"q{i}\td{i}\t1" for i in range(3))
    (place / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}\n")
    return place


def test_evaluate_labelled(cli, tiny_model, labelled_csv):
    done = cli("evaluate", tiny_model, "--query", labelled_csv, "--limit", 5)
    assert done.code == 0 and "at k = 5" in done.out
    for name in METRICS:
        assert name in done.out
    as_json = cli("evaluate", tiny_model, "--query", labelled_csv, "--limit", 5, "--json")
    metrics = json.loads(as_json.out)
    assert metrics == ftray.evaluate(str(tiny_model), str(labelled_csv), limit=5)
    assert f"{metrics['ndcg_at_k']:.5f}" in done.out


def test_evaluate_pairs_and_beir(cli, tiny_model, pairs_csv, beir):
    for source in (pairs_csv, beir):
        for distance in ("cosine", "dot", "euclidean", "sqeuclidean"):
            done = cli("evaluate", tiny_model, "--query", source, "--distance", distance, "--json")
            metrics = json.loads(done.out)
            assert done.code == 0 and 0 < metrics["hit_at_k"] <= 1


def test_columns_of_other_names(cli, tiny_model, folder, labelled_rows):
    lines = [f"{i},{row['text']},{row['label']}" for i, row in enumerate(labelled_rows)]
    (folder / "odd.csv").write_text("\n".join(["Ticket,Body,Team", *lines]))
    names = ["--column", "item=Body", "--column", "label=Team"]
    done = cli("evaluate", tiny_model, "--query", "odd.csv", *names, "--json")
    assert done.code == 0 and json.loads(done.out)["hit_at_k"] > 0
    done = cli("encode", tiny_model, "odd.csv", "-o", "out.parquet", "--column", "item=Body")
    assert done.code == 0
    texts = pq.read_table("out.parquet")["item"].to_pylist()
    assert texts == [row["text"] for row in labelled_rows]


def test_encode_writes_parquet_and_npy_and_overwrites_neither(
    cli, tiny_model, labelled_csv, labelled_rows, folder
):
    for name in ("out.parquet", "out.npy"):
        done = cli("encode", tiny_model, labelled_csv, "-o", name)
        assert done.code == 0 and done.out == f"96 embeddings of width 32 in {name}\n"
        before = (folder / name).read_bytes()
        again = cli("encode", tiny_model, labelled_csv, "-o", name)
        assert again.code == 2 and "nothing is overwritten" in again.err
        assert (folder / name).read_bytes() == before
    table = pq.read_table(folder / "out.parquet")
    vectors = np.load(folder / "out.npy")
    texts = [row["text"] for row in labelled_rows]
    assert table["item"].to_pylist() == texts
    assert np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), vectors)
    assert np.allclose(vectors, ftray.encode(str(tiny_model), texts), atol=1e-6)
    assert sorted(p.name for p in folder.iterdir()) == ["out.npy", "out.parquet"]


# ------------------------------------------------------------------ models, doctor


def test_models(cli):
    shown = cli("models")
    rows = json.loads(cli("models", "--json").out)
    assert {row["name"] for row in rows} == set(ftray.list_models())
    assert all(row["name"] in shown.out for row in rows)
    hub_ids = {row["name"]: row["hub_id"] for row in rows}
    assert hub_ids["minilm"] == "sentence-transformers/all-MiniLM-L6-v2"


def test_the_layers_of_a_model_as_a_fit_would_have_them(cli, tiny_model):
    shown = cli("models", str(tiny_model), "--summary", "--set", "freeze=true")
    assert "model.2.linear" in shown.out and "of which 1,024 are trained" in shown.out
    settings = ["--set", "output_dim=8", "--set", "freeze=['*.layer.0']", "--json"]
    found = json.loads(cli("models", str(tiny_model), "--summary", *settings).out)
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["model.2.linear"]["shape"] == "8 x 32"
    assert layers["model.0.model.encoder.layer.0.output.dense"]["trained"] == 0
    assert found["trained"] == sum(layer["trained"] for layer in found["layers"])
    for mistake, said in (
        (["--set", "epochs=3"], "it is not about the model"),
        (["--set", "freeze=3"], "freeze"),
        (["--task", "any"], "--summary is of one model"),
    ):
        refused = cli("models", str(tiny_model), "--summary", *mistake)
        assert refused.code == 2 and said in refused.err
    assert "--set belongs to --summary" in cli("models", "minilm", "--set", "a=1").err


def test_doctor_asks_no_network_when_told_so(cli, monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr(urllib.request, "urlopen", refused)
    shown = cli("doctor")
    assert shown.code == 0 and "HF_HUB_OFFLINE is set" in shown.out
    facts = json.loads(cli("doctor", "--json").out)
    assert facts["packages"]["ftray"] == ftray.__version__


def test_doctor_says_that_the_hub_is_out_of_reach(cli, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    shown = cli("doctor")
    assert shown.code == 0
    assert "http://127.0.0.1:9 cannot be reached" in shown.out and "local folders" in shown.out


# ------------------------------------------------------------------ Ctrl-C, SIGTERM


def epochs_logged(folder: Path, name: str) -> int:
    log = folder / "runs" / "default" / name / "logs.txt"
    return log.read_text().count("• loss:") if log.exists() else 0


def wait_for(condition, process, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_ctrl_c_stops_with_a_checkpoint_and_the_run_goes_on_with_resume(cli, config, folder):
    path = config(run_name="long", epochs=50)
    process = ftray_process("fit", path, cwd=folder)
    wait_for(lambda: epochs_logged(folder, "long") >= 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err and err.endswith("ftray: interrupted\n")
    assert "Ctrl-C: stopping at the next step" in out
    assert "STOPPED: Ctrl-C was received" in cli("show", "long").out
    assert list((folder / "runs/default/long/checkpoints").iterdir())
    steps = ftray.get_run("long").history()["global_step"].to_pylist()[-1]
    assert 0 < steps < 150

    again = cli("fit", path, "--set", "resume=auto")
    assert again.code == 0 and "Continuing from checkpoint" in again.out
    run = ftray.get_run("long")
    kinds = zip(*(run.history()[c].to_pylist() for c in ("kind", "global_step")), strict=True)
    assert run.status() == "FINISHED"
    assert [step for kind, step in kinds if kind == "step"] == list(range(1, 151))


def test_sigterm_is_143_and_a_follower_of_the_log_sees_the_end(cli, config, folder):
    process = ftray_process("fit", config(run_name="long", epochs=2000), cwd=folder)
    wait_for(lambda: epochs_logged(folder, "long") >= 1, process)
    timer = threading.Timer(1.5, lambda: process.send_signal(signal.SIGTERM))
    timer.start()
    followed = cli("logs", "long", "--follow")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in err
    assert "SIGTERM: stopping at the next step" in out
    assert followed.code == 0
    assert followed.out == cli("logs", "long").out
    assert "Stopped: SIGTERM was received" in followed.out
    assert ftray.get_run("long").status() == "STOPPED"
    assert list((folder / "runs/default/long/checkpoints").iterdir())


def test_a_second_ctrl_c_stops_at_once(cli, config, folder, monkeypatch):
    from ftray.callbacks import EarlyStopping

    def press_twice(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(EarlyStopping, "on_train_batch_begin", press_twice)
    path = config(run_name="hasty", callbacks=[{"EarlyStopping": {"monitor": "train_loss"}}])
    assert cli("fit", path).code == 130
    assert "STOPPED: interrupted" in cli("show", "hasty").out


@pytest.mark.parametrize("moment", ["typer", "yaml", "torch", "transformers"])
def test_ctrl_c_during_imports_is_130_without_a_traceback(config, folder, moment):
    code = f"""
        import os, signal, sys

        class PressCtrlC:
            def find_spec(self, name, path=None, target=None):
                if name == {moment!r}:
                    sys.meta_path.remove(self)
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, PressCtrlC())
        from ftray.cli import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), "fit", str(config())],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 130
    assert done.stderr == "ftray: interrupted\n"
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    "moment", ["ftray.training.job.read_records", "ftray.training.job.load_encoder"]
)
def test_ctrl_c_before_training_is_130_and_leaves_nothing(cli, config, folder, monkeypatch, moment):
    import ftray.training.loop  # noqa: F401

    def press(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(moment, press)
    done = cli("fit", config())
    assert done.code == 130 and done.err == "ftray: interrupted\n"
    assert not (folder / "runs").exists()


def test_ctrl_c_while_following_or_encoding_is_130(cli, finished, tiny_model, folder, monkeypatch):
    def press(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ftray.run.Run.stream_logs", press)
    assert cli("logs", "first", "-f").code == 130
    (folder / "texts.txt").write_text("card lost\n")
    monkeypatch.setattr("ftray.evaluation.embeddings_file.EmbeddingsFile.finish", press)
    assert cli("encode", tiny_model, "texts.txt", "-o", "out.npy").code == 130
    assert not list(folder.glob("*.npy*")) and not list(folder.glob(".*"))
