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
    before = np.concatenate([[0], np.cumsum(counts)])
    least = np.zeros(len(widths) + 1)
    came_from = np.zeros(len(widths) + 1, np.int64)
    for j, width in enumerate(widths, start=1):
        costs = least[:j] + (before[j] - before[:j]) * width
        came_from[j] = np.argmin(costs)
        least[j] = costs[came_from[j]] + FORWARD_COST_TOKENS
    cuts, j = [], len(widths)
    while j:
        i = int(came_from[j])
        cuts.append(order[before[i] : before[j]].tolist())
        j = i
    return cuts[::-1]
