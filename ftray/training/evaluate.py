"""One evaluation: all ranks encode, each its share of the batches, and a scorer does the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ftray.callbacks.base import EvaluationResult
from ftray.evaluation.base import Scores
from ftray.evaluation.encode import TextModel, encode_batch, evaluating
from ftray.evaluation.quantize import shortened
from ftray.evaluation.spec import EvaluationSpec, Side
from ftray.events import EvaluationEnded
from ftray.models.ahead import ahead
from ftray.models.base import Features
from ftray.models.layout import Layout
from ftray.models.onednn import with_onednn
from ftray.runtime.base import Runtime

__all__ = ["Evaluated", "evaluate", "evaluation_event", "evaluation_result"]

TASKS = {"query": "Embedding queries", "index": "Embedding index", "text": "Embedding texts"}

Numbers = npt.NDArray[np.int64]
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation on every rank.

    Attributes:
        metrics: means over all queries, or correlations over all pairs, on every rank.
        scores: all of it, on rank 0 only.
        texts_per_rank: how many texts each rank encoded.
        wall_s: the time it took, in seconds.
    """

    metrics: dict[str, float]
    scores: Scores | None
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
    data_workers: int = 0,
) -> Evaluated:
    """Encode on all ranks, score on one, and give every rank the result.

    Args:
        spec: what to evaluate.
        number: which evaluation of the job it is; selects the scorer.
        encoder: the weights to evaluate.
        runtime: the other ranks, and the scorer.
        layout: how batches are laid out.
        on_progress: called on rank 0 with (task, batches done, batches in all).
        data_workers: processes that decode ahead of what is encoded.
    """
    start = time.perf_counter()
    scorer = runtime.scorer(number)
    encoded = 0
    with evaluating(encoder), with_onednn(encoder):
        for side in spec.sides:
            batches = spec.batches[side.name]
            own = range(runtime.rank, len(batches), runtime.world_size)
            collated = partial(_collated, encoder, side, batches, layout)
            with closing(ahead(collated, own, data_workers)) as ready:
                for i, features in zip(own, ready, strict=True):
                    scorer.add(side.name, i, shortened(encode_batch(encoder, features), spec.dims))
                    encoded += len(batches[i])
                    if runtime.rank == 0:
                        done = min(i + runtime.world_size, len(batches))
                        on_progress(TASKS[side.name], done, len(batches))
    scorer.flush()
    counts = runtime.all_gather(_count(encoded, runtime)).reshape(-1).tolist()
    scores = None
    if runtime.rank == 0:
        on_progress("Matching", 0, 1)
        scores = scorer.score()
        on_progress("Matching", 1, 1)
    return Evaluated(
        metrics=runtime.broadcast(scores.metrics if scores else {}),
        scores=scores,
        texts_per_rank=[int(n) for n in counts],
        wall_s=time.perf_counter() - start,
    )


def _collated(
    encoder: TextModel, side: Side, batches: list[Numbers], layout: Layout, number: int
) -> Features:
    return encoder.collate(side.items(batches[number]), layout)


def evaluation_event(
    spec: EvaluationSpec, done: Evaluated, scores: Scores, **place: Any
) -> EvaluationEnded:
    """What the record keeps of an evaluation.

    `place` is when, epoch, global_step, weights, alpha and overlapped.
    """
    place.update(spec.counts)
    return EvaluationEnded(
        name=spec.name,
        caption=spec.caption,
        metrics=done.metrics,
        keys={name: spec.key(name) for name in done.metrics},
        queries_without_relevant=scores.queries_without_relevant,
        rows_encoded=done.texts_per_rank,
        examples=scores.examples,
        query_images=scores.query_images,
        wall_s=done.wall_s,
        per_query=scores.per_query,
        **place,
    )


def evaluation_result(
    spec: EvaluationSpec,
    number: int,
    metrics: dict[str, float],
    scores: Scores | None,
    **place: Any,
) -> EvaluationResult:
    """What callbacks hear of an evaluation.

    `place` is when, epoch, global_step, weights and alpha; the scores are known on rank 0 alone.
    """
    return EvaluationResult(
        number=number,
        caption=spec.caption,
        metrics=MappingProxyType(metrics),
        keys=MappingProxyType({name: spec.key(name) for name in metrics}),
        examples=scores.examples if scores else None,
        **place,
    )


def _count(n: int, runtime: Runtime) -> torch.Tensor:
    return torch.tensor([n], dtype=torch.long, device=runtime.device)
