"""Search with quantised documents, to measure what the codes lose.

The queries stay float32, as they do where quantised indexes are used: they cost nothing to keep.

- int8: documents are what their codes stand for; all are scored.
- binary: the documents with the least Hamming distance to the query's own bits, `rescore` times as
  many as are asked for, are scored anew with the query in float32 against the signs of the document
  (Yamada et al. 2021, "Efficient Passage Retrieval with Hashing"; sentence-transformers'
  `semantic_search_faiss`). With `rescore` 0 the Hamming distance alone ranks them.

Ranking is `ExactIndex`'s: scores as float32, ties by document id, before the cut.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ftray.evaluation.quantize import dequantized, quantization_ranges, quantize
from ftray.evaluation.search import ExactIndex, tie_ranks
from ftray.evaluation.similarity import similarities

__all__ = ["restored", "search_quantized"]

_BLOCK_QUERIES = 128

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


def restored(vectors: Floats, quantization: str) -> Floats:
    """What is left of vectors when they are quantised, `(N, D)`; int8 by their own ranges."""
    ranges = quantization_ranges(vectors) if quantization == "int8" else None
    codes = quantize(vectors, quantization, ranges=ranges)
    return dequantized(codes, quantization, dims=vectors.shape[1], ranges=ranges)


def search_quantized(
    queries: Floats,
    documents: Floats,
    ids: Sequence[str],
    *,
    k: int,
    distance: str,
    quantization: str,
    rescore: int,
    exclude: Numbers | None = None,
) -> tuple[Floats, Numbers]:
    """The best `k` documents of every query, as `ExactIndex.search` returns them.

    Args:
        queries: `(Q, D)`, finite.
        documents: `(N, D)`, finite, before they are quantised.
        ids: of the documents.
        k: the cut-off.
        distance: what is ranked by, but among the candidates of binary codes.
        quantization: one of `ftray.evaluation.quantize.QUANTIZATIONS`.
        rescore: of binary codes, how many times `k` candidates are scored anew; 0 = none.
        exclude: `(Q,)` position of a document that the query may not find, or -1.
    """
    left = restored(documents, quantization)
    if quantization == "int8":
        index = ExactIndex(documents.shape[1], distance)
        index.add(ids, left)
        return index.search(queries, k, exclude)
    index = ExactIndex(documents.shape[1], "dot")  # of signs: D less twice the Hamming distance
    index.add(ids, left)
    found = index.search(restored(queries, quantization), k * max(rescore, 1), exclude)
    return _rescored(queries, left, found, tie_ranks(ids), k, distance) if rescore else found


def _rescored(
    queries: Floats,
    signs: Floats,
    found: tuple[Floats, Numbers],
    ranks: Numbers,
    k: int,
    distance: str,
) -> tuple[Floats, Numbers]:
    """The best `k` of the candidates, by the query itself."""
    scores, positions = found[0].copy(), found[1]
    for start in range(0, len(queries), _BLOCK_QUERIES):  # bounds the float64 copies
        block = slice(start, start + _BLOCK_QUERIES)
        rows, columns = np.nonzero(positions[block] >= 0)
        values = similarities(
            queries[block][rows], signs[positions[block][rows, columns]], distance
        )
        scores[block][rows, columns] = values
    order = np.lexsort((ranks[positions], -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)
