"""What a run tells without being asked, as it stands in its log."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

import ftray
from ftray.callbacks import Callback, EvaluationCallback
from ftray.report.console import RunConsole
from tests.tiny import tiny_text_model


@pytest.fixture(scope="module")
def licensed_model(tmp_path_factory) -> Path:
    folder = tiny_text_model(tmp_path_factory.mktemp("licensed") / "base")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A base model\n")
    return folder


def long_text(row: dict[str, str]) -> dict[str, str]:
    return {**row, "text": row["text"] + " card" * 90}


def fit(model, rows, tmp_path, console=None, **fields) -> ftray.Run:
    fields = {
        "loss": "SupConLoss",
        "epochs": 3,
        "batch_size": 16,
        "num_workers": 0,
        "storage_path": str(tmp_path / "runs"),
        **fields,
    }
    return ftray.fit(
        listeners=[console] if console else [], model=str(model), train_data=rows, **fields
    )


@pytest.fixture(scope="module")
def told(licensed_model, labelled_rows, tmp_path_factory):
    """A run, and what its console showed."""
    out = io.StringIO()
    train = [long_text(row) for row in labelled_rows[:3]] + labelled_rows[3:70]
    test = [long_text(row) for row in labelled_rows[94:]] + labelled_rows[60:94]
    run = fit(
        licensed_model,
        train,
        tmp_path_factory.mktemp("told"),
        console=RunConsole(Console(file=out, width=200)),
        eval_data=labelled_rows[66:86],
        callbacks=[EvaluationCallback(test)],
    )
    return run, out.getvalue()


LINES = {
    "licence": r"INFO     The base model's licence: cc-by-4\.0",
    "training rows": r"INFO     train_data: .*70 texts with 8 labels",
    "validation rows": r"INFO     validation: .*20 texts with 8 labels",
    "evaluation": r"INFO     evaluation: .*queries: 36, documents: 36",
    "validation rows known": r"INFO     4 of 20 validation rows also stand in the training data",
    "queries known": r"INFO     10 of 36 query texts of the evaluation also stand in the training",
    "negatives": r"INFO     Each step: 4 classes x 4 texts; 3 positives and 12 negatives for each",
    "training texts cut": r"INFO     4\.3 % of the training texts \(3 of 70\) are longer than 64 "
    r"tokens \(max_length\) and will be cut; the longest has \d+",
    "evaluation texts cut": r"INFO     5\.6 % of the evaluation texts \(2 of 36\) are longer",
    "how long": r"INFO     This will take about \d+ seconds? \(\d+ more steps at [\d.]+ s, "
    r"3 evaluations of [\d.]+ s\)",
    "where time went": r"INFO     Time: .*step [\d.]+ s \(\d+ %\)",
}


@pytest.mark.parametrize("what", LINES)
def test_log_and_console_tell_once(told, what: str) -> None:
    run, shown = told
    for text in (run.logs(), shown):
        assert len(re.findall(LINES[what], text)) == 1, text


def test_where_time_went_has_all_parts_and_adds_up(told) -> None:
    (line,) = (text for text in told[0].logs().splitlines() if "Time: " in text)
    parts = dict(re.findall(r"(\w+) [\d.]+ s \((\d+) %\)", line))
    assert parts.keys() == {"step", "data", "evaluation", "validation", "checkpoint", "other"}
    assert abs(sum(map(int, parts.values())) - 100) <= len(parts) / 2


def test_run_and_artifact_carry_the_licence_on(told, labelled_rows, tmp_path) -> None:
    run, _ = told
    assert run.facts["license"] == "cc-by-4.0"
    assert json.loads(Path(run.artifact_id, "ftray.json").read_text())["license"] == "cc-by-4.0"
    again = fit(run.artifact_id, labelled_rows, tmp_path, epochs=1)
    assert "The base model's licence: cc-by-4.0" in again.logs()
    assert again.facts["license"] == "cc-by-4.0"


def test_a_run_without_long_texts_and_overlaps_is_not_wordy(
    tiny_model, labelled_rows, tmp_path
) -> None:
    run = fit(tiny_model, labelled_rows[:48], tmp_path, epochs=1)
    (lengths,) = (text for text in run.logs().splitlines() if "longer than" in text)
    assert "DEBUG    None of 48 training texts is longer than 64 tokens" in lengths
    for words in ("also stand in", "This will take", "dashboard"):
        assert words not in run.logs()
    assert re.search(r"Finetuning \.\.\. 1 epoch of \d steps, batch 16, in this", run.logs())


class StopAt(Callback):
    """Asks from outside, as `ftray stop` does, once a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, state):
        if state.global_step == self.step:
            Path(state.run_path, "control").mkdir(exist_ok=True)
            Path(state.run_path, "control", "stop").touch()


def test_a_run_that_goes_on_counts_what_is_left_and_says_lengths_once(
    tiny_model, labelled_rows, tmp_path
) -> None:
    rows = [long_text(row) for row in labelled_rows[:2]] + labelled_rows[2:]
    options = {"run_name": "on", "epochs": 200, "resume": "auto"}
    first = fit(tiny_model, rows, tmp_path, callbacks=[StopAt(7)], **options)
    assert first.status() == "STOPPED"
    done = max(n for n in first.history()["global_step"].to_pylist() if n)
    fit(tiny_model, rows, tmp_path, callbacks=[StopAt(done + 7)], **options)
    logs = first.logs()
    assert logs.count("of the training texts") == 1
    left = [int(n.replace(",", "")) for n in re.findall(r"\(([\d,]+) more steps", logs)]
    assert left == [1200 - 5, 1200 - done - 5]
