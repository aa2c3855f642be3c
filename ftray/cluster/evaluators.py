"""Evaluation while training goes on, in Ray actors that hold an encoder of their own.

There is one actor for each EvaluationCallback with `overlap`. The driver makes them before
training, so they outlive lost workers; the weights reach them through the object store. They cost
no CPU to place, so they never wait for one that a worker holds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import faiss
import ray
import torch
from ray._private.state import actors
from torch import Tensor

from ftray.cluster import inventory
from ftray.cluster.inventory import Bundle
from ftray.cluster.nodes import naming_node, node_here, on_node
from ftray.cluster.placement import FREE_TIMEOUT_S, Placement, no_room_beside, spots
from ftray.cluster.weights import SharedModel, job_here
from ftray.errors import ClusterError
from ftray.runtime.process_group import LostWorkersError
from ftray.training.evaluate import Evaluated
from ftray.training.job import Job
from ftray.training.overlap import SnapshotEvaluator

__all__ = ["ActorEvaluator", "start_evaluators"]

RESTARTS = 2
EVALUATE_TIMEOUT_S = 3600.0
PLACE_TIMEOUT_S = 120.0
"""Within this time an actor must have been placed and started, also after its node was lost."""
LOOK_EVERY_S = 5.0
NICENESS = 10
"""On busy cores training goes first: who waits for an evaluation waits at the end of the run."""


class EvaluatorActor:
    """Evaluates weights, one after the other; what it needs it reads at its first task.

    Args:
        driver: id of the driver's node.
    """

    def __init__(self, driver: str) -> None:
        # Ray gives an actor without CPUs one thread
        threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        os.nice(NICENESS)
        self._driver = driver
        self._evaluator: SnapshotEvaluator | None = None

    def ready(self) -> None:
        """Answers once the actor has been placed and started."""

    @ray.method(max_task_retries=RESTARTS)  # type: ignore[untyped-decorator]
    def evaluate(
        self,
        job: list[Any],
        model: SharedModel | None,
        number: int,
        weights: Mapping[str, Tensor],
    ) -> Evaluated:
        """Run an evaluation.

        Args:
            job: a list with the reference to the job in the object store.
            model: for nodes that do not see the base model.
            number: which evaluation.
            weights: of the encoder.
        """
        with naming_node(self._driver):
            if self._evaluator is None:
                device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
                with job_here(ray.get(job[0]), model) as given:
                    self._evaluator = SnapshotEvaluator(given, device, given.data_workers)
            return self._evaluator(number, weights)


def start_evaluators(job: Job, placement: Placement) -> dict[int, Any]:
    """An actor for each evaluation that overlaps training, by the evaluation's number.

    Where `resources_per_evaluator` says nothing, each gets a GPU as long as the workers leave one
    free, and else runs beside the driver on what is idle there. What reserves something is placed
    here, before the workers, on a node where these still find room.

    Args:
        job: with the evaluations.
        placement: of the workers, which are not placed yet.

    Raises:
        ClusterError: if there is no room beside the workers for what was asked for, or an actor
            dies while it starts.
    """
    numbers = [number for number, spec in enumerate(job.evaluations) if spec.overlap]
    asked = job.config.resources_per_evaluator
    bundle = asked if asked is not None else {"GPU": 1.0} if placement.use_gpu else {}
    if not any(bundle.values()):
        return {number: _start({}, None) for number in numbers}
    nodes = _nodes_for(len(numbers), bundle, placement, must=asked is not None)
    placed = dict(zip(numbers, nodes, strict=True))
    found = {n: _start(bundle if node else {}, node) for n, node in placed.items()}
    reserving = [found[n] for n, node in placed.items() if node]
    try:
        ray.get([actor.ready.remote() for actor in reserving], timeout=PLACE_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        for actor in found.values():
            ray.kill(actor)
        if isinstance(error, ray.exceptions.GetTimeoutError):
            raise ClusterError(no_room_beside(placement, bundle)) from None
        raise ClusterError(f"The actor of an evaluation with overlap died: {error}") from error
    return found


def _nodes_for(
    count: int, bundle: Bundle, placement: Placement, *, must: bool
) -> Sequence[str | None]:
    """Nodes with room beside the workers; what is just being given back is waited for."""
    deadline = time.monotonic() + FREE_TIMEOUT_S
    nodes = spots([bundle] * count, placement)
    while must and None in nodes:
        if time.monotonic() > deadline:
            raise ClusterError(no_room_beside(placement, bundle))
        time.sleep(0.25)
        nodes = spots([bundle] * count, placement)
    return nodes


def _start(bundle: Bundle, node: str | None) -> Any:
    """An actor that reserves this, on a node; None = beside the driver."""
    left = dict(bundle)
    actor = ray.remote(EvaluatorActor).options(
        num_cpus=left.pop("CPU", 0),
        num_gpus=left.pop("GPU", 0),
        memory=left.pop("memory", None) or None,
        resources=left or None,
        max_restarts=RESTARTS,
        **on_node(node or node_here()),
    )
    return actor.remote(node_here())


class ActorEvaluator:
    """Rank 0's view of the actors; see `ftray.runtime.base.Evaluator`.

    Args:
        actors: by the number of the evaluation.
        job: a reference to the job.
        model: for nodes that do not see the base model.
    """

    def __init__(self, actors: Mapping[int, Any], job: Any, model: SharedModel | None) -> None:
        self._actors = actors
        self._job = job
        self._model = model
        self._waiting: dict[Any, tuple[int, int]] = {}  # answers: ticket and evaluation
        self._moved = self._looked = time.monotonic()
        self._missing_since: float | None = None

    def submit(self, ticket: int, number: int, weights: Mapping[str, Tensor]) -> None:
        """Put the weights into the object store and begin."""
        copy = ray.put(dict(weights))
        answer = self._actors[number].evaluate.remote([self._job], self._model, number, copy)
        self._waiting[answer] = ticket, number

    def finished(self, wait_s: float = 0.0) -> list[tuple[int, Evaluated]]:
        """What is done, in the order in which it was submitted.

        An actor that was started again may take its tasks in another order. What it does too early
        is kept back, so of each evaluation the newest result is of the newest weights.

        Raises:
            LostWorkersError: if nothing was done for an hour.
            ClusterError: if an actor whose node was lost finds no other.
        """
        now = time.monotonic()
        if not self._waiting:
            self._moved, self._missing_since = now, None
            return []
        oldest = {number: answer for answer, (_, number) in reversed(self._waiting.items())}
        ray.wait(list(oldest.values()), num_returns=1, timeout=wait_s)
        done = self._in_order()
        if done:
            self._moved, self._missing_since = now, None
        elif now - self._moved > EVALUATE_TIMEOUT_S:
            raise LostWorkersError(f"The evaluation actor did nothing for {EVALUATE_TIMEOUT_S:g} s")
        elif now - self._looked > LOOK_EVERY_S:
            self._look(now)
        return [(self._waiting.pop(answer)[0], _result(answer)) for answer in done]

    def _in_order(self) -> list[Any]:
        """Answers that are there, up to the first of each evaluation that is not."""
        done, held = [], set()
        for answer, (_, number) in self._waiting.items():
            if number not in held and ray.wait([answer], timeout=0)[0]:
                done.append(answer)
            else:
                held.add(number)
        return done

    def _look(self, now: float) -> None:
        """Notice that an actor waits for room that does not come."""
        self._looked = now
        states = [actors(actor._actor_id.hex())["State"] for actor in self._actors.values()]
        if all(state == "ALIVE" for state in states):
            self._missing_since = None
        elif self._missing_since is None:  # it may be long since anybody looked
            self._missing_since = now
        elif now - self._missing_since > PLACE_TIMEOUT_S:
            raise ClusterError(
                f"An evaluation with overlap has been waiting for a node for {PLACE_TIMEOUT_S:g} s:"
                f" the Ray cluster has {inventory.present()}. Give less in "
                "resources_per_evaluator, or leave overlap away; resume: auto continues the run"
            )

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
