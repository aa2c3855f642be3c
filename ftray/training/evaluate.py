"""One evaluation: all ranks encode, each its share of the batches, and a scorer does the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ftray.evaluation.encode import TextModel, batches_of, encode_batch, evaluating
from ftray.evaluation.scorer import Scores
from ftray.evaluation.spec import EvaluationSpec
from ftray.models.layout import Layout
from ftray.runtime.base import Runtime

__all__ = ["Evaluated", "evaluate"]

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation on every rank: the scores, how much each rank encoded, and the time (s)."""

    scores: Scores
    texts_per_rank: list[int]
    wall_s: float


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
