"""The numbers that Finetuner's callback pages show follow from each other, and here as well.

Their data has exactly one relevant document per query, and k is 20. Then precision is hit / 20, and
so on: see `RELATIONS`. On the pages `r_precision` equals the reciprocal rank; that is an old
definition (the precision up to the last relevant document). Here it is the textbook's: with one
relevant document, whether it stands first.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

import ftray
from ftray.callbacks import EvaluationCallback
from tests.conftest import WORDS

K = 20
PAGE = {  # finetuner-callbacks-final.md, "EvaluationCallback"
    "average_precision": 0.16654,
    "dcg_at_k": 0.24018,
    "f1_score_at_k": 0.03631,
    "hit_at_k": 0.38123,
    "ndcg_at_k": 0.24018,
    "precision_at_k": 0.01906,
    "recall_at_k": 0.38123,
    "reciprocal_rank": 0.16654,
}
RELATIONS = {
    "precision_at_k": lambda found: found["hit_at_k"] / K,
    "recall_at_k": lambda found: found["hit_at_k"],
    "f1_score_at_k": lambda found: found["hit_at_k"] * 2 * 0.05 / 1.05,
    "average_precision": lambda found: found["reciprocal_rank"],
    "dcg_at_k": lambda found: found["ndcg_at_k"],
}


def rows() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """90 queries, each the first words of a document, and 400 documents."""
    draw = random.Random(3)
    documents = list(
        dict.fromkeys(" ".join(draw.choices(WORDS, k=draw.randint(6, 12))) for _ in range(400))
    )
    queries = [" ".join(text.split()[: -draw.randint(1, 3)]) for text in documents[:90]]
    index = [{"text": text, "label": f"d{i}"} for i, text in enumerate(documents)]
    distinct = {text: f"d{i}" for i, text in enumerate(queries)}
    return [{"text": text, "label": label} for text, label in distinct.items()], index


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ftray.Run:
    queries, index = rows()
    return ftray.fit(
        model=str(tiny_model),
        train_data=index[:40] + [{**row, "text": row["text"] + " again"} for row in index[:40]],
        epochs=0,
        num_workers=0,
        storage_path=str(tmp_path_factory.mktemp("runs")),
        listeners=[],
        callbacks=[
            EvaluationCallback(queries, index),
            EvaluationCallback(queries, index, limit=1, caption="first"),
        ],
    )


@pytest.mark.parametrize("name", RELATIONS)
def test_the_page_keeps_its_own_relations(name: str) -> None:
    assert PAGE[name] == pytest.approx(RELATIONS[name](PAGE), abs=1e-5)


def test_the_metrics_of_a_run_keep_them(tiny_model: Path, run: ftray.Run) -> None:
    queries, index = rows()
    found = run.metrics()["before"]
    assert {name: found[name] for name in PAGE} == pytest.approx(
        {name: value for name, value in ftray.evaluate(tiny_model, queries, index).items()
         if name in PAGE},
        abs=1e-12,
    )  # fmt: skip
    assert 0.2 < found["hit_at_k"] < 0.95
    assert found["first_hit_at_k"] < found["reciprocal_rank"] < found["ndcg_at_k"]
    for name, relation in RELATIONS.items():
        assert found[name] == pytest.approx(relation(found), abs=1e-12, rel=0), name


def test_r_precision_is_whether_the_one_relevant_document_stands_first(run: ftray.Run) -> None:
    found = run.metrics()["before"]
    assert found["r_precision"] == pytest.approx(found["first_hit_at_k"], abs=1e-12)
    assert 0 < found["r_precision"] < found["reciprocal_rank"]


def test_each_query_keeps_the_relations(run: ftray.Run) -> None:
    table = run.per_query("before")
    assert set(table["relevant"].to_pylist()) == {1}
    values = {name: table[name].to_numpy() for name in PAGE}
    assert 0 < values["hit_at_k"].mean() < 1
    ranks = 1 / values["reciprocal_rank"][values["hit_at_k"] > 0]
    assert np.allclose(ranks, ranks.round()) and 1 <= ranks.min() < ranks.max() <= K
    for name, relation in RELATIONS.items():
        assert np.abs(values[name] - relation(values)).max() < 1e-12
    assert values["ndcg_at_k"][values["hit_at_k"] > 0] == pytest.approx(1 / np.log2(ranks + 1))
