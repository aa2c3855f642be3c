"""What one evaluation is to do; light, so that callbacks can be made without torch or faiss."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.retrieval import RetrievalSet
from ftray.errors import ConfigError, nearest

__all__ = ["DISTANCES", "EvaluationSpec", "Side", "batches_of", "check_distance"]

Numbers = npt.NDArray[np.int64]

DISTANCES: tuple[str, ...] = ("cosine", "dot", "euclidean", "sqeuclidean")


def check_distance(distance: str) -> None:
    """Raise a `ConfigError` for a distance that does not exist, with the nearest one."""
    if distance not in DISTANCES:
        raise ConfigError(f"Unknown distance '{distance}'.{nearest(distance, DISTANCES)}")


def batches_of(lengths: npt.ArrayLike, batch_size: int) -> list[Numbers]:
    """Positions of texts of similar length, longest first, `batch_size` at a time.

    The cut depends on the lengths and the batch size alone: whoever encodes a batch, and however
    many share the work, the numbers that come out are the same.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


class Side(NamedTuple):
    """One side of an evaluation: "query" or "index", the role of its texts, and the texts."""

    name: str
    role: str
    texts: pa.Array


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """What one EvaluationCallback evaluates.

    Attributes:
        name: unique in the run; the caption, or "evaluation".
        caption: prefix of the metric keys, or None.
        data: queries, documents, and which are relevant.
        batch_size: texts encoded at a time.
        limit: k, the cut-off of all metrics.
        distance: one of `DISTANCES`.
        exclude_self: leave a query's own document out of its ranking.
        examples: how many queries' rankings to keep, 0 for none.
    """

    name: str
    caption: str | None
    data: RetrievalSet
    batch_size: int
    limit: int
    distance: str
    exclude_self: bool
    examples: int

    @cached_property
    def one_set(self) -> bool:
        """Whether queries and documents are the same texts, encoded in the same way."""
        data = self.data
        return data.symmetric and bool(data.query_texts.equals(data.document_texts))

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """What is to be encoded: the index, and the queries unless they are the same."""
        data = self.data
        index = Side("index", "" if data.symmetric else "document", data.document_texts)
        if self.one_set:
            return (index,)
        return Side("query", "" if data.symmetric else "query", data.query_texts), index

    @cached_property
    def batches(self) -> dict[str, list[Numbers]]:
        """For each side its batches, as positions of texts."""
        return {
            side.name: batches_of(pc.utf8_length(side.texts).to_numpy(), self.batch_size)
            for side in self.sides
        }

    def key(self, metric: str) -> str:
        """The key under which callbacks and `run.metrics()` know a metric."""
        return f"{self.caption}_{metric}" if self.caption else metric
