"""The batches of the steps to come, made ready ahead by other processes where that pays."""

from __future__ import annotations

from collections.abc import Generator

from ftray.data.dataset import TrainSet
from ftray.data.plan import Plan
from ftray.models.ahead import ahead
from ftray.training.job import Job
from ftray.training.learner import Batch, Learner

__all__ = ["Supply"]


class Supply:
    """The batches of a run on one rank, in the order of its steps.

    Args:
        job: with the data.
        learner: makes the batches.
        plan: which rows form which step.
    """

    def __init__(self, job: Job, learner: Learner, plan: Plan) -> None:
        self._job = job
        self._learner = learner
        self._plan = plan
        self._workers = job.data_workers
        self._ready: Generator[Batch, None, None] | None = None
        self._next = -1

    def take(self, epoch: int, step: int) -> Batch:
        """The batch of a step; those of the steps after it are being made."""
        number = epoch * self._plan.steps_per_epoch + step
        if number != self._next:  # the run begins here, or was taken back
            self.close()
            last = self._job.config.epochs * self._plan.steps_per_epoch
            self._ready = ahead(self._make, range(number, last), self._workers)
        assert self._ready is not None
        self._next = number + 1
        return next(self._ready)

    def _make(self, number: int) -> Batch:
        epoch, step = divmod(number, self._plan.steps_per_epoch)
        seed = (self._job.config.seed, epoch, step)
        return self._learner.batch(self._job.train, self._plan.rows(epoch, step), seed)

    def validation(self, data: TrainSet, plan: Plan) -> Generator[Batch, None, None]:
        """The batches of the validation loss; nothing is augmented. Close it."""

        def make(step: int) -> Batch:
            return self._learner.batch(data, plan.rows(0, step))

        return ahead(make, range(plan.steps_per_epoch), self._workers)

    def close(self) -> None:
        """End the processes."""
        if self._ready is not None:
            self._ready.close()
        self._ready, self._next = None, -1
