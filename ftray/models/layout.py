"""How the texts of one step or batch are laid out for the encoder: a choice of speed alone.

A layout says which texts share a forward pass, and how. Padded: all of them, a text a row.
Bucketed: texts of similar length together, so that little is computed for padding. Packed: texts
put end to end in rows of equal width, each with attention of its own (`ftray.models.packing`).
Auto: whichever of these is the cheapest for these lengths. The embeddings are the same in all of
them (contract 2). The choice is a function of the lengths: two runs that are alike compute alike.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Forward", "Layout", "cut_by_length", "forwards_of", "in_rows"]

Layout = Literal["auto", "padded", "bucketed", "packed"]

FORWARD_COST_TOKENS = 100
"""What one more forward costs, as a number of tokens (MiniLM, two CPU cores)."""
ATTENTION_TOKENS = 330
"""In rows of this width, attention costs as much as all else (measured likewise, in training)."""
ROW_WIDTHS = (32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Widths of packed rows that are considered, in tokens."""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One forward pass.

    Attributes:
        rows: the positions of the texts in each row; several of them are packed.
        width: tokens of a row.
    """

    rows: list[list[int]]
    width: int

    @property
    def texts(self) -> list[int]:
        """The positions of its texts, row by row."""
        return [text for row in self.rows for text in row]

    @property
    def is_packed(self) -> bool:
        """Whether any row has several texts."""
        return any(len(row) > 1 for row in self.rows)

    @property
    def tokens(self) -> int:
        """What is computed, padding included."""
        return len(self.rows) * self.width

    @property
    def cost(self) -> float:
        """What it takes, as a number of tokens."""
        return FORWARD_COST_TOKENS + self.tokens * (1 + self.width / ATTENTION_TOKENS)


def forwards_of(lengths: Sequence[int], layout: Layout) -> list[Forward]:
    """Lay texts out.

    Args:
        lengths: tokens of each text, `(n,)`.
        layout: "packed" packs all of them; "auto" takes what costs the least of buckets, and of
            rows of any of `ROW_WIDTHS` with buckets for the texts that are longer.

    Returns:
        Forwards in which every position stands once.
    """
    if not lengths:
        return []
    buckets = [
        Forward(rows=[[i] for i in bucket], width=max(lengths[i] for i in bucket))
        for bucket in cut_by_length(lengths, layout)
    ]
    if layout in ("padded", "bucketed"):
        return buckets
    longest = max(lengths)
    found = [] if layout == "packed" else [buckets]
    for width in sorted({*ROW_WIDTHS, longest}):
        if width >= longest or layout == "auto":
            found.append(in_rows(lengths, width))
    return min(found, key=lambda forwards: sum(forward.cost for forward in forwards))


def in_rows(lengths: Sequence[int], width: int) -> list[Forward]:
    """Texts up to a width in packed rows of it, the longer ones in buckets."""
    short = [i for i, length in enumerate(lengths) if length <= width]
    long = [i for i, length in enumerate(lengths) if length > width]
    forwards = [
        Forward(rows=[[long[i]] for i in bucket], width=max(lengths[long[i]] for i in bucket))
        for bucket in cut_by_length([lengths[i] for i in long], "bucketed")
    ]
    if short:
        rows = _filled(short, lengths, width)
        used = max(sum(lengths[i] for i in row) for row in rows)
        forwards.append(Forward(rows=rows, width=used))
    return forwards


def _filled(texts: Sequence[int], lengths: Sequence[int], width: int) -> list[list[int]]:
    """Rows of texts by best-fit decreasing: each text goes where it leaves the least room."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for text in sorted(texts, key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[text], 0))
        if place == len(room):
            rows.append([])
            left, row = width, len(rows) - 1
        else:
            left, row = room.pop(place)
        rows[row].append(text)
        insort(room, (left - lengths[text], row))
    return rows


def cut_by_length(lengths: Sequence[int], layout: Layout) -> list[list[int]]:
    """Which texts share a forward, a text a row.

    Args:
        lengths: tokens of each text, `(n,)`.
        layout: "padded" puts all in one; any other cuts by length.

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
