"""Retrieval: index, search, metrics, examples. And which scorer an evaluation has."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.evaluation.base import Scorer, Scores
from ftray.evaluation.metrics import judge, mean_metrics, per_query
from ftray.evaluation.search import ExactIndex
from ftray.evaluation.similarity import SimilarityScorer
from ftray.evaluation.spec import EvaluationSpec, RetrievalSpec, SimilaritySpec

__all__ = ["RetrievalScorer", "make_scorer"]

Floats = npt.NDArray[np.float32]


def make_scorer(spec: EvaluationSpec) -> Scorer:
    """The scorer that an evaluation needs."""
    if isinstance(spec, SimilaritySpec):
        return SimilarityScorer(spec)
    if isinstance(spec, RetrievalSpec):
        return RetrievalScorer(spec)
    raise TypeError(f"there is no scorer for a {type(spec).__name__}")


class RetrievalScorer(Scorer):
    """Ranks the documents for each query, and judges the rankings."""

    def __init__(self, spec: RetrievalSpec) -> None:
        super().__init__(spec)
        self._spec = spec

    def score(self) -> Scores:
        """Index, search and judge all batches; see `Scorer.score`."""
        spec, data = self._spec, self._spec.data
        documents = self._assemble("index")
        queries = documents if spec.one_set else self._assemble("query")
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
