"""What the loop tells: the events of a run, and where the time went. Rank 0 speaks for all."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from ftray.events import (
    EpochEnded,
    Event,
    FitStarted,
    Log,
    Progress,
    RankStep,
    StepEnded,
    StepsDiscarded,
)
from ftray.runtime.base import Runtime
from ftray.training.checkpoint import Position
from ftray.training.job import Job
from ftray.training.learner import Batch, Learned, Learner
from ftray.words import counted, percent

__all__ = ["Teller"]


class Teller:
    """Sends the events of one rank's loop.

    Args:
        job: what is done.
        runtime: the way out.
        learner: what learns.
        position: where the loop stands.
    """

    def __init__(self, job: Job, runtime: Runtime, learner: Learner, position: Position) -> None:
        self._job = job
        self._runtime = runtime
        self._learner = learner
        self._position = position
        self._plan = job.plan()
        self._texts_per_rank = [0] * runtime.world_size
        self._tokens = self._processed = 0
        self._tokens_are_told = False
        self._left_out = 0
        self.seconds: dict[str, float] = defaultdict(float)

    def tell(self, event: Event) -> None:
        """Rank 0: send an event."""
        if self._runtime.rank == 0:
            self._runtime.emit(event)

    def say(self, message: str, level: str = "INFO") -> None:
        """Rank 0: a line in the log."""
        self.tell(Log(message=message, level=level))

    def progress(self, task: str, done: int, total: int) -> None:
        """Rank 0: how far a task is."""
        self.tell(Progress(task=task, done=done, total=total))

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start

    def started(self) -> None:
        """The loop begins, or goes on."""
        position = self._position
        self._left_out = self._learner.precision.left_out
        self.tell(
            FitStarted(
                world_size=self._runtime.world_size,
                where=self._runtime.where,
                device=str(self._runtime.device),
                epochs=self._job.config.epochs,
                steps_per_epoch=self._plan.steps_per_epoch,
                batch_size=self._job.batch_size,
                first_epoch=position.epoch,
                first_step=position.step,
                global_step=position.global_step,
                hardware=self._learner.hardware(),
            )
        )

    def step(self, step: int, batch: Batch, learned: Learned, data_s: float, step_s: float) -> None:
        """A step is done; with `log_rows` every rank says what it encoded."""
        rank, epoch = self._runtime.rank, self._position.epoch
        for other, share in enumerate(batch.own.shares):
            self._texts_per_rank[other] += len(share)
        self._tokens += learned.tokens
        self._processed += learned.processed_tokens
        self.seconds["data"] += data_s
        self.seconds["step"] += step_s
        if self._job.config.log_rows:
            items = [batch.rows.texts[i][1] for i in batch.own.shares[rank].tolist()]
            rows = batch.rows.rows.tolist()
            self._runtime.emit(RankStep(epoch=epoch, step=step, rank=rank, rows=rows, items=items))
        self.tell(
            StepEnded(
                epoch=epoch,
                step=step,
                global_step=self._position.global_step,
                rows=len(batch.rows.rows),
                items=len(batch.rows.texts),
                data_s=data_s,
                step_s=step_s,
                scalars=self._learner.loss.scalars(),
                **asdict(learned),
            )
        )

    def epoch(self, metrics: dict[str, float]) -> None:
        """An epoch is over, with those metrics that are known now."""
        if self._tokens and not self._tokens_are_told:
            self._tokens_are_told = True
            self.say(
                f"Tokens: {self._tokens:,} of texts so far, {self._processed:,} computed "
                f"({percent(self._processed - self._tokens, self._processed)} padding)"
            )
        self._tell_left_out()
        self.tell(
            EpochEnded(
                epoch=self._position.epoch,
                global_step=self._position.global_step,
                metrics=dict(metrics),
                seconds=dict(self.seconds),
                texts_per_rank=list(self._texts_per_rank),
                rows_left_out=self._plan.left_out(self._position.epoch),
            )
        )

    def _tell_left_out(self) -> None:
        """Steps that changed nothing since the last epoch; some are usual at the start."""
        precision = self._learner.precision
        count, self._left_out = precision.left_out - self._left_out, precision.left_out
        if count > 0:
            self.say(
                f"precision fp16: {counted(count, 'step')} of this epoch left out, as the norm of "
                f"the gradient was not finite; the loss scale is {precision.scale():g} now"
            )

    def discarded(self, reason: str) -> None:
        """The loop stands at an earlier step again."""
        position = self._position
        self.tell(
            StepsDiscarded(
                epoch=position.epoch,
                step=position.step,
                global_step=position.global_step,
                reason=reason,
            )
        )
