"""Evaluation in Ray actors.

Each holds the data, the FAISS index (of a retrieval) and the metrics of one EvaluationCallback; an
index in shards is held by the actors of `ftray.cluster.shards`. The driver creates them before
training, so they outlive lost workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import ray

from ftray.cluster.answers import answers_of
from ftray.cluster.nodes import node_here, on_node
from ftray.cluster.sharded import ShardedScorer
from ftray.evaluation.base import Scorer, Scores
from ftray.evaluation.scorer import make_scorer
from ftray.evaluation.sharded import home
from ftray.evaluation.spec import RetrievalSpec
from ftray.training.job import Job

__all__ = ["SCORE_TIMEOUT_S", "ActorScorer", "load_scorers", "start_scorers"]

SCORE_TIMEOUT_S = 1500.0


class ScorerActor:
    """A scorer as an actor: empty until `load`, which every attempt of a run calls again."""

    def __init__(self) -> None:
        # Ray gives an actor without CPUs one thread; the workers wait while it searches
        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
        self._scorer: Scorer | None = None

    def load(self, job: Job, number: int, shards: Sequence[Any] = ()) -> None:
        """Begin anew with evaluation `number`; the data is read from the object store.

        With `shards`, actors, the index is theirs.
        """
        spec = job.evaluations[number]
        if shards:
            assert isinstance(spec, RetrievalSpec)
            self._scorer = ShardedScorer(spec, shards)
        else:
            self._scorer = make_scorer(spec)

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
    actor = ray.remote(ScorerActor).options(num_cpus=0, max_restarts=2, **on_node(node_here()))
    return [actor.remote() for _ in range(count)]


def load_scorers(actors: Sequence[Any], job: Any, shards: Mapping[int, Sequence[Any]]) -> None:
    """Rank 0, at the start of every attempt: give the actors their data.

    Args:
        actors: their handles.
        job: a reference to the `Job` in the object store.
        shards: the shard actors of the evaluations that have them, by number.
    """
    loaded = [
        actor.load.remote(job, number, list(shards.get(number, ())))
        for number, actor in enumerate(actors)
    ]
    answers_of(loaded, timeout_s=SCORE_TIMEOUT_S)


class ActorScorer:
    """A worker's view of one scorer actor.

    Args:
        actor: its handle.
        shards: the shard actors of its index, if it has any.
    """

    def __init__(self, actor: Any, shards: Sequence[Any] = ()) -> None:
        self._actor = actor
        self._holders = list(shards) or [actor]
        self._sent: list[Any] = []

    def add(self, side: str, batch: int, vectors: npt.NDArray[np.float32]) -> None:
        """Send a batch to who holds it; returns at once."""
        holder, own_number = home(batch, len(self._holders))
        self._sent.append(self._holders[holder].add.remote(side, own_number, vectors))

    def flush(self) -> None:
        """Wait until all that was sent has arrived."""
        sent, self._sent = self._sent, []
        answers_of(sent, timeout_s=SCORE_TIMEOUT_S)

    def score(self) -> Scores:
        """Wait for the scores."""
        scores: Scores = answers_of(self._actor.score.remote(), timeout_s=SCORE_TIMEOUT_S)
        return scores
