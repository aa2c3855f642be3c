"""What one evaluation is to do; light, so that callbacks can be made without torch or faiss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.relevance import RetrievalSet
from ftray.data.scored import PairSet
from ftray.errors import ConfigError, nearest
from ftray.evaluation.metrics import METRICS

__all__ = [
    "CORRELATIONS",
    "DISTANCES",
    "EvaluationSpec",
    "RetrievalSpec",
    "Side",
    "SimilaritySpec",
    "batches_of",
    "check_distance",
]

Numbers = npt.NDArray[np.int64]

CORRELATIONS: tuple[str, ...] = ("pearson", "spearman")
"""The metrics of scored pairs."""

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
    """What is encoded together: its name, the role of its texts, and the texts.

    The names are "query" and "index" of a retrieval, "text" of scored pairs.
    """

    name: str
    role: str
    texts: pa.Array


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec(ABC):
    """What one EvaluationCallback evaluates; the two kinds of data have a class each.

    Attributes:
        name: unique in the run; the caption, or "evaluation".
        caption: prefix of the metric keys, or None.
        data: what is evaluated with.
        batch_size: texts encoded at a time.
        distance: one of `DISTANCES`.
        overlap: whether training goes on meanwhile.
        steps_per_interval: every how many training steps it is done, or None.
    """

    metrics: ClassVar[tuple[str, ...]]
    """The names of the metrics, in the order in which they are reported; more is better."""

    name: str
    caption: str | None
    data: RetrievalSet | PairSet
    batch_size: int
    distance: str
    overlap: bool = False
    steps_per_interval: int | None = None

    @property
    @abstractmethod
    def sides(self) -> tuple[Side, ...]:
        """What is to be encoded."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How much data there is, by what it is: queries and documents, or pairs."""

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


@dataclass(frozen=True, kw_only=True)
class RetrievalSpec(EvaluationSpec):
    """Documents are ranked for queries.

    Attributes:
        data: queries, documents, and which are relevant.
        limit: k, the cut-off of all metrics.
        exclude_self: leave a query's own document out of its ranking.
        examples: how many queries' rankings to keep, 0 for none.
    """

    metrics: ClassVar[tuple[str, ...]] = METRICS

    data: RetrievalSet
    limit: int
    exclude_self: bool
    examples: int

    @cached_property
    def one_set(self) -> bool:
        """Whether queries and documents are the same texts, encoded in the same way."""
        data = self.data
        return data.symmetric and bool(data.query_texts.equals(data.document_texts))

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """The index, and the queries unless they are the same."""
        data = self.data
        index = Side("index", "" if data.symmetric else "document", data.document_texts)
        if self.one_set:
            return (index,)
        return Side("query", "" if data.symmetric else "query", data.query_texts), index

    @property
    def counts(self) -> dict[str, int]:
        """Queries and documents."""
        return {"queries": len(self.data.query_texts), "documents": len(self.data.document_texts)}


@dataclass(frozen=True, kw_only=True)
class SimilaritySpec(EvaluationSpec):
    """Similarities of pairs are compared with scores.

    Attributes:
        data: the pairs and their scores.
    """

    metrics: ClassVar[tuple[str, ...]] = CORRELATIONS

    data: PairSet

    @property
    def sides(self) -> tuple[Side, ...]:
        """The distinct texts; neither text of a pair is a query, so they have no role."""
        return (Side("text", "", self.data.texts),)

    @property
    def counts(self) -> dict[str, int]:
        """Pairs."""
        return {"pairs": len(self.data.pairs)}
