"""One evaluation: who encodes what, and what is made of the vectors.

All ranks encode, each its share of the batches; a `Scorer` takes the vectors, builds the index,
searches it and computes metrics. With Ray the scorer is an actor (`ftray.cluster.actors`), without
Ray it lives in this process: the same class, given the same batches, so the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ftray.evaluation.encode import TextModel, batches_of, encode_batch, evaluating
from ftray.evaluation.metrics import judge, per_query
from ftray.evaluation.search import ExactIndex
from ftray.evaluation.spec import EvaluationSpec
from ftray.models.layout import Layout
from ftray.runtime.base import Runtime

__all__ = ["Evaluated", "Scorer", "Scores", "evaluate"]

Floats = npt.NDArray[np.float32]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a scorer returns: means over all queries, and one row per query."""

    metrics: dict[str, float]
    per_query: pa.Table
    examples: dict[str, list[dict[str, Any]]] | None
    queries_without_relevant: int


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation on every rank: the scores, how much each rank encoded, and the time (s)."""

    scores: Scores
    texts_per_rank: list[int]
    wall_s: float


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
        documents = self._assemble("index", data.document_texts.to_pylist())
        queries = (
            documents if spec.one_set else self._assemble("query", data.query_texts.to_pylist())
        )
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
            metrics={name: float(value.mean()) for name, value in values.items()},
            per_query=table,
            examples=self._examples(ranked, found) if spec.examples else None,
            queries_without_relevant=int((judged.relevant == 0).sum()),
        )

    def _assemble(self, side: str, texts: list[str]) -> Floats:
        batches = batches_of(texts, self._spec.batch_size)
        parts = self._parts[side]
        missing = [i for i in range(len(batches)) if i not in parts]
        if missing:
            raise RuntimeError(f"{len(missing)} of {len(batches)} {side} batches did not arrive")
        first = parts[0]
        vectors = np.empty((len(texts), first.shape[1]), np.float32)
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


def evaluate(
    spec: EvaluationSpec,
    number: int,
    encoder: TextModel,
    runtime: Runtime,
    *,
    layout: Layout,
    on_progress: OnProgress,
) -> Evaluated:
    """Encode on all ranks, score on one, and give every rank the result.

    Args:
        spec: what to evaluate.
        number: which evaluation of the job it is; selects the scorer.
        encoder: the weights to evaluate.
        runtime: the other ranks, and the scorer.
        layout: how batches are laid out.
        on_progress: called on rank 0 with (task, batches done, batches in all).
    """
    start = time.perf_counter()
    retrieval = runtime.retrieval(number)
    sides = [("index", "document", "Embedding index", spec.data.document_texts)]
    if not spec.one_set:
        sides.insert(0, ("query", "query", "Embedding queries", spec.data.query_texts))
    encoded = 0
    with evaluating(encoder):
        for side, role, task, column in sides:
            texts = column.to_pylist()
            batches = batches_of(texts, spec.batch_size)
            for i in range(runtime.rank, len(batches), runtime.world_size):
                batch = [texts[j] for j in batches[i]]
                retrieval.add(side, i, encode_batch(encoder, batch, role, layout))
                encoded += len(batch)
                if runtime.rank == 0:
                    on_progress(task, min(i + runtime.world_size, len(batches)), len(batches))
    retrieval.flush()
    counts = runtime.all_gather(_count(encoded, runtime)).reshape(-1).tolist()
    if runtime.rank == 0:
        on_progress("Matching", 0, 1)
    scores = retrieval.score() if runtime.rank == 0 else None
    if runtime.rank == 0:
        on_progress("Matching", 1, 1)
    shared = runtime.broadcast(scores)
    assert shared is not None
    return Evaluated(
        scores=shared,
        texts_per_rank=[int(n) for n in counts],
        wall_s=time.perf_counter() - start,
    )


def _count(n: int, runtime: Runtime) -> torch.Tensor:
    return torch.tensor([n], dtype=torch.long, device=runtime.device)
