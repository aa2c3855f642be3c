"""The training loop. All ranks run it; what it knows of the world is its runtime.

In words, with the hooks of callbacks in brackets:

    load the model, continue from the newest checkpoint if there is one    [on_fit_begin]
    evaluate the given weights
    for each epoch:                              [on_epoch_begin, on_train_epoch_begin]
        for each step of the plan:               [on_train_batch_begin]
            encode this rank's texts, gather, loss, gradient, one reduction, clip, step
            decisions of rank 0 are broadcast: stop? evaluate?    [on_train_batch_end]
        [on_train_epoch_end]
        validation loss        [on_val_begin, (on_val_batch_begin, on_val_batch_end)*, on_val_end]
        evaluations that were decided, each followed by           [on_evaluation_end]
        is this the best epoch? stop early?                       [on_epoch_end]
        checkpoint, reported to the cluster
    [on_fit_end; on_keyboard_interrupt after a stop from outside]
    write the artifact: the best weights, or the last ones
    whatever goes wrong on the way:                                         [on_exception]
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from ftray.callbacks.base import (
    Decision,
    Evaluate,
    LogMetrics,
    MarkBest,
    Say,
    State,
    Stop,
)
from ftray.errors import RunFailedError
from ftray.events import (
    EpochEnded,
    Event,
    FitEnded,
    FitStarted,
    Log,
    Progress,
    RankStep,
    StepEnded,
)
from ftray.models.licence import read_licence
from ftray.record.storage import Storage
from ftray.runtime.base import Runtime
from ftray.runtime.process_group import LostWorkersError
from ftray.training.bridge import CallbackDispatcher
from ftray.training.checkpoint import Position
from ftray.training.evaluate import evaluate, evaluation_event, evaluation_result
from ftray.training.job import Job
from ftray.training.keeper import Keeper
from ftray.training.learner import Batch, Learner
from ftray.training.opening import tell_opening

__all__ = ["Loop", "OutsideStop"]


class OutsideStop(Stop):
    """A stop that was asked for from outside the run."""


class Loop:
    """One fit on one rank.

    Args:
        job: what to do.
        runtime: where.
    """

    def __init__(self, job: Job, runtime: Runtime) -> None:
        self.job = job
        self.config = job.config
        self.runtime = runtime
        self.plan = job.plan()
        self.val_plan = job.val_plan()
        total_steps = self.config.epochs * self.plan.steps_per_epoch
        self.learner = Learner(job, runtime, total_steps)
        self.callbacks = CallbackDispatcher(job.callbacks, runtime)
        self.keeper = Keeper(Storage(job.run_uri), self.learner, self._tell)
        self.position = Position()
        self.stop: Stop | None = None
        self.last_loss = math.nan
        self.texts_per_rank = [0] * runtime.world_size
        self.seconds: dict[str, float] = defaultdict(float)

    # ---------------------------------------------------------------- the whole run

    def run(self) -> FitEnded:
        """Train, evaluate, checkpoint, and write the artifact.

        Raises:
            RunFailedError: when training cannot go on (a loss that is not finite, a callback that
                failed); `on_exception` has been called.
        """
        try:
            self._begin()
            self._listen()
            while self.position.epoch < self.config.epochs and self.stop is None:
                self._epoch()
            return self._finish()
        except LostWorkersError:
            raise  # the next attempt goes on
        except Exception as error:
            self._announce(error)
            raise

    def _begin(self) -> None:
        newest = self.runtime.broadcast(self.keeper.newest() if self.runtime.rank == 0 else None)
        if newest is not None:
            self.position = self.keeper.restore(newest)
            if self.runtime.rank == 0:
                self.callbacks.load_state_dict(self.position.callbacks)
            if self.position.stopped is not None:
                self.stop = Stop(self.position.stopped)
            self._say(f"Continuing from checkpoint {newest} (step {self.position.global_step})")
        self._tell(
            FitStarted(
                world_size=self.runtime.world_size,
                where=self.runtime.where,
                device=str(self.runtime.device),
                epochs=self.config.epochs,
                steps_per_epoch=self.plan.steps_per_epoch,
                batch_size=self.job.batch_size,
                first_epoch=self.position.epoch,
                first_step=self.position.step,
                global_step=self.position.global_step,
                hardware=self.learner.hardware(),
            )
        )
        if self.runtime.rank == 0 and self.position.global_step == 0:
            tell_opening(self.job, self.learner.encoder, self._say)
        self._obey(self.callbacks.decide("on_fit_begin", self._state()), when="before")

    def _finish(self) -> FitEnded:
        outside = isinstance(self.stop, OutsideStop)
        if self.position.step and not outside and self.position.best is None:
            for number in range(len(self.job.evaluations)):  # the artifact's own metrics
                self._evaluate(number, "step")
        self._obey(
            self.callbacks.decide(
                "on_keyboard_interrupt" if outside else "on_fit_end", self._state()
            ),
            when="epoch",
        )
        best = self.position.best
        if self.runtime.rank == 0:
            facts = {
                "base_model": self.config.model,
                "license": read_licence(self.job.model)[0],
                "run": self.job.run_uri,
                "metrics": best["metrics"] if best else self._own_metrics(outside),
            }
            with self._timed("checkpoint"):
                self.keeper.write_artifact(self.position, facts)
        return FitEnded(
            status="STOPPED" if outside else "FINISHED",
            reason=self.stop.reason if self.stop else "",
            epochs_done=self.position.epoch,
            global_step=self.position.global_step,
            artifact_step=best["global_step"] if best else self.position.global_step,
            best=best,
            seconds=dict(self.seconds),
        )

    def _own_metrics(self, outside: bool) -> dict[str, float]:
        """The metrics that belong to the present weights: none when cut off in mid-epoch."""
        return {} if outside and self.position.step else self.position.metrics

    # ---------------------------------------------------------------- one epoch

    def _epoch(self) -> None:
        position = self.position
        self.callbacks.call("on_epoch_begin", self._state())
        self._obey(self.callbacks.decide("on_train_epoch_begin", self._state()), when="step")
        for step in range(position.step, self.plan.steps_per_epoch):
            if self.stop is not None:
                break
            self._step(step)
            position.step = step + 1
        if self.stop is not None:
            self._checkpoint()
            return
        position.metrics["train_loss"] = _mean(position.epoch_losses)
        pending = self.callbacks.decide("on_train_epoch_end", self._state())
        if self.job.val is not None:
            pending += self._validate()
        self._obey(pending, when="epoch")
        decisions = self.callbacks.decide("on_epoch_end", self._state())
        best = [decision for decision in decisions if isinstance(decision, MarkBest)]
        self._obey([d for d in decisions if not isinstance(d, MarkBest)], when="epoch")
        self._end_epoch()
        self._checkpoint(best[-1] if best else None)

    def _step(self, step: int) -> None:
        position = self.position
        start = time.perf_counter()
        batch = self.learner.batch(self.job.train, self.plan.rows(position.epoch, step))
        data_s = time.perf_counter() - start
        self.callbacks.call("on_train_batch_begin", self._state(step))
        try:
            learned = self.learner.step(batch, (self.config.seed, position.epoch, step))
        except FloatingPointError as error:
            raise self._diverged(str(error), step) from None
        position.global_step += 1
        position.epoch_losses.append((learned.loss, len(batch.rows.rows)))
        self.last_loss = learned.loss
        for rank, share in enumerate(batch.own.shares):
            self.texts_per_rank[rank] += len(share)
        if self.config.log_rows:
            self._report_rows(step, batch)
        step_s = time.perf_counter() - start - data_s
        self.seconds["data"] += data_s
        self.seconds["step"] += step_s
        self._tell(
            StepEnded(
                epoch=position.epoch,
                step=step,
                global_step=position.global_step,
                rows=len(batch.rows.rows),
                items=len(batch.rows.texts),
                data_s=data_s,
                step_s=step_s,
                scalars=self.learner.loss.scalars(),
                **asdict(learned),
            )
        )
        self.callbacks.call("on_train_batch_end", self._state(step))
        self._listen()

    def _listen(self) -> None:
        """Hear whether somebody outside wants the run to stop; obey what waits on every rank."""
        if self.runtime.rank == 0 and (reason := self.runtime.stop_requested()):
            self.callbacks.add(OutsideStop(reason))
        self._obey(self.callbacks.share(), when="step")

    def _diverged(self, what: str, step: int) -> RunFailedError:
        position = self.position
        return RunFailedError(
            f"Training diverged: {what} at epoch {position.epoch + 1}, step {step + 1} (global "
            f"step {position.global_step + 1}). A lower learning_rate, precision: fp32, or other "
            "loss_options are the usual cures."
        )

    def _announce(self, error: Exception) -> None:
        """Tell the callbacks of an exception; one that fails at that does not hide it."""
        if self.runtime.rank == 0:
            try:
                self.callbacks.call("on_exception", self._state(), error)
            except Exception as second:
                self._say(f"on_exception failed as well: {second}", "ERROR")

    def _report_rows(self, step: int, batch: Batch) -> None:
        """Every rank says what it encoded."""
        rank = self.runtime.rank
        self.runtime.emit(
            RankStep(
                epoch=self.position.epoch,
                step=step,
                rank=rank,
                rows=batch.rows.rows.tolist(),
                items=[batch.rows.texts[i][1] for i in batch.own.shares[rank].tolist()],
            )
        )

    # ---------------------------------------------------------------- validation, evaluation

    def _validate(self) -> list[Decision]:
        plan, data = self.val_plan, self.job.val
        assert plan is not None and data is not None
        self._obey(self.callbacks.decide("on_val_begin", self._state()), when="epoch")
        losses: list[tuple[float, int]] = []
        with self._timed("validation"):
            for step in range(plan.steps_per_epoch):
                self.callbacks.call("on_val_batch_begin", self._state(step))
                batch = self.learner.batch(data, plan.rows(0, step))
                seed = (self.config.seed, 0, step)
                self.last_loss = self.learner.validation_loss(batch, seed)
                losses.append((self.last_loss, len(batch.rows.rows)))
                self.callbacks.call("on_val_batch_end", self._state(step))
        self.position.metrics["val_loss"] = _mean(losses)
        return self.callbacks.decide("on_val_end", self._state())

    def _evaluate(self, number: int, when: str) -> None:
        spec, position = self.job.evaluations[number], self.position
        with self._timed("evaluation"):
            done = evaluate(
                spec,
                number,
                self.learner.encoder,
                self.runtime,
                layout=self.learner.layout,
                on_progress=self._progress,
            )
        position.metrics.update({spec.key(name): v for name, v in done.metrics.items()})
        place: dict[str, Any] = {
            "when": when,
            "epoch": position.epoch,
            "global_step": position.global_step,
        }
        if done.scores is not None:
            self.runtime.emit(evaluation_event(spec, done, done.scores, **place))
        result = evaluation_result(spec, number, done, **place)
        self._obey(self.callbacks.decide("on_evaluation_end", self._state(), result), when=when)

    # ---------------------------------------------------------------- decisions, checkpoints

    def _obey(self, decisions: list[Decision], *, when: str) -> None:
        """Carry out what rank 0's callbacks decided; every rank does the same."""
        for decision in decisions:
            if isinstance(decision, Stop):
                self.stop = self.stop or decision
            elif isinstance(decision, Evaluate):
                every = range(len(self.job.evaluations))
                for number in every if decision.number is None else (decision.number,):
                    self._evaluate(number, when)
            elif isinstance(decision, LogMetrics):
                values = {name: float(value) for name, value in decision.metrics.items()}
                self.position.metrics.update(values)
            elif isinstance(decision, Say):
                self._say(decision.message, decision.level)
            else:
                raise RunFailedError(
                    f"{type(decision).__name__} can be decided in on_epoch_end only"
                )

    def _end_epoch(self) -> None:
        position = self.position
        self._tell(
            EpochEnded(
                epoch=position.epoch,
                global_step=position.global_step,
                metrics=dict(position.metrics),
                seconds=dict(self.seconds),
                texts_per_rank=list(self.texts_per_rank),
                rows_left_out=self.plan.left_out(position.epoch),
            )
        )
        position.epoch, position.step, position.epoch_losses = position.epoch + 1, 0, []

    def _checkpoint(self, best: MarkBest | None = None) -> None:
        """Rank 0 writes; then all ranks tell the cluster. Every rank holds the same position."""
        position = self.position
        if self.stop is not None and not isinstance(self.stop, OutsideStop):
            position.stopped = self.stop.reason
        if best is not None:
            position.mark_best(best.monitor, best.value)
        with self._timed("checkpoint"):
            if self.runtime.rank == 0:
                position.callbacks = self.callbacks.state_dict()
                self.keeper.save(position, is_best=best is not None)
            self.runtime.barrier()
            self.runtime.commit(f"checkpoints/{position.name}", dict(position.metrics))

    # ---------------------------------------------------------------- small things

    def _state(self, step: int | None = None) -> State:
        return State(
            epochs=self.config.epochs,
            epoch=self.position.epoch,
            steps_per_epoch=self.plan.steps_per_epoch,
            step=self.position.step if step is None else step,
            global_step=self.position.global_step,
            loss=self.last_loss,
            metrics=MappingProxyType(dict(self.position.metrics)),
            learning_rates=MappingProxyType(self.learner.learning_rates()),
            run_path=self.job.run_uri,
            run_id=self.job.run_id,
            model_name=self.config.model,
        )

    def _tell(self, event: Event) -> None:
        if self.runtime.rank == 0:
            self.runtime.emit(event)

    def _say(self, message: str, level: str = "INFO") -> None:
        self._tell(Log(message=message, level=level))

    def _progress(self, task: str, done: int, total: int) -> None:
        self._tell(Progress(task=task, done=done, total=total))

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start


def _mean(losses: list[tuple[float, int]]) -> float:
    """Mean loss over rows: each step counts as much as it has rows."""
    rows = sum(n for _, n in losses)
    return sum(loss * n for loss, n in losses) / rows if rows else math.nan
