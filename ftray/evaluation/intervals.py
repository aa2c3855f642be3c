"""How sure a change of a metric is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PairedChange", "paired_change"]


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
    change = np.asarray(after, float) - np.asarray(before, float)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(change), np.full(len(change), 1 / len(change)), resamples)
    means = counts @ change / len(change)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return PairedChange(mean=float(change.mean()), low=float(low), high=float(high))
