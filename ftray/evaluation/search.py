"""Exact top-k search, with trec_eval's ranking rule, over a FAISS flat index.

FAISS finds the candidates; the candidates are then scored anew in float64 and rounded to float32.
The last bits of FAISS's own float32 sums depend on its build, the processor, and whether it takes a
blocked matrix product: what ties, and so who is cut, would differ between machines. How far FAISS
may be off is bounded (`_error_bound`), and candidates are fetched until no document outside them
could matter.

Shapes: `Q` queries, `N` documents, `D` embedding width, `K` cut-off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ftray.errors import ConfigError, DataError
from ftray.evaluation.spec import check_distance

__all__ = ["ExactIndex", "check_finite", "tie_ranks"]

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_BLOCK_QUERIES = 256
_ADD_ROWS = 1 << 13
_MAX_CANDIDATES = 1 << 22  # per pass; bounds memory where many documents tie
_MAX_PRODUCTS = 1 << 20  # float64 numbers held while candidates are scored
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class ExactIndex:
    """Documents, searched exhaustively.

    Ranking: score as float32, descending; ties by document id as a string, descending (trec_eval's
    rule). Both apply before the cut at k. The result for a query depends on that query and the
    documents alone, not on the other queries of a call or the number of threads.

    Args:
        dim: embedding width `D`.
        distance: one of `ftray.evaluation.spec.DISTANCES`. Scores are higher-is-better: cosine
            similarity, dot product, or minus the (squared) euclidean distance. A zero vector has
            cosine 0 with everything.

    Raises:
        ConfigError: the distance is unknown or `dim` is less than 1.
    """

    def __init__(self, dim: int, distance: str = "cosine") -> None:
        check_distance(distance)
        if dim < 1:
            raise ConfigError(f"An index needs vectors of at least one dimension, got {dim}.")
        self.dim = dim
        self.distance = distance
        self._euclidean = distance in ("euclidean", "sqeuclidean")
        self._index: Any = faiss.IndexFlatL2(dim) if self._euclidean else faiss.IndexFlatIP(dim)
        self._positions: dict[str, int] = {}
        self._tie_rank: Ints | None = None
        self._largest_norm = 0.0

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def ids(self) -> list[str]:
        """The documents' ids, in the order of their positions."""
        return list(self._positions)

    def add(self, ids: Sequence[str], vectors: npt.ArrayLike) -> None:
        """Add documents; their positions continue where the last call ended.

        Args:
            ids: `n` ids, distinct within the index.
            vectors: `(n, D)` float32, finite. Copied.

        Raises:
            DataError: an id is in the index already, a vector is not finite (the message names the
                id), or the shapes do not fit. Nothing is added then.
        """
        rows = self._checked(vectors, "document", ids)
        if len(ids) != len(rows):
            raise DataError(f"{len(ids)} document ids were given for {len(rows)} vectors.")
        new: dict[str, int] = {}
        for position, name in enumerate(ids, start=len(self)):
            if name in self._positions or name in new:
                raise DataError(f"Document id '{name}' occurs twice; ids must be distinct.")
            new[name] = position
        if not new:
            return
        for start in range(0, len(rows), _ADD_ROWS):  # bounds the float64 copies
            part = self._prepared(rows[start : start + _ADD_ROWS])
            self._index.add(part)
            self._largest_norm = max(self._largest_norm, float(_norms(part).max()))
        self._positions.update(new)
        self._tie_rank = None

    def search(
        self, queries: npt.ArrayLike, k: int, exclude: npt.ArrayLike | None = None
    ) -> tuple[Floats32, Ints]:
        """The best `k` documents of every query.

        Args:
            queries: `(Q, D)` float32, finite.
            k: how many documents to return, at least 1; may exceed the size of the index.
            exclude: `(Q,)` position of a document that the query may not find, or -1.

        Returns:
            Scores `(Q, K)` float32, higher is better, and positions `(Q, K)` int64; -inf and -1
            where there are no more documents.

        Raises:
            ConfigError: `k` is less than 1.
            DataError: a query is not finite, or shapes or positions do not fit.
        """
        if k < 1:
            raise ConfigError(f"k={k}: a search returns at least one document.")
        rows = self._checked(queries, "query", None)
        hidden = np.full(len(rows), -1) if exclude is None else np.asarray(exclude)
        hidden = hidden.astype(np.int64)
        if hidden.shape != (len(rows),) or bool(((hidden < -1) | (hidden >= len(self))).any()):
            raise DataError(
                f"'exclude' needs one position of the index (0 to {len(self) - 1}), or -1, for "
                f"each of the {len(rows)} queries; got shape {hidden.shape}."
            )
        scores = np.full((len(rows), k), -np.inf, np.float32)
        positions = np.full((len(rows), k), -1, np.int64)
        if len(self) == 0:
            return scores, positions
        for start in range(0, len(rows), _BLOCK_QUERIES):
            block = slice(start, start + _BLOCK_QUERIES)
            found = self._search_block(self._prepared(rows[block]), k, hidden[block])
            width = found[0].shape[1]
            scores[block, :width], positions[block, :width] = found
        return scores, positions

    def _search_block(self, queries: Floats32, k: int, exclude: Ints) -> tuple[Floats32, Ints]:
        """Fetch candidates, and more of them for the queries that need it, until all is settled."""
        size = len(self)
        width = min(k, size)
        scores = np.empty((len(queries), width), np.float32)
        positions = np.empty((len(queries), width), np.int64)
        pending = np.arange(len(queries))
        fetch = min(2 * k + 16, size)
        while pending.size:
            unsettled = []
            step = max(1, _MAX_CANDIDATES // fetch)
            for start in range(0, pending.size, step):
                part = pending[start : start + step]
                scores[part], positions[part], settled = self._best(
                    queries[part], width, exclude[part], fetch
                )
                unsettled.append(part[~settled])
            pending = np.concatenate(unsettled)
            fetch = min(4 * fetch, size)
        return scores, positions

    def _best(
        self, queries: Floats32, k: int, exclude: Ints, fetch: int
    ) -> tuple[Floats32, Ints, npt.NDArray[np.bool_]]:
        """The best `k` among `fetch` candidates, and whether no other document could be among them.

        A document that was not fetched scores at most what FAISS gave the last candidate, plus
        FAISS's error. Where that, rounded to float32, is below the k-th score, it cannot even tie.
        """
        if fetch >= len(self):
            candidates = np.broadcast_to(np.arange(len(self)), (len(queries), len(self)))
            limit = np.full(len(queries), -np.inf, np.float32)
        else:
            raw, candidates = self._index.search(queries, fetch)
            last = raw[:, -1].astype(np.float64) * (-1 if self._euclidean else 1)
            bound = self._error_bound(queries)
            trusted = np.isfinite(bound) & np.isfinite(last) & (candidates[:, -1] >= 0)
            with np.errstate(invalid="ignore"):  # infinities that are not trusted
                limit = self._as_score(np.where(trusted, last + bound, np.inf))
        rows = np.repeat(np.arange(len(queries)), candidates.shape[1])
        scores = self._scores(queries, rows, candidates.ravel()).reshape(candidates.shape)
        scores[(candidates == exclude[:, None]) | (candidates < 0)] = -np.inf
        order = np.lexsort((self._ranks()[candidates], -scores), axis=-1)[:, :k]
        best = np.take_along_axis(scores, order, axis=1)
        positions = np.take_along_axis(candidates, order, axis=1)
        settled = (limit < best[:, -1]) | (fetch >= len(self))
        return best, np.where(np.isneginf(best), -1, positions), settled

    def _scores(self, queries: Floats32, rows: Ints, positions: Ints) -> Floats32:
        """Scores of pairs (query row, document position), each summed in the same fixed order."""
        documents = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.dim)
        documents = documents.reshape(len(self), self.dim)
        raw = np.empty(len(rows))
        step = max(1, _MAX_PRODUCTS // self.dim)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            terms = queries[rows[part]].astype(np.float64)
            if self._euclidean:
                terms -= documents[positions[part]]
                terms *= -terms
            else:
                terms *= documents[positions[part]]
            raw[part] = terms.sum(axis=1)
        return self._as_score(raw)

    def _as_score(self, raw: Floats) -> Floats32:
        """Float32 score of a dot product or of minus a squared distance; monotonic.

        Clipped to what float32 can hold, so that -inf always means "no document".
        """
        if self._euclidean:
            raw = np.minimum(raw, 0.0)
        if self.distance == "euclidean":
            raw = -np.sqrt(-raw)
        # + 0.0 turns -0.0 into 0.0
        clipped = np.clip(raw, -_FLOAT32_MAX, _FLOAT32_MAX)
        return np.asarray(clipped.astype(np.float32) + np.float32(0.0))

    def _error_bound(self, queries: Floats32) -> Floats:
        """How far FAISS's raw float32 score of each query may be from the true one, at most.

        Classical bound of a sum of D products (Higham 2002, §3.1), doubled. FAISS may compute
        a squared distance as |q|² + |d|² - 2 q·d, whose terms add up to at most (|q| + |d|)².
        """
        norms = _norms(queries)
        scale = (norms + self._largest_norm) ** 2 if self._euclidean else norms * self._largest_norm
        # `tiny` covers products that underflow; where they may overflow, FAISS is not believed.
        tiny = float(np.finfo(np.float32).tiny)
        bound = (self.dim + 8) * (float(np.finfo(np.float32).eps) * scale + tiny)
        return np.asarray(np.where(scale < _FLOAT32_MAX / 4, bound, np.inf))

    def _ranks(self) -> Ints:
        if self._tie_rank is None:
            self._tie_rank = tie_ranks(self.ids)
        return self._tie_rank

    def _prepared(self, rows: Floats32) -> Floats32:
        """The vectors as they are compared: a normalised copy for cosine."""
        if self.distance != "cosine":
            return rows
        norms = _norms(rows)[:, None]
        return np.asarray(rows / np.where(norms > 0, norms, 1.0), np.float32)

    def _checked(self, vectors: npt.ArrayLike, what: str, ids: Sequence[str] | None) -> Floats32:
        with np.errstate(over="ignore"):  # float64 beyond float32's range: reported as not finite
            rows = np.ascontiguousarray(vectors, np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise DataError(
                f"The index holds vectors of width {self.dim}: expected an array "
                f"(number, {self.dim}) of {what} vectors, got shape {rows.shape}."
            )

        def name(row: int) -> str:
            return f"'{ids[row]}'" if ids is not None and row < len(ids) else f"number {row}"

        check_finite(rows, what, name)
        return rows


def check_finite(rows: Floats32, what: str, name: Callable[[int], str]) -> None:
    """Refuse vectors that hold NaN or infinity.

    Args:
        rows: `(n, D)`.
        what: whose they are, "document" or "query".
        name: which one that of a row is.

    Raises:
        DataError: with the first one.
    """
    finite = np.ones(len(rows), bool)
    for start in range(0, len(rows), _ADD_ROWS):  # not as many truth values as numbers
        part = slice(start, start + _ADD_ROWS)
        finite[part] = np.isfinite(rows[part]).all(axis=1)
    bad = np.flatnonzero(~finite)
    if bad.size:
        raise DataError(
            f"The vector of {what} {name(int(bad[0]))} holds NaN or infinity ({bad.size} of "
            f"{len(rows)} {what} vectors do). The model's output is broken, or its "
            "training diverged: a smaller learning_rate is the usual cure."
        )


def _norms(rows: Floats32) -> Floats:
    """Lengths of vectors, in float64 (squares of float32 cannot overflow there)."""
    wide = rows.astype(np.float64)
    return np.asarray(np.sqrt((wide * wide).sum(axis=1)))


def tie_ranks(ids: Sequence[str]) -> Ints:
    """Each document's place when ids are sorted descending; the lower wins a tie."""
    ranks = np.empty(len(ids), np.int64)
    ranks[sorted(range(len(ids)), key=ids.__getitem__, reverse=True)] = np.arange(len(ids))
    return ranks
