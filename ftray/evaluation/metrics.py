"""The nine ranking metrics, as trec_eval and sentence-transformers define them.

Two steps: `judge` looks up which of the ranked documents are relevant, `per_query` turns that into
metrics. Both are numpy over whole arrays: no files, no Ray.

Shapes: `Q` queries, `K` ranks kept, `G` groups of queries with the same relevant documents, `J`
judgements (pairs of group and document).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ftray.errors import ConfigError, DataError

__all__ = ["METRICS", "Judged", "judge", "mean_metrics", "means", "per_query"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

METRICS: tuple[str, ...] = (
    "average_precision",
    "dcg_at_k",
    "f1_score_at_k",
    "hit_at_k",
    "ndcg_at_k",
    "precision_at_k",
    "r_precision",
    "recall_at_k",
    "reciprocal_rank",
)
"""The names of the metrics, in the order in which they are reported; for all, higher is better."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Rankings with every document replaced by its grade: all that the metrics need.

    Attributes:
        gains: `(Q, K)` grade of the document at each rank; 0 where it is not relevant or nothing
            was returned.
        relevant: `(Q,)` R, how many relevant documents (grade above 0) the query could have found:
            its own document, where excluded, is not one of them. `(judged.relevant == 0).sum()`
            counts the queries that no ranking can satisfy.
        ideal: `(Q, K)` the best grades that the query could have found, best first, padded with 0.
    """

    gains: Floats
    relevant: Ints
    ideal: Floats


def judge(
    ranked: Ints,
    groups: Ints,
    group_starts: Ints,
    group_documents: Ints,
    group_grades: npt.NDArray[np.floating] | npt.NDArray[np.integer],
    own_document: Ints | None = None,
) -> Judged:
    """Look up the grade of every ranked document.

    Relevance comes in compressed rows: query `q` belongs to group `g = groups[q]`, whose judged
    documents are `group_documents[group_starts[g]:group_starts[g + 1]]`, in ascending order, with
    grades at the same places of `group_grades`. A grade of 0 or less is "judged, not relevant".

    Args:
        ranked: `(Q, K)` positions in the index, best first; -1 where nothing was returned.
        groups: `(Q,)` the group of each query.
        group_starts: `(G + 1,)` where each group's judgements start.
        group_documents: `(J,)` positions in the index, strictly ascending within a group.
        group_grades: `(J,)` their grades.
        own_document: `(Q,)` the document that was excluded from the query's ranking, or -1. It
            counts neither in `relevant` nor in `ideal`.

    Returns:
        The judged rankings.

    Raises:
        ValueError: a group's documents are not strictly ascending, or a ranking holds the document
            that should have been excluded from it.
    """
    ranked, groups = np.asarray(ranked, np.int64), np.asarray(groups, np.int64)
    starts, documents = np.asarray(group_starts, np.int64), np.asarray(group_documents, np.int64)
    grades = np.maximum(np.asarray(group_grades, np.float64), 0.0)
    own = None if own_document is None else np.asarray(own_document, np.int64)[:, None]
    if own is not None and bool(((ranked == own) & (own >= 0)).any()):
        raise ValueError("a ranking holds the query's own document, which is to be excluded")

    entry_group = np.repeat(np.arange(starts.size - 1), np.diff(starts))
    stride = 1 + max(int(part.max(initial=0)) for part in (ranked, documents))
    keys = entry_group * stride + documents
    if bool((np.diff(keys) <= 0).any()):
        raise ValueError("the documents of a group must be strictly ascending")

    def grade(positions: Ints) -> Floats:
        """Grades `(Q, n)` of documents `(Q, n)`; 0 where unjudged or -1."""
        if keys.size == 0:
            return np.zeros(positions.shape)
        wanted = groups[:, None] * stride + positions
        place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
        found = (keys[place] == wanted) & (positions >= 0) & (positions < stride)
        return np.where(found, grades[place], 0.0)

    counts = np.concatenate([[0], np.cumsum(grades > 0)])
    relevant = (counts[starts[1:]] - counts[starts[:-1]])[groups].astype(np.int64)
    depth = ranked.shape[1]
    best = _best_grades(groups, starts, entry_group, grades, depth + 1)
    if own is None:
        return Judged(gains=grade(ranked), relevant=relevant, ideal=best[:, :depth])
    own_grade = grade(own)
    columns = np.arange(depth)
    # The own document's place among the best grades (its first equal serves as well); an own
    # document that is not relevant stands behind them all and takes nothing away.
    place = np.where(own_grade > 0, (best > own_grade).sum(axis=1, keepdims=True), depth + 1)
    ideal = np.take_along_axis(best, columns + (columns >= place), axis=1)
    relevant = relevant - (own_grade[:, 0] > 0)
    return Judged(gains=grade(ranked), relevant=relevant, ideal=ideal)


def per_query(judged: Judged, k: int) -> dict[str, Floats]:
    """All nine metrics of every query, on the first `k` ranks.

    With `r` the number of relevant documents among the first `k` and `R = judged.relevant`:

    - `precision_at_k`: r / k, also where fewer than k documents were returned.
    - `recall_at_k`: r / R.
    - `f1_score_at_k`: harmonic mean of the two, per query.
    - `hit_at_k`: 1 if r > 0.
    - `average_precision`: sum of precision at the rank of each relevant document, / min(R, k).
      This is trec_eval's `map_cut` where R ≤ k, and sentence-transformers' `map@k` always.
    - `reciprocal_rank`: 1 / rank of the first relevant document, 0 if there is none within k.
    - `r_precision`: precision at rank min(R, k); trec_eval's `Rprec` where R ≤ k.
    - `dcg_at_k`: sum of grade / log2(rank + 1) (Järvelin & Kekäläinen 2002; linear gain, as in
      trec_eval).
    - `ndcg_at_k`: that, / the same sum over the best min(R, k) documents there are.

    A query without relevant documents (R = 0) gets 0 in all nine and counts in the mean. trec_eval
    scores a query with judgements but no relevant document in the same way; a query that is absent
    from its qrels it does not see at all. `judged.relevant` lets the caller count and report them.

    Args:
        judged: the judged rankings, `K` ranks deep.
        k: the cut-off, 1 ≤ k ≤ K.

    Returns:
        For each name of `METRICS`, in that order, an array `(Q,)`.

    Raises:
        ConfigError: `k` is less than 1 or more than the ranks that were kept.
    """
    depth = judged.gains.shape[1]
    if not 1 <= k <= depth:
        raise ConfigError(f"k={k}: metrics need 1 ≤ k ≤ {depth}, the number of ranks kept.")
    gains, relevant = judged.gains[:, :k], judged.relevant.astype(np.float64)
    hits = gains > 0
    found = hits.sum(axis=1).astype(np.float64)
    dcg = _dcg(gains)
    values = {
        "average_precision": _average_precision(hits, relevant),
        "dcg_at_k": dcg,
        "f1_score_at_k": 2 * found / (k + relevant),
        "hit_at_k": (found > 0).astype(np.float64),
        "ndcg_at_k": _ratio(dcg, _dcg(judged.ideal[:, :k])),
        "precision_at_k": _precision(hits),
        "r_precision": _r_precision(hits, relevant),
        "recall_at_k": _ratio(found, relevant),
        "reciprocal_rank": np.where(found > 0, 1.0 / (1 + hits.argmax(axis=1)), 0.0),
    }
    return {name: values[name] for name in METRICS}


def mean_metrics(judged: Judged, k: int) -> dict[str, float]:
    """Each metric's mean over all queries, those without relevant documents included (as 0).

    Args:
        judged: the judged rankings.
        k: the cut-off, as in `per_query`.

    Returns:
        The nine means, in the order of `METRICS`.

    Raises:
        ConfigError: `k` is out of range.
        DataError: there are no queries.
    """
    return means(per_query(judged, k))


def means(values: Mapping[str, Floats]) -> dict[str, float]:
    """The mean of each metric `(Q,)` over all queries.

    Raises:
        DataError: there are no queries.
    """
    if any(one.size == 0 for one in values.values()):
        raise DataError("There are no queries to evaluate.")
    return {name: float(one.mean()) for name, one in values.items()}


def _best_grades(groups: Ints, starts: Ints, entry_group: Ints, grades: Floats, n: int) -> Floats:
    """The `n` best grades of each query's group, best first, padded with 0: `(Q, n)`."""
    if grades.size == 0:
        return np.zeros((groups.size, n))
    sorted_grades = grades[np.lexsort((-grades, entry_group))]
    place = starts[groups][:, None] + np.arange(n)
    inside = place < starts[groups + 1][:, None]
    return np.where(inside, sorted_grades[np.minimum(place, grades.size - 1)], 0.0)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)


def _discounts(k: int) -> Floats:
    """Weight of each rank: 1 / log2(rank + 1)."""
    return 1.0 / np.log2(np.arange(2, k + 2))


def _dcg(gains: Floats) -> Floats:
    return np.asarray((gains * _discounts(gains.shape[1])).sum(axis=1))


def _precision(hits: npt.NDArray[np.bool_]) -> Floats:
    return np.asarray(hits.sum(axis=1) / hits.shape[1])


def _average_precision(hits: npt.NDArray[np.bool_], relevant: Floats) -> Floats:
    k = hits.shape[1]
    precision_at_rank = hits.cumsum(axis=1) / np.arange(1, k + 1)
    return _ratio((precision_at_rank * hits).sum(axis=1), np.minimum(relevant, k))


def _r_precision(hits: npt.NDArray[np.bool_], relevant: Floats) -> Floats:
    k = hits.shape[1]
    considered = np.minimum(relevant, k)
    within = np.arange(1, k + 1) <= considered[:, None]
    return _ratio((hits & within).sum(axis=1).astype(np.float64), considered)
