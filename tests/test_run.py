"""A run as others see it: by name or place, alive or gone, and whether it may go on."""

from __future__ import annotations

import inspect
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ftray
from ftray.callbacks import Callback, EarlyStopping, EvaluationCallback
from ftray.callbacks.base import Stop
from ftray.callbacks.registry import resolve_callbacks
from ftray.errors import ConfigError, RunExistsError, RunFailedError, RunNotFoundError
from ftray.record.storage import Storage
from ftray.run import Run, find_run, find_runs, remove_run
from tests.handmade import ended, evaluation, record


def a_run(folder: Path, name: str = "one", *events: Any, status: str = "FINISHED") -> Storage:
    return record(Storage(f"{folder}/runs/default/{name}"), *events, status=status)


def put_status(storage: Storage, **values: Any) -> None:
    """Change status.json: as if its writer were another process."""
    facts = json.loads(storage.read_text("status.json"))
    storage.write_text("status.json", json.dumps({**facts, **values}))


# ---------------------------------------------------------------- names and places


def test_a_uri_with_options_has_its_names_and_its_artifact_before_them(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/runs?region=eu").under("my exp", "run 1")
    record(storage, status="FINISHED")
    run = Run(storage)
    assert (run.name, run.experiment) == ("run 1", "my exp")
    assert run.artifact_id == f"file://{tmp_path}/runs/my%20exp/run%201/artifact?region=eu"
    (found,) = find_runs(None, f"file://{tmp_path}/runs?region=eu")
    assert (found.name, found.experiment) == ("run 1", "my exp")


def test_a_model_is_loaded_from_a_uri_with_options(tiny_model: Path) -> None:
    model = ftray.get_model(f"file://{tiny_model}?note=a/b")
    assert model.embedding_dim == ftray.get_model(tiny_model).embedding_dim


def test_a_folder_that_is_no_run_is_neither_found_nor_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    for name in ("status.json", None):
        if name is not None:
            (folder / name).write_text('{"status": "FINISHED", "details": ""}')
        with pytest.raises(RunNotFoundError, match="is no run directory"):
            ftray.delete_run(str(folder), confirm=True)
        with pytest.raises(RunNotFoundError, match="is no run directory"):
            remove_run(Run(Storage(str(folder))))
    assert find_runs(None, str(tmp_path)) == []
    assert (folder / "thesis.txt").exists()


def test_a_run_is_found_and_deleted_by_name_and_by_path(tmp_path: Path) -> None:
    one, two = a_run(tmp_path, "one"), a_run(tmp_path, "two")
    assert find_run("one", storage_path=f"{tmp_path}/runs").path == one.uri
    assert find_run(two.uri).path == two.uri
    assert ftray.delete_run(two.uri, confirm=True) and not two.exists()
    assert one.exists()


def test_a_run_whose_machine_is_gone_can_be_deleted(tmp_path: Path) -> None:
    storage = a_run(tmp_path, status="STARTED")
    put_status(storage, host="another-node")
    with pytest.raises(ftray.FtrayError, match="is STARTED; stop it first"):
        remove_run(Run(storage))
    put_status(storage, seen_s=time.time() - 200)
    run = Run(storage)
    assert run.status() == "FAILED" and run.times["ended_s"] < time.time() - 100
    assert list(run.stream_logs()) == []
    remove_run(run)
    assert not storage.exists()


def test_examples_and_single_queries_are_those_of_the_artifact(tmp_path: Path) -> None:
    import pyarrow as pa

    def seen(global_step: int, **more: Any) -> Any:
        table = pa.table({"query_id": [str(global_step)]})
        examples = {"q": [{"id": str(global_step)}]}
        return evaluation(global_step, 0.5, examples=examples, per_query=table, **more)

    events = (seen(0, when="before"), seen(3), seen(6))
    run = Run(a_run(tmp_path, "best", *events, ended(artifact_step=3)))
    assert run.example_results() == {"before": {"q": [{"id": "0"}]}, "after": {"q": [{"id": "3"}]}}
    assert run.per_query()["query_id"].to_pylist() == ["3"]
    run = Run(a_run(tmp_path, "stopped", *events, ended(artifact_step=5, status="STOPPED")))
    assert run.metrics()["after"] == {} and run.example_results()["after"] == {}
    with pytest.raises(ftray.FtrayError, match="no evaluation 'evaluation' after"):
        run.per_query()


# ---------------------------------------------------------------- what is shown


def shown(capsys: pytest.CaptureFixture[str], call: Any) -> list[str]:
    """The lines printed, without borders and colours, white space folded."""
    capsys.readouterr()
    call()
    lines = capsys.readouterr().out.splitlines()
    return [" ".join(re.sub(r"[─━│┃┏┓┗┛┡┩┳┇┴┬┼╇├┤╞╡┌┐└┘]", " ", line).split()) for line in lines]


def test_metrics_of_one_evaluation_are_a_table_with_the_keys_to_monitor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = (evaluation(0, 0.25, caption="a", when="before"), evaluation(3, 0.5, caption="a"))
    run = Run(a_run(tmp_path, "one", *events, ended(artifact_step=3)))
    lines = shown(capsys, run.display_metrics)
    assert "Retrieval Metric Before After Change" in lines
    assert "a_ndcg_at_k 0.25000 0.50000 +0.25000" in lines


def test_metrics_of_several_evaluations_are_grouped_by_caption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = [evaluation(0, 0.25, caption=c, when="before") for c in ("b", "a")]
    events += [evaluation(3, 0.5, caption="b")]
    run = Run(a_run(tmp_path, "one", *events, ended(artifact_step=3)))
    lines = shown(capsys, run.display_metrics)
    assert "Evaluation Retrieval Metric Before After Change" in lines
    first, second = (lines.index(line) for line in lines if "ndcg_at_k" in line)
    assert lines[first] == "b ndcg_at_k 0.25000 0.50000 +0.25000"
    assert lines[second] == "a ndcg_at_k 0.25000"
    assert run.metrics()["before"] == {"b_ndcg_at_k": 0.25, "a_ndcg_at_k": 0.25}


def match(name: str, text: str, score: float, relevant: bool) -> dict[str, Any]:
    return {"id": name, "text": text, "score": score, "relevant": relevant}


def test_examples_show_each_query_with_its_best_matches_on_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"[q] ü": [match("1", "no\n  good", 0.5, False), match("2", "right", 0.25, True)]}
    new = {"[q] ü": [match("2", "right", 0.75, True), match("1", "no good", 0.125, False)]}
    events = (
        evaluation(0, 0.1, when="before", examples=old),
        evaluation(3, 0.5, examples=new),
    )
    run = Run(a_run(tmp_path, "one", *events, ended(artifact_step=3)))
    lines = [line for line in shown(capsys, run.display_examples) if line]
    assert lines == [
        *("Results before fine-tuning", "Text Score", "Query [q] ü"),
        *("Match 1 no good 0.500", "Match 2 ✓ right 0.250"),
        *("Results after fine-tuning", "Text Score", "Query [q] ü"),
        *("Match 1 ✓ right 0.750", "Match 2 no good 0.125"),
    ]
    assert not any("Match 2" in line for line in shown(capsys, lambda: run.display_examples(k=1)))
    with pytest.raises(ftray.FtrayError, match="k is 0: at least 1"):
        run.display_examples(k=0)


def test_examples_of_several_evaluations_are_shown_in_turn_or_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"q": [match("1", "text", 0.5, True)]}
    events = [evaluation(3, 0.5, caption=c, examples=found) for c in ("easy", "hard")]
    run = Run(a_run(tmp_path, "one", *events, ended(artifact_step=3)))
    with pytest.raises(ftray.FtrayError, match="Several evaluations: name one of easy, hard"):
        run.example_results()
    assert run.example_results("hard")["after"] == found
    titles = [line for line in shown(capsys, run.display_examples) if "Results" in line]
    assert titles == ["Results after fine-tuning (easy)", "Results after fine-tuning (hard)"]
    lines = shown(capsys, lambda: run.display_examples(evaluation="easy"))
    assert [line for line in lines if "Results" in line] == ["Results after fine-tuning"]
    with pytest.raises(ftray.FtrayError, match="Did you mean 'easy'"):
        run.display_examples(evaluation="eazy")


def test_where_nothing_was_evaluated_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(a_run(tmp_path, "one", ended(artifact_step=3)))
    assert shown(capsys, run.display_metrics) == [
        "Run 'one' (FINISHED) has no metrics of an EvaluationCallback"
    ]
    assert "EvaluationCallback with gather_examples=True" in shown(capsys, run.display_examples)[0]
    failed_run = Run(a_run(tmp_path, "two", status="FAILED"))
    with pytest.raises(RunFailedError, match="Run 'two' failed"):
        failed_run.display_metrics()


def test_metrics_examples_and_queries_of_an_interpolated_artifact_are_its_own(
    tmp_path: Path,
) -> None:
    import pyarrow as pa

    def seen(who: str, value: float, **more: Any) -> Any:
        table = pa.table({"query_id": [who]})
        return evaluation(6, value, examples={"q": [{"id": who}]}, per_query=table, **more)

    mixed = [seen(f"mixed {a}", a, weights=f"alpha {a}", alpha=a) for a in (0.4, 0.8)]
    last = ended(artifact_step=6, artifact_weights="alpha 0.4")
    run = Run(a_run(tmp_path, "mixed", seen("own", 0.1), *mixed, last))
    assert run.metrics()["after"] == {"ndcg_at_k": 0.4}
    assert run.example_results()["after"] == {"q": [{"id": "mixed 0.4"}]}
    assert run.per_query()["query_id"].to_pylist() == ["mixed 0.4"]


def test_the_log_is_streamed_line_by_line_while_it_grows(tmp_path: Path) -> None:
    storage = a_run(tmp_path, status="STARTED")
    storage.write_text("logs.txt", "one\ntwo\u2028still two\nthr")
    stream = Run(storage).stream_logs(interval=0.01)
    assert [next(stream), next(stream)] == ["one", "two\u2028still two"]
    storage.write_text("logs.txt", "one\ntwo\u2028still two\nthree\n\nfive")
    put_status(storage, status="FINISHED")
    assert list(stream) == ["three", "", "five"]


# ---------------------------------------------------------------- fit


@pytest.fixture
def fit(tmp_path: Path, tiny_model: Path, labelled_csv: Path):
    """A fit of a fraction of a second, in this process."""

    def call(**fields: Any) -> Run:
        values = {
            "model": str(tiny_model),
            "train_data": str(labelled_csv),
            "loss": "SupConLoss",
            "epochs": 1,
            "batch_size": 32,
            "num_workers": 0,
            "storage_path": f"{tmp_path}/runs",
            "run_name": "one",
            **fields,
        }
        return ftray.fit(listeners=[], **values)

    return call


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state):
        return Stop("enough") if state.global_step == self.step else None


class Failing(Callback):
    def on_train_batch_end(self, state):
        raise ValueError("no good")


def failed(fit, **fields: Any) -> Storage:
    """A run that failed at its first step; what a resume may change is asked of it."""
    with pytest.raises(RunFailedError):
        fit(callbacks=[Failing()], **fields)
    return find_run("one", storage_path=fields["storage_path"])._storage


def test_a_running_run_is_refused_in_other_words_than_a_finished_one(fit, tmp_path: Path) -> None:
    storage = a_run(tmp_path, status="STARTED")
    put_status(storage, host="another-node", pid=77, seen_s=time.time() - 12)
    for resume in ("auto", "must"):
        with pytest.raises(
            RunExistsError, match=r"is running \(process 77 on another-node, last sign 1\d s ago\)"
        ):
            fit(resume=resume)
    put_status(storage, status="FINISHED")
    with pytest.raises(RunExistsError, match="is FINISHED: there is nothing to continue"):
        fit(resume="auto")
    with pytest.raises(RunExistsError, match=r"exists\. Give another run_name"):
        fit(resume="never")


@pytest.mark.parametrize("gone", [{"host": "another-node"}, {"host": platform.node(), "pid": 1}])
def test_a_run_whose_driver_died_is_continued(
    fit, tmp_path: Path, gone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine; or here, where another process has the pid by now."""
    root = f"{tmp_path}/runs"
    storage = failed(fit, storage_path=root)
    first = json.loads(storage.read_text("status.json"))
    put_status(storage, status="STARTED", seen_s=time.time() - 200, **gone)
    monkeypatch.setattr(Failing, "on_train_batch_end", lambda *_: None)
    run = fit(resume="must", callbacks=[Failing()])
    assert run.status() == "FINISHED"
    assert run.times["created_s"] == first["created_s"]
    assert [a["config"]["resume"] for a in run.facts["resumed"]] == ["must"]
    assert run.config["resume"] == "never"


@pytest.mark.parametrize("left", [[], [".ftray-77"], ["control"], ["run.yaml"], ["status.json"]])
def test_what_a_crash_before_the_start_left_is_a_fresh_run(
    fit, tmp_path: Path, left: list[str]
) -> None:
    folder = tmp_path / "runs" / "default" / "one"
    folder.mkdir(parents=True)
    gone = {"status": "CREATED", "details": "", "seen_s": 0.0, "pid": 1, "host": "x"}
    for name in left:
        if name == "control":
            (folder / name).mkdir()
        else:
            (folder / name).write_text(json.dumps(gone))
    with pytest.raises(RunExistsError):
        fit()
    with pytest.raises(RunNotFoundError):
        fit(resume="must")
    run = fit(resume="auto")
    assert run.status() == "FINISHED" and "resumed" not in run.facts


def test_a_folder_with_other_things_is_not_taken(fit, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "default" / "one"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(RunExistsError, match="holds other things than a run"):
        fit(resume="auto")
    assert os.listdir(folder) == ["thesis.txt"]


def test_who_comes_second_is_refused(fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes up the same run while this one reads its data."""
    storage = failed(fit, storage_path=f"{tmp_path}/runs")
    from ftray.training import job

    prepare = job.prepare

    def slow(*arguments: Any, **options: Any) -> Any:
        put_status(storage, status="STARTED", seen_s=time.time(), host="another-node")
        return prepare(*arguments, **options)

    monkeypatch.setattr(job, "prepare", slow)
    before = storage.read_text("logs.txt")
    with pytest.raises(RunExistsError, match="is running"):
        fit(resume="auto", callbacks=[Failing()])
    assert storage.read_text("logs.txt") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 0.5}, r"started with learning_rate = None, not 0\.5"),
        ({"val_split": 0.25}, r"started with val_split = 0\.0, not 0\.25"),
        ({"callbacks": []}, r"started with callbacks = Failing, not none"),
        ({"callbacks": [Failing(), StopAt(9)]}, r"callbacks = Failing, not Failing, StopAt"),
    ],
)
def test_a_resume_with_something_else_is_refused(
    fit, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    storage = failed(fit, storage_path=f"{tmp_path}/runs")
    facts = storage.read_text("run.yaml")
    with pytest.raises(ConfigError, match=message):
        fit(**{"resume": "auto", "callbacks": [Failing()], **changed})
    assert storage.read_text("run.yaml") == facts


def test_a_resume_with_other_data_is_refused(fit, tmp_path: Path, labelled_rows) -> None:
    root = f"{tmp_path}/runs"
    rows = labelled_rows

    def callbacks(evaluated, patience=9):
        monitor = EarlyStopping("ndcg_at_k", patience=patience)
        return [EvaluationCallback(evaluated, rows[40:]), monitor, Failing()]

    with pytest.raises(RunFailedError):
        fit(storage_path=root, eval_data=rows[:32], callbacks=callbacks(rows[:40]))
    again = {"resume": "auto", "eval_data": rows[:32], "callbacks": callbacks(rows[:40])}
    with pytest.raises(ConfigError, match="validation is not what the run"):
        fit(**{**again, "eval_data": rows[8:32]})
    with pytest.raises(ConfigError, match="evaluation is not what the run"):
        fit(**{**again, "callbacks": callbacks(rows[:24])})
    with pytest.raises(ConfigError, match=r"EarlyStopping: patience = 9, not 8"):
        fit(**{**again, "callbacks": callbacks(rows[:40], patience=8)})
    with pytest.raises(RunFailedError, match="no good"):  # nothing is different: it goes on
        fit(**again)


def test_run_yaml_reads_back_as_the_configuration(fit, tmp_path: Path, labelled_csv: Path) -> None:
    run = fit(
        train_data=labelled_csv,
        learning_rate=np.float64(1e-3),
        optimizer_options={"betas": (0.9, np.float64(0.5))},
        callbacks=[
            {"EvaluationCallback": {"query_data": labelled_csv, "limit": 5}},
            EarlyStopping("ndcg_at_k"),
        ],
    )
    facts = yaml.safe_load((Path(run.path) / "run.yaml").read_text())
    assert facts["reproducible"] is True
    config = facts["config"]
    assert config["train_data"] == str(labelled_csv)
    assert config["optimizer_options"] == {"betas": [0.9, 0.5]}
    evaluated, stopping = config["callbacks"]
    assert evaluated["EvaluationCallback"]["query_data"] == str(labelled_csv)
    assert evaluated["EvaluationCallback"]["limit"] == 5
    assert stopping["EarlyStopping"]["mode"] == "max"
    assert len(resolve_callbacks(config["callbacks"])) == 2
    again = ftray.fit(ftray.FitConfig(**{**config, "run_name": "two"}), listeners=[])
    assert again.config == {**config, "run_name": "two"}
    assert again.metrics() == run.metrics()


def test_what_yaml_cannot_hold_is_named_in_the_record(fit, labelled_rows) -> None:
    from pytorch_metric_learning.distances import CosineSimilarity

    run = fit(
        train_data=labelled_rows,
        loss="ContrastiveLoss",
        loss_options={
            "distance": CosineSimilarity(),
            "pos_margin": np.float32(1.0),
            "neg_margin": 0,
        },
        callbacks=[EvaluationCallback(labelled_rows), StopAt(2)],
    )
    assert run.facts["reproducible"] is False
    assert run.config["train_data"] == "a list of 96 records"
    assert run.config["loss_options"] == {
        "distance": "pytorch_metric_learning.distances.cosine_similarity.CosineSimilarity",
        "pos_margin": 1.0,
        "neg_margin": 0,
    }
    evaluated, own = run.config["callbacks"]
    assert evaluated["EvaluationCallback"]["query_data"] == "a list of 96 records"
    assert own == f"{__name__}.StopAt"


def test_a_listener_that_fails_does_not_fail_the_fit(
    tmp_path: Path, tiny_model: Path, labelled_csv: Path
) -> None:
    heard: list[Any] = []

    def broken(event: Any) -> None:
        raise BrokenPipeError("nobody reads")

    run = ftray.fit(
        listeners=[broken, heard.append],
        model=str(tiny_model),
        train_data=str(labelled_csv),
        loss="SupConLoss",
        epochs=1,
        num_workers=0,
        storage_path=f"{tmp_path}/runs",
    )
    assert run.status() == "FINISHED" and len(heard) > 9
    assert run.logs().count("hears no more: BrokenPipeError: nobody reads") == 1


def test_the_signature_of_fit_takes_a_config_or_its_fields() -> None:
    signature = inspect.signature(ftray.fit)
    config = ftray.FitConfig(model="tiny", train_data="a.csv")
    assert signature.bind(config).args == (config,)
    assert signature.bind(config, listeners=[]).kwargs == {"listeners": []}
    assert signature.bind(model="tiny", train_data="a.csv", epochs=3).kwargs["epochs"] == 3
    assert set(ftray.FitConfig.model_fields) < set(signature.parameters)
    assert "model: str | typing.Any = <needed>" in str(signature)
    with pytest.raises(TypeError):
        signature.bind(modle="tiny")
    assert "SystemExit: with code 143 after SIGTERM" in (ftray.fit.__doc__ or "")
