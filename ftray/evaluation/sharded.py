"""The index of a retrieval in several shards, and the merge of what they find.

The merge is exact. A ranking is by score as float32, then by id, both descending; ids are distinct,
so this order is total; and a document's score depends on the query and the document alone. So
whoever is among the best k of all documents is among the best k of its shard, ties at the cut
included, and the best k of the shards' lists, in the same order, are the best k of all.

Batches are dealt to the shards in turns. What is here knows no Ray: `ftray.cluster.shards` puts
each `Shard` into an actor.

Shapes: `Q` queries, `N` documents, `D` embedding width, `K` cut-off; a shard has `n` and `q` of
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ftray.evaluation.base import Collector
from ftray.evaluation.search import ExactIndex, check_finite
from ftray.evaluation.spec import RetrievalSpec

__all__ = ["QUERY_BLOCK", "Part", "Shard", "cut", "home", "merge", "parts_of", "query_blocks"]

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

QUERY_BLOCK = 1024
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a shard must know; small beside the vectors that it gets.

    Attributes:
        distance: one of `ftray.evaluation.spec.DISTANCES`.
        limit: k.
        documents: which of all documents it holds, `(n,)` ascending.
        ids: their ids, `(n,)`.
        queries: which of all queries it holds until they are searched with, `(q,)` ascending.
        places: which of its documents these queries are, `(q,)`; None: their vectors are sent.
        own: the document that a query may not find, or -1, for all queries `(Q,)`; None: none.
        batches: of each side that is sent the batches, as rows of what it holds.
    """

    distance: str
    limit: int
    documents: Numbers
    ids: list[str]
    queries: Numbers
    places: Numbers | None
    own: Numbers | None
    batches: Mapping[str, Sequence[Numbers]]


def home(batch: int, shards: int) -> tuple[int, int]:
    """The shard that a batch goes to, and the batch's number there."""
    return batch % shards, batch // shards


def parts_of(spec: RetrievalSpec, shards: int) -> list[Part]:
    """The parts of an evaluation's index."""
    data = spec.data
    return cut(
        data.document_ids,
        spec.batches,
        shards=shards,
        distance=spec.distance,
        limit=spec.limit,
        places=spec.query_places,
        own=data.own_document if spec.exclude_self else None,
    )


def cut(
    ids: Sequence[str],
    batches: Mapping[str, Sequence[Numbers]],
    *,
    shards: int,
    distance: str,
    limit: int,
    places: Numbers | None = None,
    own: Numbers | None = None,
) -> list[Part]:
    """Deal documents and queries to shards, whole batches in turns.

    Args:
        ids: of all documents, `(N,)`.
        batches: of the side "index", and of the side "query" unless there are `places`: positions.
        shards: how many; some may stay empty.
        distance: what is ranked by.
        limit: k.
        places: where among the documents each query stands, `(Q,)`.
        own: the document that each query may not find, or -1, `(Q,)`.
    """
    parts = []
    for shard in range(shards):
        mine = {
            side: [b for i, b in enumerate(all_) if home(i, shards)[0] == shard]
            for side, all_ in batches.items()
        }
        held = {side: np.sort(np.concatenate([*own_, _NONE])) for side, own_ in mine.items()}
        documents = held["index"]
        queries = held["query"] if places is None else np.flatnonzero(np.isin(places, documents))
        parts.append(
            Part(
                distance=distance,
                limit=limit,
                documents=documents,
                ids=[ids[position] for position in documents.tolist()],
                queries=queries,
                places=None if places is None else np.searchsorted(documents, places[queries]),
                own=own,
                batches={
                    side: [np.searchsorted(held[side], batch) for batch in own_]
                    for side, own_ in mine.items()
                },
            )
        )
    return parts


class Shard(Collector):
    """Holds some of the documents, and searches them.

    It is given batches, then told to `build`; then it hands out the vectors of its queries, and
    searches with those of any shard; then it is told to `forget`, and can be given batches again.

    Args:
        part: what it holds.
    """

    def __init__(self, part: Part) -> None:
        super().__init__(part.batches)
        self._part = part
        self.forget()

    def forget(self) -> None:
        """Drop index and vectors."""
        self._index: ExactIndex | None = None
        self._queries: Floats = np.empty((0, 0), np.float32)

    def build(self) -> None:
        """Make the index of the batches.

        Raises:
            RuntimeError: if a batch is missing.
            DataError: if a vector is not finite.
        """
        documents, asking = self._assemble("index"), self._part.queries
        places = self._part.places
        self._queries = self._assemble("query") if places is None else documents[places]
        if len(documents):
            self._index = ExactIndex(documents.shape[1], self._part.distance)
            self._index.add(self._part.ids, documents)
        check_finite(self._queries, "query", lambda row: f"number {asking[row]}")

    def queries(self, numbers: Numbers) -> Floats:
        """The vectors of some of its queries, `(B, D)`.

        Args:
            numbers: which of all queries, `(B,)`.
        """
        return self._queries[np.searchsorted(self._part.queries, numbers)]

    def search(self, queries: Floats, numbers: Numbers) -> tuple[Floats, Numbers]:
        """The best of its documents for any queries.

        Args:
            queries: their vectors, `(B, D)`.
            numbers: which of all queries they are, `(B,)`.

        Returns:
            Scores `(B, K)` and positions among all documents `(B, K)`, as `ExactIndex.search`.
        """
        documents, limit = self._part.documents, self._part.limit
        if self._index is None:
            nothing = (len(numbers), limit)
            return np.full(nothing, -np.inf, np.float32), np.full(nothing, -1, np.int64)
        scores, rows = self._index.search(queries, limit, self._hidden(numbers))
        return scores, np.where(rows >= 0, documents[rows], -1)

    def _hidden(self, numbers: Numbers) -> Numbers | None:
        """The row of each query's own document here, or -1."""
        if self._part.own is None:
            return None
        documents, own = self._part.documents, self._part.own[numbers]
        rows = np.minimum(np.searchsorted(documents, own), len(documents) - 1)
        return np.where(documents[rows] == own, rows, -1)


def query_blocks(held: Sequence[Numbers], size: int = QUERY_BLOCK) -> Iterator[tuple[int, Numbers]]:
    """The queries in blocks, each with the shard that holds it; the shards take turns.

    Args:
        held: the queries of each shard.
        size: of a block, at the most.
    """
    for start in range(0, max(map(len, held)), size):
        for shard, queries in enumerate(held):
            if start < len(queries):
                yield shard, queries[start : start + size]


def merge(found: Sequence[tuple[Floats, Numbers]], ranks: Numbers) -> tuple[Floats, Numbers]:
    """The best `K` documents of the shards' best `K`.

    Args:
        found: what each shard found for the same queries: scores and positions, `(B, K)`.
        ranks: of all documents their place among the ids, descending; see `tie_ranks`.

    Returns:
        Scores and positions `(B, K)`.
    """
    scores, positions = (np.concatenate(lists, axis=1) for lists in zip(*found, strict=True))
    order = np.lexsort((ranks[positions], -scores), axis=-1)[:, : found[0][0].shape[1]]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)
