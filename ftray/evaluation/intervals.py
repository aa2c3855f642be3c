"""How sure a change of a metric is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PairedChange", "paired_change", "paired_changes"]

MAX_COUNTS = 4_000_000
"""How many counts of queries are held at a time: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class PairedChange:
    """Mean change per query and its interval."""

    mean: float
    low: float
    high: float


def paired_change(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedChange:
    """Paired bootstrap interval over queries (Efron's percentile method; Sakai 2006 for retrieval).

    Args:
        before: a metric of each query, `(Q,)`.
        after: the same queries in the same order, `(Q,)`.
        confidence: share of resampled means inside the interval.
        resamples: how many resamples.
        seed: of the resampling.
    """
    columns = (np.reshape(np.asarray(side, float), (-1, 1)) for side in (before, after))
    return paired_changes(*columns, confidence=confidence, resamples=resamples, seed=seed)[0]


def paired_changes(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[PairedChange]:
    """`paired_change` of several metrics, all from the same resamples of the queries.

    A report does this in a thread, beside which processes may be forked. Then numpy's own product
    would never end: OpenBLAS ends its threads before a fork, whoever waits for them. So it is
    einsum, which is as fast.

    Args:
        before: `M` metrics of each query, `(Q, M)`.
        after: the same queries and metrics in the same order, `(Q, M)`.
        confidence: share of resampled means inside the intervals.
        resamples: how many resamples.
        seed: of the resampling.
    """
    change = np.asarray(after, float) - np.asarray(before, float)
    queries = len(change)
    rng = np.random.default_rng(seed)
    block = max(1, MAX_COUNTS // queries)
    chances, columns = np.full(queries, 1 / queries), np.ascontiguousarray(change.T)
    means = []
    for start in range(0, resamples, block):
        counts = rng.multinomial(queries, chances, min(block, resamples - start))
        means.append(np.einsum("rq,mq->rm", counts, columns) / queries)
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return [
        PairedChange(mean=float(mean), low=float(low), high=float(high))
        for mean, low, high in zip(change.mean(axis=0), lows, highs, strict=True)
    ]
