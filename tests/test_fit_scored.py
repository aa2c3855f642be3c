"""Scored pairs from data to artifact, in this process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray.callbacks import BestModelCheckpoint, EvaluationCallback
from ftray.config_file import load_config
from tests.conftest import WORDS


def scored_rows(count: int = 120) -> list[dict[str, Any]]:
    """Pairs whose score is the share of words they have in common, in 0…5."""
    draw = random.Random(3)
    rows = []
    for _ in range(count):
        shared, rest = draw.sample(WORDS, 4), draw.sample(WORDS, 8)
        common = draw.randint(0, 4)
        first = [*shared[:common], *rest[: 4 - common]]
        second = [*shared[:common], *rest[4 : 8 - common]]
        score = 5 * len(set(first) & set(second)) / len(set(first) | set(second))
        rows.append({"a": " ".join(first), "b": " ".join(second), "score": score})
    return rows


def fit(tmp_path: Path, model: Path, **fields: Any) -> Any:
    rows = scored_rows()
    given = {
        "model": str(model),
        "train_data": rows[:90],
        "loss": "CosineSimilarityLoss",
        "loss_options": {"score_range": [0, 5]},
        "val_split": 0.2,
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 2e-3,
        "num_workers": 0,
        "storage_path": str(tmp_path / "runs"),
        "callbacks": [EvaluationCallback(rows[90:]), BestModelCheckpoint("spearman")],
        **fields,
    }
    return ftray.fit(listeners=[], **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Any:
    return fit(tmp_path_factory.mktemp("scored"), tiny_model)


def test_the_losses_fall_and_the_correlation_rises(finished: Any) -> None:
    assert finished.status() == "FINISHED"
    table = finished.history()
    for name in ("train_loss", "val_loss"):
        values = [value for value in table[name].to_pylist() if value is not None]
        assert len(values) == 4 and values[-1] < values[0]
    metrics = finished.metrics()
    assert metrics["before"].keys() == metrics["after"].keys() == {"pearson", "spearman"}
    assert metrics["after"]["spearman"] > metrics["before"]["spearman"]


def test_the_artifact_has_the_best_correlation(finished: Any) -> None:
    after = [e.metrics["spearman"] for e in finished._evaluations() if e.when != "before"]
    assert finished.metrics()["after"]["spearman"] == max(after)
    again = ftray.evaluate(finished.artifact_id, scored_rows()[90:])
    assert again == pytest.approx(finished.metrics()["after"], abs=1e-6)


def test_the_record_has_every_pair_before_and_after(finished: Any) -> None:
    gold = [(row["a"], row["b"], row["score"]) for row in scored_rows()[90:]]
    for when in ("before", "after"):
        table = finished.per_query(when)
        assert table.column_names == ["text_a", "text_b", "score", "similarity"]
        rows = table.select(["text_a", "text_b", "score"]).to_pylist()
        assert [tuple(row.values()) for row in rows] == gold
    assert finished.per_query("before") != finished.per_query("after")
    finished.display_metrics()
    finished.display_examples()


def test_scores_as_they_are_train_the_same_as_their_range(
    tmp_path: Path, tiny_model: Path, finished: Any
) -> None:
    rows = [{**row, "score": row["score"] / 5} for row in scored_rows()[:90]]
    run = fit(tmp_path, tiny_model, train_data=rows, loss_options={}, callbacks=[], epochs=1)
    losses = [value for value in run.history()["loss"].to_pylist() if value is not None]
    before = [value for value in finished.history()["loss"].to_pylist() if value is not None]
    assert losses[0] == pytest.approx(before[0], rel=1e-6)


def test_the_guides_configuration_works(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = Path(__file__).parents[1] / "docs" / "data.md"
    section = guide.read_text().partition("## Scored pairs")[2]
    (tmp_path / "scored.yaml").write_text(section.split("```yaml\n")[1].split("```")[0])
    for name in ("train.csv", "test.csv"):
        lines = [f"{row['a']},{row['b']},{row['score']}" for row in scored_rows()]
        (tmp_path / name).write_text("\n".join(["sentence1,sentence2,score", *lines]) + "\n")
    monkeypatch.chdir(tmp_path)
    changes = [f"model={tiny_model}", "num_workers=0", "epochs=1"]
    run = ftray.fit(load_config("scored.yaml", changes), listeners=[])
    assert run.status() == "FINISHED" and "spearman" in run.metrics()["after"]


def test_pairs_that_all_share_a_text_can_be_learned(tmp_path: Path, tiny_model: Path) -> None:
    """There are no negatives to be missing."""
    rows = [("send money", other, i / 8) for i, other in enumerate(WORDS[:8])]
    fields = {"train_data": rows, "val_split": 0.0, "loss_options": {}, "callbacks": []}
    run = fit(tmp_path, tiny_model, **{**fields, "batch_size": 8, "epochs": 2})
    assert run.status() == "FINISHED" and run.config["sampler"] == "random"
