"""The runtime of a fit in this process: one rank, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ftray.evaluation.base import Scorer
from ftray.evaluation.scorer import make_scorer
from ftray.evaluation.spec import EvaluationSpec
from ftray.events import Event
from ftray.runtime.base import Evaluator
from ftray.runtime.process_group import SingleProcess

__all__ = ["LocalRuntime", "local_device"]


def local_device(name: str) -> torch.device:
    """The device of this process: "auto" is the first GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class LocalRuntime(SingleProcess):
    """One process that is its own driver.

    Args:
        device: where to train.
        evaluations: what the scorers score.
        emit: takes every event.
        stop_requested: the reason to stop, or None.
        evaluator: what evaluates while training goes on, if anything does.
    """

    where = "in this process"

    def __init__(
        self,
        device: torch.device,
        evaluations: Sequence[EvaluationSpec],
        emit: Callable[[Event], None],
        stop_requested: Callable[[], str | None],
        evaluator: Evaluator | None = None,
    ) -> None:
        super().__init__(device)
        self._scorers = [make_scorer(spec) for spec in evaluations]
        self._emit = emit
        self._stop_requested = stop_requested
        self._evaluator = evaluator

    @property
    def evaluator(self) -> Evaluator:
        """What evaluates in a thread of its own."""
        assert self._evaluator is not None, "made without one"
        return self._evaluator

    def emit(self, event: Event) -> None:
        """Hand the event over, here and now."""
        self._emit(event)

    def stop_requested(self) -> str | None:
        """Why somebody wants the run to stop, or None."""
        return self._stop_requested()

    def scorer(self, number: int) -> Scorer:
        """The scorer, in this process."""
        return self._scorers[number]

    def commit(self, path: str, metrics: dict[str, float]) -> None:
        """There is no cluster to tell."""
        return None
