"""How the texts of one step or batch are laid out for the encoder: a choice of speed alone.

A layout says which texts share a forward pass. Padded: all of them. Bucketed: texts of similar
length together, so that little is computed for padding. The embeddings are the same either way
(contract 2); further layouts come in here without touching the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

__all__ = ["Layout", "cut_by_length"]

Layout = Literal["padded", "bucketed"]

FORWARD_COST_TOKENS = 200
"""What one more forward costs, as a number of padding tokens (MiniLM, two CPU cores)."""

MAX_BUCKETS = 12


def cut_by_length(lengths: Sequence[int], layout: Layout) -> list[list[int]]:
    """Which texts share a forward.

    Args:
        lengths: tokens of each text, `(n,)`.
        layout: "padded" or "bucketed".

    Returns:
        Lists of positions, every position once; within a list the longest text sets the width.
        Bucketed cuts the texts in order of length so that
        `sum(texts in bucket x longest in bucket) + FORWARD_COST_TOKENS x buckets` is least
        (dynamic programming over the distinct lengths).
    """
    if not lengths:
        return []
    if layout == "padded":
        return [list(range(len(lengths)))]
    order = np.argsort(np.asarray(lengths), kind="stable")
    widths, counts = np.unique(np.asarray(lengths), return_counts=True)
    ends = np.cumsum(counts)
    n = len(widths)
    least = np.full((MAX_BUCKETS + 1, n + 1), np.inf)
    least[0, 0] = 0
    came_from = np.zeros((MAX_BUCKETS + 1, n + 1), np.int64)
    before = np.concatenate([[0], ends])
    for bucket in range(1, MAX_BUCKETS + 1):
        for j in range(1, n + 1):
            costs = least[bucket - 1, :j] + (before[j] - before[:j]) * widths[j - 1]
            i = int(np.argmin(costs))
            least[bucket, j] = costs[i] + FORWARD_COST_TOKENS
            came_from[bucket, j] = i
    bucket = int(np.argmin(least[:, n]))
    cuts, j = [], n
    while bucket:
        i = int(came_from[bucket, j])
        cuts.append(order[before[i] : before[j]].tolist())
        bucket, j = bucket - 1, i
    return cuts[::-1]
