"""Evaluation in Ray actors.

Each holds the data, the FAISS index (of a retrieval) and the metrics of one EvaluationCallback. The
driver creates them before training, so they outlive lost workers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import ray

from ftray.cluster.nodes import drivers_node
from ftray.evaluation.base import Scorer, Scores
from ftray.evaluation.scorer import make_scorer
from ftray.runtime.process_group import LostWorkersError
from ftray.training.job import Job

__all__ = ["SCORE_TIMEOUT_S", "ActorScorer", "load_scorers", "start_scorers"]

SCORE_TIMEOUT_S = 1500.0


class ScorerActor:
    """A scorer as an actor: empty until `load`, which every attempt of a run calls again."""

    def __init__(self) -> None:
        # Ray gives an actor without CPUs one thread; the workers wait while it searches
        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
        self._scorer: Scorer | None = None

    def load(self, job: Job, number: int) -> None:
        """Begin anew with evaluation `number`; the data is read from the object store."""
        self._scorer = make_scorer(job.evaluations[number])

    def add(self, side: str, batch: int, vectors: npt.NDArray[np.float32]) -> None:
        """See `Scorer.add`."""
        self._loaded().add(side, batch, vectors)

    def score(self) -> Scores:
        """See `Scorer.score`."""
        return self._loaded().score()

    def _loaded(self) -> Scorer:
        if self._scorer is None:
            raise RuntimeError("the evaluation actor was restarted and has no data")
        return self._scorer


def start_scorers(count: int) -> list[Any]:
    """One actor for each evaluation, near the driver if possible.

    They cost no CPU to place, so they never wait for one that a worker holds.
    """
    actor = ray.remote(ScorerActor).options(
        num_cpus=0, max_restarts=2, scheduling_strategy=drivers_node(soft=True)
    )
    return [actor.remote() for _ in range(count)]


def load_scorers(actors: Sequence[Any], job: Any) -> None:
    """Rank 0, at the start of every attempt: give the actors their data.

    Args:
        actors: their handles.
        job: a reference to the `Job` in the object store.
    """
    _get([actor.load.remote(job, number) for number, actor in enumerate(actors)])


class ActorScorer:
    """A worker's view of one scorer actor.

    Args:
        actor: its handle.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._sent: list[Any] = []

    def add(self, side: str, batch: int, vectors: npt.NDArray[np.float32]) -> None:
        """Send a batch; returns at once."""
        self._sent.append(self._actor.add.remote(side, batch, vectors))

    def flush(self) -> None:
        """Wait until all that was sent has arrived."""
        sent, self._sent = self._sent, []
        _get(sent)

    def score(self) -> Scores:
        """Wait for the scores."""
        scores: Scores = _get(self._actor.score.remote())
        return scores


def _get(answer: Any) -> Any:
    """Wait for an answer; an actor that is gone is a lost worker, its own errors are themselves."""
    try:
        return ray.get(answer, timeout=SCORE_TIMEOUT_S)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception) and not isinstance(cause, RuntimeError):
            raise cause from None
        raise LostWorkersError(f"The evaluation actor failed: {cause}") from error
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise LostWorkersError(f"The evaluation actor did not answer: {error}") from error
