"""Triplets from data to metrics, in this process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray.callbacks import EvaluationCallback
from tests.conftest import WORDS


def triplet_rows(count: int) -> list[dict[str, str]]:
    """The document has the query's first word twice; the negative has all the others."""
    draw = random.Random(5)
    rows = []
    for number in range(count):
        key, *others = draw.sample(WORDS, 4)
        other, *_ = draw.sample([word for word in WORDS if word != key], 1)
        rows.append(
            {
                "anchor": f"{key} {' '.join(others)} {number}",
                "positive": f"{key} {key} {draw.choice(WORDS)} {number}",
                "negative": f"{other} {' '.join(others)}",
            }
        )
    return rows


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (None, "16 triplets; each document is told apart from its own negative"),
        (
            "MultipleNegativesRankingLoss",
            "16 triplets; each query is ranked against up to 31 other documents of the global "
            "batch (16 negatives given with the triplets)",
        ),
    ],
)
def test_triplets_are_learnt(loss: str | None, said: str, tmp_path: Path, tiny_model: Path) -> None:
    rows = triplet_rows(100)
    given: dict[str, Any] = {} if loss is None else {"loss": loss}
    run = ftray.fit(
        model=str(tiny_model),
        train_data=rows[:80],
        val_split=0.2,
        epochs=4,
        batch_size=16,
        learning_rate=2e-3,
        num_workers=0,
        storage_path=str(tmp_path / "runs"),
        callbacks=[EvaluationCallback(rows[80:])],
        listeners=[],
        **given,
    )
    assert run.status() == "FINISHED"
    assert f"Each step: {said}, whatever the number of workers" in run.logs()
    assert "80 triplets" in run.logs()
    history = run.history()
    for name in ("train_loss", "val_loss"):
        values = [value for value in history[name].to_pylist() if value is not None]
        assert len(values) == 4 and values[-1] < values[0]
    metrics = run.metrics()
    assert metrics["after"]["ndcg_at_k"] > metrics["before"]["ndcg_at_k"]
