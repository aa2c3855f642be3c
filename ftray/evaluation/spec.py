"""What one evaluation is to do; light, so that callbacks can be made without torch or faiss."""

from __future__ import annotations

from dataclasses import dataclass

from ftray.data.retrieval import RetrievalSet
from ftray.errors import ConfigError, nearest

__all__ = ["DISTANCES", "EvaluationSpec", "check_distance"]

DISTANCES: tuple[str, ...] = ("cosine", "dot", "euclidean", "sqeuclidean")


def check_distance(distance: str) -> None:
    """Raise a `ConfigError` for a distance that does not exist, with the nearest one."""
    if distance not in DISTANCES:
        raise ConfigError(f"Unknown distance '{distance}'.{nearest(distance, DISTANCES)}")


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

    @property
    def one_set(self) -> bool:
        """Whether queries and documents are the same texts in the same order."""
        return bool(self.data.query_texts.equals(self.data.document_texts))

    def key(self, metric: str) -> str:
        """The key under which callbacks and `run.metrics()` know a metric."""
        return f"{self.caption}_{metric}" if self.caption else metric
