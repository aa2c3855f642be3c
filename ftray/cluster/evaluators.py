"""Evaluation while training goes on, in Ray actors that hold an encoder of their own.

There is one actor for each EvaluationCallback with `overlap`. The driver makes them before
training, so they outlive lost workers; the weights reach them through the object store. They cost
no CPU to place, so they never wait for one that a worker holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import faiss
import ray
import torch
from torch import Tensor

from ftray.cluster.nodes import drivers_node
from ftray.runtime.process_group import LostWorkersError
from ftray.training.evaluate import Evaluated
from ftray.training.job import Job
from ftray.training.overlap import SnapshotEvaluator

__all__ = ["ActorEvaluator", "start_evaluators"]

RESTARTS = 2
EVALUATE_TIMEOUT_S = 3600.0
NICENESS = 10
"""On busy cores training goes first: who waits for an evaluation waits at the end of the run."""


class EvaluatorActor:
    """Evaluates weights, one after the other; what it needs it reads at its first task."""

    def __init__(self) -> None:
        # Ray gives an actor without CPUs one thread
        threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        os.nice(NICENESS)
        self._evaluator: SnapshotEvaluator | None = None

    @ray.method(max_task_retries=RESTARTS)  # type: ignore[untyped-decorator]
    def evaluate(self, job: list[Any], number: int, weights: Mapping[str, Tensor]) -> Evaluated:
        """Run an evaluation.

        Args:
            job: a list with the reference to the job in the object store.
            number: which evaluation.
            weights: of the encoder.
        """
        if self._evaluator is None:
            device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
            given = ray.get(job[0])
            self._evaluator = SnapshotEvaluator(given, device, given.data_workers)
        return self._evaluator(number, weights)


def start_evaluators(job: Job, spare_gpus: int) -> dict[int, Any]:
    """An actor for each evaluation that overlaps training, by the evaluation's number.

    Args:
        job: with the evaluations.
        spare_gpus: GPUs that the workers leave free; each actor gets one as long as there are any.
    """
    found: dict[int, Any] = {}
    for number, spec in enumerate(job.evaluations):
        if spec.overlap:
            gpus = 1 if spare_gpus >= 1 else 0
            spare_gpus -= gpus
            place = {} if gpus else {"scheduling_strategy": drivers_node(soft=True)}
            actor = ray.remote(EvaluatorActor).options(
                num_cpus=0, num_gpus=gpus, max_restarts=RESTARTS, **place
            )
            found[number] = actor.remote()
    return found


class ActorEvaluator:
    """Rank 0's view of the actors; see `ftray.runtime.base.Evaluator`.

    Args:
        actors: by the number of the evaluation.
        job: a reference to the job.
    """

    def __init__(self, actors: Mapping[int, Any], job: Any) -> None:
        self._actors = actors
        self._job = job
        self._waiting: dict[Any, int] = {}
        self._moved = time.monotonic()

    def submit(self, ticket: int, number: int, weights: Mapping[str, Tensor]) -> None:
        """Put the weights into the object store and begin."""
        copy = ray.put(dict(weights))
        answer = self._actors[number].evaluate.remote([self._job], number, copy)
        self._waiting[answer] = ticket

    def finished(self, wait_s: float = 0.0) -> list[tuple[int, Evaluated]]:
        """What is done, in the order in which it was submitted.

        Raises:
            LostWorkersError: if nothing was done for an hour.
        """
        now = time.monotonic()
        if not self._waiting:
            self._moved = now
            return []
        ray.wait(list(self._waiting), num_returns=1, timeout=wait_s)
        done = [answer for answer in self._waiting if ray.wait([answer], timeout=0)[0]]
        if done:
            self._moved = now
        elif now - self._moved > EVALUATE_TIMEOUT_S:
            raise LostWorkersError(f"The evaluation actor did nothing for {EVALUATE_TIMEOUT_S:g} s")
        return [(self._waiting.pop(answer), _result(answer)) for answer in done]

    def close(self) -> None:
        """Drop what is not done; the driver ends the actors."""
        for answer in self._waiting:
            with suppress(ray.exceptions.RayError):
                ray.cancel(answer)
        self._waiting = {}


def _result(answer: Any) -> Evaluated:
    """A result; an actor that is gone for good is a lost worker, its own errors are themselves."""
    try:
        result: Evaluated = ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception):
            raise cause from None
        raise
    except ray.exceptions.RayError as error:
        raise LostWorkersError(f"The evaluation actor was lost: {error}") from error
    return result
