"""Evaluation in Ray actors.

Each holds the queries, the FAISS index and the metrics of one EvaluationCallback. The driver
creates them before training, so they outlive lost workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from ftray.evaluation.evaluator import Scorer, Scores
from ftray.evaluation.spec import EvaluationSpec
from ftray.runtime.process_group import LostWorkersError

__all__ = ["ActorRetrieval", "start_scorers"]

SCORE_TIMEOUT_S = 1800.0


class ScorerActor(Scorer):
    """A scorer as an actor; its data comes from the object store, also after a restart.

    Args:
        spec: one reference to an `EvaluationSpec`, in a list so that it is not part of the call.
    """

    def __init__(self, spec: list[Any]) -> None:
        super().__init__(ray.get(spec[0]))


def start_scorers(evaluations: Sequence[EvaluationSpec]) -> list[Any]:
    """One scorer actor for each evaluation.

    They cost no CPU to place, so they never wait for one that a worker holds.
    """
    actor = ray.remote(ScorerActor).options(num_cpus=0, max_restarts=2)
    return [actor.remote([ray.put(spec)]) for spec in evaluations]


class ActorRetrieval:
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
    try:
        return ray.get(answer, timeout=SCORE_TIMEOUT_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        cause = getattr(error, "cause", None)
        if cause is not None and not isinstance(cause, RuntimeError):
            raise
        raise LostWorkersError(f"The evaluation actor did not answer: {error}") from error
