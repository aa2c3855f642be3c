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
    [on_fit_end] write the artifact: the best weights, or the last ones
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch

from ftray.callbacks.base import (
    Decision,
    Evaluate,
    EvaluationResult,
    LogMetrics,
    MarkBest,
    Say,
    State,
    Stop,
)
from ftray.data.dataset import StepRows
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
from ftray.losses.registry import build_loss
from ftray.models.layout import Layout
from ftray.models.registry import load_encoder
from ftray.record.storage import Storage
from ftray.runtime.base import Runtime
from ftray.runtime.process_group import LostWorkersError
from ftray.training.bridge import CallbackDispatcher
from ftray.training.checkpoint import Position
from ftray.training.evaluate import evaluate, evaluation_event
from ftray.training.job import Job
from ftray.training.keeper import Keeper
from ftray.training.optim import build_optimizer, build_scheduler
from ftray.training.precision import Precision
from ftray.training.step import OwnTexts, forward_backward, own_texts, validation_loss

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
        self.layout: Layout = "padded" if self.config.packing == "padded" else "bucketed"
        self.plan = job.plan()
        self.val_plan = job.val_plan()
        self.encoder = load_encoder(
            job.model, device=runtime.device, max_length=self.config.max_length
        )
        self.loss = build_loss(
            self.config.loss,
            self.config.loss_options,
            embedding_dim=self.encoder.embedding_dim,
            n_groups=job.train.n_groups,
            seed=self.config.seed,
            miner=self.config.miner,
            miner_options=self.config.miner_options,
        ).to(runtime.device)
        self.precision = Precision(self.config.precision, runtime.device)
        self.optimizer = build_optimizer(self.config, self.encoder, self.loss)
        total = self.config.epochs * self.plan.steps_per_epoch
        self.scheduler = build_scheduler(self.config, self.optimizer, total)
        self.callbacks = CallbackDispatcher(job.callbacks, runtime)
        self.keeper = Keeper(
            Storage(job.run_uri), self.encoder, self.loss, self.optimizer, self._tell
        )
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
            self.scheduler.load_state_dict(self.position.scheduler)
            self.precision.load_state_dict(self.position.scaler)
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
                hardware=self._hardware(),
            )
        )
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
        config, position = self.config, self.position
        start = time.perf_counter()
        rows = self._rows(self.plan.rows(position.epoch, step))
        own = self._own(rows)
        data_s = time.perf_counter() - start
        self.callbacks.call("on_train_batch_begin", self._state(step))
        self.encoder.train()
        self.loss.train()
        result = forward_backward(
            self.encoder,
            self.loss,
            rows,
            own,
            self.runtime,
            seed=(config.seed, position.epoch, step),
            autocast=self.precision.autocast,
            scale=self.precision.scale(),
        )
        if not math.isfinite(result.loss):
            raise self._diverged(f"the training loss is {result.loss}", step)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        norm = self._optimize(step)
        self.loss.after_step()
        self.scheduler.step()
        position.global_step += 1
        position.epoch_losses.append((result.loss, len(rows.rows)))
        self.last_loss = result.loss
        for rank, share in enumerate(own.shares):
            self.texts_per_rank[rank] += len(share)
        self._report_step(step, rows, own.shares[self.runtime.rank].tolist())
        step_s = time.perf_counter() - start - data_s
        self.seconds["data"] += data_s
        self.seconds["step"] += step_s
        self._tell(
            StepEnded(
                epoch=position.epoch,
                step=step,
                global_step=position.global_step,
                loss=result.loss,
                learning_rate=learning_rate,
                grad_norm=norm,
                rows=len(rows.rows),
                items=len(rows.texts),
                tokens=result.tokens,
                processed_tokens=result.processed_tokens,
                data_s=data_s,
                step_s=step_s,
                scalars=self.loss.scalars(),
            )
        )
        self.callbacks.call("on_train_batch_end", self._state(step))
        self._listen()

    def _listen(self) -> None:
        """Hear whether somebody outside wants the run to stop; obey what waits on every rank."""
        if self.runtime.rank == 0 and (reason := self.runtime.stop_requested()):
            self.callbacks.add(OutsideStop(reason))
        self._obey(self.callbacks.share(), when="step")

    def _optimize(self, step: int) -> float:
        """Clip and step; returns the norm of the gradient."""
        try:
            return self.precision.step(self.optimizer, self.config.max_grad_norm)
        except FloatingPointError as error:
            raise self._diverged(str(error), step) from None

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

    def _rows(self, numbers: Any) -> StepRows:
        return self.job.train.step_rows(numbers, roles_differ=self.encoder.roles_differ)

    def _own(self, rows: StepRows) -> OwnTexts:
        size = self.config.micro_batch_size
        return own_texts(self.encoder, rows, self.layout, self.runtime, size)

    def _report_step(self, step: int, rows: StepRows, own: list[int]) -> None:
        if self.config.log_rows:
            self.runtime.emit(
                RankStep(
                    epoch=self.position.epoch,
                    step=step,
                    rank=self.runtime.rank,
                    rows=rows.rows.tolist(),
                    items=[rows.texts[i][1] for i in own],
                )
            )

    # ---------------------------------------------------------------- validation, evaluation

    def _validate(self) -> list[Decision]:
        plan, data = self.val_plan, self.job.val
        assert plan is not None and data is not None
        self._obey(self.callbacks.decide("on_val_begin", self._state()), when="epoch")
        losses: list[tuple[float, int]] = []
        self.encoder.eval()
        self.loss.eval()
        with self._timed("validation"):
            for step in range(plan.steps_per_epoch):
                self.callbacks.call("on_val_batch_begin", self._state(step))
                rows = data.step_rows(plan.rows(0, step), roles_differ=self.encoder.roles_differ)
                self.last_loss = validation_loss(
                    self.encoder,
                    self.loss,
                    rows,
                    self._own(rows),
                    self.runtime,
                    seed=(self.config.seed, 0, step),
                    autocast=self.precision.autocast,
                )
                losses.append((self.last_loss, len(rows.rows)))
                self.callbacks.call("on_val_batch_end", self._state(step))
        self.position.metrics["val_loss"] = _mean(losses)
        return self.callbacks.decide("on_val_end", self._state())

    def _evaluate(self, number: int, when: str) -> None:
        spec, position = self.job.evaluations[number], self.position
        with self._timed("evaluation"):
            done = evaluate(
                spec,
                number,
                self.encoder,
                self.runtime,
                layout=self.layout,
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
        result = EvaluationResult(
            number=number,
            caption=spec.caption,
            metrics=MappingProxyType(done.metrics),
            keys=MappingProxyType({name: spec.key(name) for name in done.metrics}),
            **place,
        )
        self._obey(self.callbacks.decide("on_evaluation_end", self._state(), result), when=when)

    # ---------------------------------------------------------------- decisions, checkpoints

    def _obey(self, decisions: list[Decision], *, when: str) -> None:
        """Carry out what rank 0's callbacks decided; every rank does the same."""
        for decision in decisions:
            if isinstance(decision, Stop):
                self.stop = self.stop or decision
            elif isinstance(decision, Evaluate):
                self._evaluate(decision.number, when)
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
                position.scheduler = self.scheduler.state_dict()
                position.scaler = self.precision.state_dict()
                position.callbacks = self.callbacks.state_dict()
                self.keeper.save(position, is_best=best is not None)
            self.runtime.barrier()
            self.runtime.commit(f"checkpoints/{position.name}", dict(position.metrics))

    # ---------------------------------------------------------------- small things

    def _state(self, step: int | None = None) -> State:
        groups = self.optimizer.param_groups
        return State(
            epochs=self.config.epochs,
            epoch=self.position.epoch,
            steps_per_epoch=self.plan.steps_per_epoch,
            step=self.position.step if step is None else step,
            global_step=self.position.global_step,
            loss=self.last_loss,
            metrics=MappingProxyType(dict(self.position.metrics)),
            learning_rates=MappingProxyType({g["name"]: float(g["lr"]) for g in groups}),
            run_path=self.job.run_uri,
            model_name=self.config.model,
        )

    def _hardware(self) -> dict[str, Any]:
        cuda = self.runtime.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.runtime.device) if cuda else "cpu",
            "threads": torch.get_num_threads(),
            "precision": self.precision.name,
        }

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
