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

from ftray.evaluation.scorer import Scorer, Scores
from ftray.evaluation.spec import EvaluationSpec
from ftray.runtime.process_group import LostWorkersError

__all__ = ["ActorRetrieval", "load_scorers", "start_scorers"]

SCORE_TIMEOUT_S = 1800.0


class ScorerActor:
    """A scorer as an actor: empty until `load`, which every attempt of a run calls again."""

    def __init__(self) -> None:
        self._scorer: Scorer | None = None

    def load(self, spec: EvaluationSpec) -> None:
        """Begin anew with what to evaluate; the data is read from the object store."""
        self._scorer = Scorer(spec)

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


def start_scorers(evaluations: Sequence[EvaluationSpec]) -> list[tuple[Any, list[Any]]]:
    """One actor for each evaluation, with a reference to its data.

    The reference is in a list, so that the data does not travel with it. The actors cost no CPU to
    place, so they never wait for one that a worker holds.
    """
    actor = ray.remote(ScorerActor).options(num_cpus=0, max_restarts=2)
    return [(actor.remote(), [ray.put(spec)]) for spec in evaluations]


def load_scorers(scorers: Sequence[tuple[Any, list[Any]]]) -> None:
    """Rank 0, at the start of every attempt: give the actors their data."""
    _get([actor.load.remote(reference) for actor, (reference,) in scorers])


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
