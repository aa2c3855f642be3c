"""Search and scores of an evaluation whose index is held by shard actors.

Workers send each encoded batch straight to the shard that holds it (`ftray.cluster.shards`). When
all are there, the scorer actor has the queries searched in blocks: the shard that holds a block
gives its vectors to all shards through the object store, and the scorer gets lists of k documents,
which it merges (`ftray.evaluation.sharded`). No process ever holds more vectors than its shard, and
a few blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ftray.cluster.answers import answers_of
from ftray.evaluation.scorer import RetrievalScorer
from ftray.evaluation.search import tie_ranks
from ftray.evaluation.sharded import QUERY_BLOCK, Part, merge, parts_of, query_blocks
from ftray.evaluation.spec import RetrievalSpec

__all__ = ["ShardedScorer", "ShardedSearch"]

PLACE_TIMEOUT_S = 300.0
"""Within this time every shard must have been placed and started."""
SEARCH_TIMEOUT_S = 1200.0
"""For building the shards, and for each block; shorter than what waits for all of it."""
BLOCKS_AHEAD = 2
"""Blocks of queries under way besides the one that is merged."""
WHO = "An index shard"

Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


class ShardedSearch:
    """Searches with what shard actors hold.

    Args:
        actors: their handles, as many as parts.
        parts: what each is to hold.
        ids: of all documents.

    Raises:
        LostWorkersError: if one of them is not there within `PLACE_TIMEOUT_S`.
    """

    def __init__(self, actors: Sequence[Any], parts: Sequence[Part], ids: Sequence[str]) -> None:
        self._actors = actors
        self._queries = [part.queries for part in parts]
        self._limit = parts[0].limit
        self._ranks = tie_ranks(ids)
        loaded = [actor.load.remote(part) for actor, part in zip(actors, parts, strict=True)]
        answers_of(loaded, timeout_s=PLACE_TIMEOUT_S, who=WHO)

    def build(self) -> None:
        """Have the indexes made, when all batches are there."""
        self._all([actor.build.remote() for actor in self._actors])

    def search(self, block: int = QUERY_BLOCK) -> tuple[Floats, Numbers]:
        """Scores and positions of the best documents of every query, `(Q, K)`.

        Args:
            block: queries at a time.
        """
        count = sum(map(len, self._queries))
        scores = np.empty((count, self._limit), np.float32)
        positions = np.empty((count, self._limit), np.int64)
        waiting: deque[tuple[Numbers, list[Any]]] = deque()

        def take() -> None:
            numbers, calls = waiting.popleft()
            scores[numbers], positions[numbers] = merge(self._all(calls), self._ranks)

        for holder, numbers in query_blocks(self._queries, block):
            # the vectors go from node to node: who holds a reference need not fetch them
            vectors = self._actors[holder].queries.remote(numbers)
            calls = [actor.search.remote(vectors, numbers) for actor in self._actors]
            waiting.append((numbers, calls))
            if len(waiting) > BLOCKS_AHEAD:
                take()
        while waiting:
            take()
        return scores, positions

    def forget(self) -> None:
        """Have the vectors dropped."""
        self._all([actor.forget.remote() for actor in self._actors])

    @staticmethod
    def _all(calls: list[Any]) -> Any:
        return answers_of(calls, timeout_s=SEARCH_TIMEOUT_S, who=WHO)


class ShardedScorer(RetrievalScorer):
    """Judges what shard actors find; the batches are sent to them, not to it.

    Args:
        spec: the evaluation.
        actors: the shards.
    """

    def __init__(self, spec: RetrievalSpec, actors: Sequence[Any]) -> None:
        super().__init__(spec)
        parts = parts_of(spec, len(actors))
        self._sharded = ShardedSearch(actors, parts, spec.data.document_ids)

    def _search(self) -> tuple[Floats, Numbers]:
        self._sharded.build()
        found = self._sharded.search()
        self._sharded.forget()
        return found
