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
    check_learnt(run)


def check_learnt(run: ftray.Run) -> None:
    """Losses fall over the four epochs, and what is found gets better."""
    history = run.history()
    for name in ("train_loss", "val_loss"):
        values = [value for value in history[name].to_pylist() if value is not None]
        assert len(values) == 4 and values[-1] < values[0]
    metrics = run.metrics()
    assert metrics["after"]["ndcg_at_k"] > metrics["before"]["ndcg_at_k"]


def rows_with_lists(count: int, *, scores: bool) -> list[dict[str, Any]]:
    """The negative of the row and that of the next one; the margins tell which is the harder."""
    rows = triplet_rows(count)
    following = [*rows[1:], rows[0]]
    return [
        {
            "query": row["anchor"],
            "pos": [row["positive"]],
            "neg": [row["negative"], other["negative"]],
            **({"score": [1.0, 1.5]} if scores else {}),
        }
        for row, other in zip(rows, following, strict=True)
    ]


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        (
            "MultipleNegativesRankingLoss",
            {},
            "16 triplets; each query is ranked against up to 47 other documents of the global "
            "batch (32 negatives given with the triplets)",
        ),
        (
            "MarginMSELoss",
            {"similarity": "cosine"},
            "16 triplets, each compared with its teacher's scores",
        ),
    ],
)
def test_several_negatives_and_their_scores_are_learnt(
    loss: str, options: dict[str, Any], said: str, tmp_path: Path, tiny_model: Path
) -> None:
    rows = rows_with_lists(100, scores=loss == "MarginMSELoss")
    run = ftray.fit(
        model=str(tiny_model),
        train_data=rows[:80],
        val_split=0.2,
        loss=loss,
        loss_options=options,
        epochs=4,
        batch_size=16,
        learning_rate=2e-3,
        num_workers=0,
        storage_path=str(tmp_path / "runs"),
        callbacks=[EvaluationCallback(rows[80:])],
        listeners=[],
    )
    assert run.status() == "FINISHED"
    assert f"Each step: {said}, whatever the number of workers" in run.logs()
    assert "80 triplets with 2 negatives each" in run.logs()
    check_learnt(run)
