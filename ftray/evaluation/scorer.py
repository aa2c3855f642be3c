"""What is made of the vectors of an evaluation: index, search, metrics, examples.

With Ray the scorer is an actor (`ftray.cluster.actors`), without Ray it lives in this process: the
same class, given the same batches, so the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.evaluation.metrics import judge, mean_metrics, per_query
from ftray.evaluation.search import ExactIndex
from ftray.evaluation.spec import EvaluationSpec

__all__ = ["Scorer", "Scores"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a scorer returns: means over all queries, and one row per query."""

    metrics: dict[str, float]
    per_query: pa.Table
    examples: dict[str, list[dict[str, Any]]] | None
    queries_without_relevant: int


class Scorer:
    """Takes encoded batches, then ranks and judges."""

    def __init__(self, spec: EvaluationSpec) -> None:
        self._spec = spec
        self._parts: dict[str, dict[int, Floats]] = {"query": {}, "index": {}}

    def add(self, side: str, batch: int, vectors: Floats) -> None:
        """Keep the vectors of one batch; a batch sent again replaces the former one."""
        self._parts[side][batch] = vectors

    def flush(self) -> None:
        """Nothing is on its way: what was added is here."""
        return None

    def score(self) -> Scores:
        """Index, search and judge all batches; forgets the vectors.

        Raises:
            RuntimeError: if a batch is missing (an encoder died between adding and scoring).
        """
        spec, data = self._spec, self._spec.data
        documents = self._assemble("index")
        queries = documents if spec.one_set else self._assemble("query")
        self._parts = {"query": {}, "index": {}}
        index = ExactIndex(documents.shape[1], spec.distance)
        index.add(data.document_ids, documents)
        own = data.own_document if spec.exclude_self else None
        found, ranked = index.search(queries, spec.limit, exclude=own)
        judged = judge(
            ranked, data.groups, data.group_starts, data.group_documents, data.group_grades, own
        )
        values = per_query(judged, spec.limit)
        table = pa.table(
            {
                "query_id": data.query_ids,
                "query": data.query_texts,
                "relevant": judged.relevant,
                **values,
            }
        )
        return Scores(
            metrics=mean_metrics(judged, spec.limit),
            per_query=table,
            examples=self._examples(ranked, found) if spec.examples else None,
            queries_without_relevant=int((judged.relevant == 0).sum()),
        )

    def _assemble(self, side: str) -> Floats:
        batches, parts = self._spec.batches[side], self._parts[side]
        missing = [i for i in range(len(batches)) if i not in parts]
        if missing:
            raise RuntimeError(f"{len(missing)} of {len(batches)} {side} batches did not arrive")
        vectors = np.empty((sum(map(len, batches)), parts[0].shape[1]), np.float32)
        for number, batch in enumerate(batches):
            vectors[batch] = parts[number]
        return vectors

    def _examples(self, ranked: Any, found: Floats) -> dict[str, list[dict[str, Any]]]:
        data = self._spec.data
        documents = data.document_texts
        examples: dict[str, list[dict[str, Any]]] = {}
        for query in range(min(self._spec.examples, len(data.query_texts))):
            relevant = set(data.relevant(query)[0].tolist())
            examples[data.query_texts[query].as_py()] = [
                {
                    "id": data.document_ids[position],
                    "text": documents[position].as_py(),
                    "score": float(score),
                    "relevant": position in relevant,
                }
                for position, score in zip(ranked[query].tolist(), found[query], strict=True)
                if position >= 0
            ]
        return examples
