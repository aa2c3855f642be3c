"""Scored pairs to evaluate with: distinct texts, which two form each pair, and its score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.data.distinct import coded
from ftray.data.readers import Records
from ftray.errors import DataError
from ftray.media import NO_BLOBS, Blobs
from ftray.words import counted

__all__ = ["PairSet", "pair_set"]


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """Pairs of texts, each with the score that its similarity is compared with.

    Args:
        texts: the distinct texts of both columns, a `large_string` array `(T,)`.
        pairs: which two of them form each pair, `(P, 2)`.
        scores: the score of each pair, `(P,)`, not all the same.
        notes: what a user should know.
        fingerprint: 16 hex digits over texts and scores.
        blobs: contents of things that are no texts; see `ftray.media`.
    """

    texts: pa.Array
    pairs: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    notes: tuple[str, ...]
    fingerprint: str
    blobs: Blobs = NO_BLOBS


def pair_set(records: Records) -> PairSet:
    """Bring scored pairs into this form; a row that comes twice counts twice, as elsewhere.

    Raises:
        DataError: for scores that nothing can correlate with: one pair, or one score for all.
    """
    scores: npt.NDArray[np.float64] = records.table["score"].to_numpy()
    if len(scores) < 2:
        raise DataError(
            f"query_data: {records.source} holds one scored pair. A correlation of similarities "
            "with scores takes two pairs or more."
        )
    if scores.min() == scores.max():
        raise DataError(
            f"query_data: all {len(scores):,} pairs of {records.source} have the score "
            f"{scores[0]:g}. Similarities cannot correlate with a number that never changes."
        )
    columns = [records.table[name].cast(pa.large_string()) for name in ("query", "document")]
    texts, codes = coded(*columns)
    return PairSet(
        texts=texts,
        pairs=np.stack(codes, axis=1),
        scores=scores,
        notes=(*records.notes, counted(len(texts), "distinct text")),
        fingerprint=records.fingerprint,
        blobs=records.blobs,
    )
