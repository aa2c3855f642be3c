"""Scored pairs: how well similarities go along with scores.

The metrics are those of sentence-transformers' `EmbeddingSimilarityEvaluator`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import stats

from ftray.errors import DataError
from ftray.evaluation.base import Scorer, Scores
from ftray.evaluation.spec import SimilaritySpec, check_distance
from ftray.media import shown, shown_cell

__all__ = ["SimilarityScorer", "correlations", "similarities"]

Floats32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class SimilarityScorer(Scorer):
    """Correlates the similarity of each pair with its score."""

    def __init__(self, spec: SimilaritySpec) -> None:
        super().__init__(spec)
        self._spec = spec

    def score(self) -> Scores:
        """Compare all pairs; see `Scorer.score`.

        Raises:
            DataError: for a vector that is not finite, with its text.
        """
        data = self._spec.data
        vectors = self._assemble("text")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            text = data.texts[int(np.flatnonzero(~finite)[0])].as_py()
            raise DataError(
                f"The vector of '{shown_cell(text)[:60]}' holds NaN or infinity "
                f"({(~finite).sum():,} of {len(vectors):,} vectors do). The model's output is "
                "broken, or its training diverged: a smaller learning_rate is the usual cure."
            )
        if self._spec.quantize is not None:
            from ftray.evaluation.quantized import restored  # which needs `similarities`

            vectors = restored(vectors, self._spec.quantize)
        first, second = data.pairs[:, 0], data.pairs[:, 1]
        values = similarities(vectors[first], vectors[second], self._spec.distance)
        table = pa.table(
            {
                "text_a": shown(data.texts.take(pa.array(first))),
                "text_b": shown(data.texts.take(pa.array(second))),
                "score": data.scores,
                "similarity": values,
            }
        )
        found = correlations(values, data.scores)
        metrics = {one.name: found[str(one.function)] for one in self._spec.measures}
        return Scores(metrics=metrics, per_query=table)


def similarities(first: Floats32, second: Floats32, distance: str) -> Floats32:
    """How alike the vectors of each pair are, `(P,)`; more is more alike.

    As in `ExactIndex`, sums are float64 and the result is rounded to float32, so that what ties
    does not hang on the machine, and the similarity of a zero vector is 0.

    Args:
        first: `(P, D)`.
        second: `(P, D)`.
        distance: "cosine" and "dot" are similarities; the two euclidean distances count negative.
    """
    check_distance(distance)
    a, b = first.astype(np.float64), second.astype(np.float64)
    if distance in ("cosine", "dot"):
        values = (a * b).sum(axis=1)
        if distance == "cosine":
            lengths = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
            values = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
    else:
        squares = ((a - b) ** 2).sum(axis=1)
        values = -(np.sqrt(squares) if distance == "euclidean" else squares)
    return np.asarray(np.clip(values, -_FLOAT32_MAX, _FLOAT32_MAX), np.float32)


def correlations(values: npt.ArrayLike, scores: Floats) -> dict[str, float]:
    """Pearson's and Spearman's correlation of similarities with scores, as scipy.stats has them.

    Similarities that are all the same tell nothing of the scores: both are 0 then.

    Args:
        values: similarities, `(P,)`.
        scores: not all the same, `(P,)`.
    """
    found = np.asarray(values, np.float64)
    if found.min() == found.max():
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(stats.pearsonr(found, scores).statistic),
        "spearman": float(stats.spearmanr(found, scores).statistic),
    }
