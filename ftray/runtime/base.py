"""What the training loop knows of the world. It knows no Ray.

A runtime gives the loop its rank, collectives over all ranks, a way out for events, and the
scorers (actors, or their in-process twins). `LocalRuntime` and `cluster.worker.RayRuntime` are the
two implementations; the proofs use `ProcessGroupRuntime` directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ftray.events import Event

__all__ = ["Collectives", "Evaluator", "Runtime", "ScorerHandle"]

T = TypeVar("T")
Floats = npt.NDArray[np.float32]


class Collectives(Protocol):
    """Collective operations; every rank calls them in the same order."""

    rank: int
    world_size: int
    device: torch.device

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Sum a tensor over all ranks, in place."""
        ...

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack a tensor of equal shape of every rank: `(W, *shape)`."""
        ...

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank; small and picklable."""
        ...

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...


class ScorerHandle(Protocol):
    """The scorer of one evaluation, wherever it runs: index, search and metrics."""

    def add(self, side: str, batch: int, vectors: Floats) -> None:
        """Hand over the vectors of one encoded batch; `side` is the name of a `Side`."""
        ...

    def flush(self) -> None:
        """Return when all that this rank added has arrived."""
        ...

    def score(self) -> Any:
        """Return the `Scores` of all batches; forgets the vectors."""
        ...


class Evaluator(Protocol):
    """Evaluates copies of the weights while training goes on; used by rank 0 alone."""

    def submit(self, ticket: int, number: int, weights: Mapping[str, Tensor]) -> None:
        """Begin evaluation `number` of the job with these weights (on the CPU).

        Returns soon.
        """
        ...

    def finished(self, wait_s: float = 0.0) -> list[tuple[int, Any]]:
        """Tickets and results (`Evaluated`) of what is done, after waiting for one at most so long.

        Raises:
            Exception: what an evaluation raised.
        """
        ...

    def close(self) -> None:
        """Drop what is not done."""
        ...


class Runtime(Collectives, Protocol):
    """Collectives, and the ways in and out of the loop.

    `where` says for people where the loop runs, as in "on 4 Ray workers".
    """

    where: str

    @property
    def evaluator(self) -> Evaluator:
        """Rank 0 only: what evaluates while training goes on."""
        ...

    def emit(self, event: Event) -> None:
        """Send an event to the driver side; returns at once."""
        ...

    def stop_requested(self) -> str | None:
        """Rank 0 only: the reason why somebody outside wants the run to stop, or None."""
        ...

    def scorer(self, number: int) -> ScorerHandle:
        """The scorer of evaluation `number` of the job."""
        ...

    def commit(self, path: str, metrics: dict[str, float]) -> None:
        """All ranks: tell the cluster of a complete checkpoint (`path` in the run directory)."""
        ...
