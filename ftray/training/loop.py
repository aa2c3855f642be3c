"""The training loop. All ranks run it; what it knows of the world is its runtime.

`on_metrics` of a step whose evaluations overlap training comes when their results are in. If a stop
is decided then, the loop goes back to that step: see `Loop.stop_at`.

In words, with the hooks of callbacks in brackets:

    load the model, continue from the newest checkpoint if there is one    [on_fit_begin]
    compute once what frozen weights make of the data
    evaluate the given weights
    for each epoch:                              [on_epoch_begin, on_train_epoch_begin]
        for each step of the plan:               [on_train_batch_begin]
            encode this rank's texts, gather, loss, gradient, one reduction, clip, step
            decisions of rank 0 are broadcast: stop? evaluate?    [on_train_batch_end]
            results of overlapped evaluations that are in, each   [on_evaluation_end]
        [on_train_epoch_end]
        validation loss        [on_val_begin, (on_val_batch_begin, on_val_batch_end)*, on_val_end]
        evaluations that were decided, each followed by           [on_evaluation_end]
        is this the best epoch? stop early?                       [on_metrics]
        [on_epoch_end]
        checkpoint, reported to the cluster
    wait for the evaluations that are still under way             [on_evaluation_end, on_metrics]
    the best weights, or the last ones, or what callbacks make of them
    [on_fit_end; on_keyboard_interrupt after a stop from outside]
    write the artifact
    whatever goes wrong on the way:                               [on_exception]
    however it ended:                                             [on_run_end]
"""

from __future__ import annotations

import math
import time
from contextlib import closing

from ftray.callbacks.base import (
    Decision,
    Evaluate,
    LogMetrics,
    ReplaceWeights,
    Save,
    Say,
    Stop,
)
from ftray.errors import RunFailedError
from ftray.evaluation.encode import check_towers
from ftray.events import FitEnded
from ftray.models.onednn import with_onednn
from ftray.record.storage import Storage
from ftray.runtime.base import Runtime
from ftray.runtime.process_group import LostWorkersError
from ftray.training.bridge import CallbackDispatcher
from ftray.training.checkpoint import Position
from ftray.training.facts import artifact_facts
from ftray.training.job import Job
from ftray.training.judge import Arrived, Judge
from ftray.training.keeper import Keeper
from ftray.training.learner import Learner
from ftray.training.matching import check_modalities
from ftray.training.opening import tell_opening
from ftray.training.points import Point, When
from ftray.training.states import States
from ftray.training.supply import Supply
from ftray.training.teller import Teller
from ftray.training.weights import InitialWeights, copied, made

__all__ = ["Loop", "OutsideStop"]

DRAIN_WAIT_S = 0.5


class OutsideStop(Stop):
    """A stop that was asked for from outside the run."""


class Loop:
    """One fit on one rank.

    Args:
        job: what to do.
        runtime: where.
        model: where the model is loaded from; None means where the job says.
    """

    def __init__(self, job: Job, runtime: Runtime, model: str | None = None) -> None:
        self.job = job
        self.config = job.config
        self.runtime = runtime
        self.plan = job.plan()
        self.val_plan = job.val_plan()
        self.position = Position()
        self.learner = Learner(job, runtime, self.plan.steps_per_epoch, model or job.model)
        encoder = self.learner.encoder
        check_modalities(job.config.model, encoder.modalities, job.train, job.val, job.evaluations)
        for spec in job.evaluations:
            check_towers(spec, encoder)
        self.supply = Supply(job, self.learner, self.plan)
        self.states = States(job, self.learner, self.position)
        self.teller = Teller(job, runtime, self.learner, self.position)
        self.callbacks = CallbackDispatcher(job.callbacks, runtime, self.teller.say)
        self.keeper = Keeper(
            Storage(job.run_uri), self.learner, self.teller.tell, job.last_epochs_kept
        )
        self.judge = Judge(
            job,
            runtime,
            self.learner,
            self.keeper,
            self.teller,
            self.callbacks,
            self.states,
            self.position,
            InitialWeights(job, job.model),
            self,
        )
        self.stop: Stop | None = None
        self.save_wanted = False
        self.stop_is_saved = False
        """Whether the checkpoint of the step where training ended is there."""
        self.artifact_weights = ""

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
            ended = self._finish()
        except LostWorkersError:
            self.callbacks.end(self.states.now(), "LOST")  # the next attempt goes on
            raise
        except Exception as error:
            self.callbacks.announce(self.states.now(), error)
            self.callbacks.end(self.states.now(), "FAILED")
            raise
        finally:
            self.supply.close()
            if self.runtime.rank == 0 and self.states.overlapped:
                self.runtime.evaluator.close()
        self.callbacks.end(self.states.now(), ended.status)
        return ended

    def _begin(self) -> None:
        newest = self.runtime.broadcast(self.keeper.newest() if self.runtime.rank == 0 else None)
        if newest is not None:
            self.position.move_to(self.keeper.restore(newest))
            if self.runtime.rank == 0:
                self.callbacks.load_state_dict(self.position.callbacks)
            if self.position.stopped is not None:
                self.stop, self.stop_is_saved = Stop(self.position.stopped), True
            self.teller.say(
                f"Continuing from checkpoint {newest} (step {self.position.global_step})"
            )
        self.teller.started()
        if self.runtime.rank == 0 and self.position.global_step == 0:
            tell_opening(self.job, self.learner.encoder, self.teller.say)
        if self.config.epochs and self.stop is None and self.learner.encoder.frozen_branches:
            with self.teller.timed("frozen weights"):
                told = self.teller.progress
                for line in self.learner.keep_features(self.job, told, self._is_to_stop):
                    self.teller.say(line)
        self.judge.go_on()
        decisions = self.callbacks.decide("on_fit_begin", self.states.now())
        self._carry_out(decisions, "step" if self.position.global_step else "before")

    def _finish(self) -> FitEnded:
        self._drain()
        position = self.position
        outside = isinstance(self.stop, OutsideStop)
        if position.step and not outside and position.best is None:
            self.judge.measure_rest(self.states.point("step"))  # the artifact's own metrics
        self.learner.end_training()
        best = position.best
        if best is not None:
            self.keeper.load_weights(best["name"])
        point = self.states.point("final", best["global_step"] if best else position.global_step)
        hook = "on_keyboard_interrupt" if outside else "on_fit_end"
        self.obey(self.callbacks.decide(hook, self.states.now()), point)
        if self.runtime.rank == 0:
            facts = artifact_facts(
                self.job,
                position,
                global_step=point.global_step,
                weights=self.artifact_weights,
                derived=self.judge.of_weights,
                cut_off=outside,
            )
            self.teller.say("Building the artifact ...")
            with self.teller.timed("checkpoint"):
                self.keeper.write_artifact(facts, to_onnx=self.config.to_onnx)
        return FitEnded(
            status="STOPPED" if outside else "FINISHED",
            reason=self.stop.reason if self.stop else "",
            epochs_done=position.epoch,
            global_step=position.global_step,
            artifact_step=point.global_step,
            artifact_weights=self.artifact_weights,
            best=best,
            seconds=dict(self.teller.seconds),
        )

    # ---------------------------------------------------------------- one epoch

    def _epoch(self) -> None:
        position = self.position
        if position.step == 0:
            position.logged = []
        self.callbacks.call("on_epoch_begin", self.states.now())
        self._carry_out(self.callbacks.decide("on_train_epoch_begin", self.states.now()))
        for step in range(position.step, self.plan.steps_per_epoch):
            if self.stop is not None:
                break
            self._step(step)
        if self.stop is not None:
            self._checkpoint()
            return
        self.states.log({"train_loss": _mean(position.epoch_losses)})
        decisions = self.callbacks.decide("on_train_epoch_end", self.states.now())
        if self.job.val is not None:
            decisions += self._validate()
        if not self._make_room():
            return
        point = self.states.point("epoch")
        self.obey(decisions, point)
        self.judge.close(point)
        self.obey(self.callbacks.decide("on_epoch_end", self.states.now()), point)
        self.teller.epoch(point.metrics)
        position.epoch, position.step, position.epoch_losses = position.epoch + 1, 0, []
        self._checkpoint(point)
        if position.epoch < self.config.epochs:
            self._listen()  # a stop now is one at this very checkpoint

    def _step(self, step: int) -> None:
        position = self.position
        start = time.perf_counter()
        batch = self.supply.take(position.epoch, step)
        data_s = time.perf_counter() - start
        self.callbacks.call("on_train_batch_begin", self.states.now())
        learned = self.learner.step(batch, (self.config.seed, position.epoch, step))
        position.global_step += 1
        position.step = step + 1
        position.epoch_losses.append((learned.loss, len(batch.rows.rows)))
        self.states.loss = learned.loss
        self.teller.step(step, batch, learned, data_s, time.perf_counter() - start - data_s)
        self.callbacks.call("on_train_batch_end", self.states.now(step))
        self._listen()

    def _listen(self, wait_s: float = 0.0) -> None:
        """Hear whether somebody outside wants the run to stop, and which results are in.

        Every rank obeys what waits.
        """
        if self.runtime.rank == 0:
            self.judge.receive(wait_s)
            if reason := self.runtime.stop_requested():
                self.callbacks.add(OutsideStop(reason))
        self._carry_out(self.callbacks.share())

    def _is_to_stop(self) -> bool:
        """Hear, before the first step, whether somebody outside wants the run to stop."""
        asked = self.runtime.stop_requested() if self.runtime.rank == 0 else None
        if reason := self.runtime.broadcast(asked):
            self.stop = OutsideStop(reason)
        return self.stop is not None

    def _drain(self) -> None:
        """Wait for the evaluations that are under way, unless the run is to stop at once."""
        if not self.judge.queue.under_way:
            return
        with self.teller.timed("waiting"):
            while self.judge.queue.under_way and not isinstance(self.stop, OutsideStop):
                self._listen(DRAIN_WAIT_S)
        if self.stop_is_saved or isinstance(self.stop, OutsideStop):
            return
        self.position.points = []
        if self.runtime.rank == 0:
            self.position.callbacks = self.callbacks.state_dict()
            self.keeper.make_newest(self.position)

    def _make_room(self) -> bool:
        """Wait while too many evaluations are under way; whether the run still stands here."""
        here = self.position.global_step
        while self.judge.is_full and self.stop is None:
            with self.teller.timed("evaluation"):
                self._listen(DRAIN_WAIT_S)
        return self.position.global_step == here

    def _validate(self) -> list[Decision]:
        plan, data = self.val_plan, self.job.val
        assert plan is not None and data is not None
        self._carry_out(self.callbacks.decide("on_val_begin", self.states.now()))
        losses: list[tuple[float, int]] = []
        batches = self.supply.validation(data, plan)
        with (
            self.teller.timed("validation"),
            self.learner.weights_to_use(),
            with_onednn(self.learner.encoder),
            closing(batches),
        ):
            for step in range(plan.steps_per_epoch):
                self.callbacks.call("on_val_batch_begin", self.states.now(step))
                batch = next(batches)
                seed = (self.config.seed, 0, step)
                self.states.loss = self.learner.validation_loss(batch, seed)
                losses.append((self.states.loss, len(batch.rows.rows)))
                self.callbacks.call("on_val_batch_end", self.states.now(step))
        self.states.log({"val_loss": _mean(losses)})
        return self.callbacks.decide("on_val_end", self.states.now())

    # ---------------------------------------------------------------- decisions

    def _carry_out(self, decisions: list[Decision], when: When = "step") -> None:
        """Carry out what was decided at no point; an evaluation makes this step one.

        Results come first: if one of them takes the run back, the rest was decided for a step that
        is discarded.
        """
        here = self.position.global_step
        for news in decisions:
            if isinstance(news, Arrived):
                self.judge.arrived(news)
        if self.position.global_step < here:
            return
        decisions = [decision for decision in decisions if not isinstance(decision, Arrived)]
        point = None
        if any(isinstance(decision, Evaluate) for decision in decisions):
            if not self._make_room():
                return
            point = self.states.point(when)
        self.obey(decisions, point)
        if point is not None:
            self.judge.close(point)
            self.save_wanted |= when == "step" and self._is_to_be_kept(point)
        if self.save_wanted:
            self._checkpoint(point)
            self.stop_is_saved = self.stop is not None

    def _is_to_be_kept(self, point: Point) -> bool:
        """Whether a point in mid-epoch needs a checkpoint."""
        best = self.position.best
        is_best = best is not None and best["name"] == point.checkpoint
        return point in self.judge.queue or is_best or self.stop is not None

    def obey(self, decisions: list[Decision], point: Point | None) -> None:
        """Carry out what rank 0's callbacks decided; every rank does the same."""
        for decision in decisions:
            if isinstance(decision, Stop):
                self.stop = self.stop or decision
            elif isinstance(decision, Evaluate):
                assert point is not None
                every = range(len(self.job.evaluations))
                numbers = every if decision.number is None else (decision.number,)
                self.judge.evaluate(point, numbers, decision.weights)
            elif isinstance(decision, LogMetrics):
                values = {name: float(value) for name, value in decision.metrics.items()}
                self.states.log(values, point)
            elif isinstance(decision, Say):
                self.teller.say(decision.message, decision.level)
            elif isinstance(decision, Save):
                self.save_wanted = True  # once all that was decided at this step is carried out
            elif isinstance(decision, ReplaceWeights) and point and point.when == "final":
                present = copied(self.learner.encoder)
                tensors = made(decision.weights, self.judge.initial, present)
                self.learner.encoder.load_state_dict(tensors)
                self.artifact_weights = decision.weights.name
            else:
                where = "on_fit_end" if isinstance(decision, ReplaceWeights) else "on_metrics"
                raise RunFailedError(f"{type(decision).__name__} can be decided in {where} only")

    def stop_at(self, point: Point, stop: Stop, *, saved: bool) -> None:
        """End training as of a point, which lies behind if its evaluation overlapped training.

        Then the weights of that step stand, and what was trained since is discarded.

        Args:
            point: where training ends.
            stop: why.
            saved: whether the point's checkpoint is there; if not, the loop stands there yet.
        """
        if isinstance(self.stop, OutsideStop):
            return
        self.stop = stop
        if not saved:
            return
        position, best = self.position, self.position.best
        behind = point.global_step < position.global_step
        if behind:
            kept = self.keeper.restore(point.checkpoint)
            if self.runtime.rank == 0:
                self.callbacks.rewind(kept.callbacks)
            position.move_to(kept)
            self.teller.discarded(stop.reason)
        self.judge.queue.clear()
        self.states.latest.clear()
        position.best, position.stopped, position.points = best, stop.reason, []
        position.metrics.update(point.metrics)
        self.stop_is_saved = True
        if self.runtime.rank == 0:
            position.callbacks = self.callbacks.state_dict()
            self.keeper.make_newest(position)
        self.runtime.barrier()

    # ---------------------------------------------------------------- checkpoints

    def _checkpoint(self, point: Point | None = None) -> None:
        """Rank 0 writes; then all ranks tell the cluster. Every rank holds the same position."""
        position = self.position
        self.save_wanted = False
        if self.stop_is_saved:
            return
        if self.stop is not None and not isinstance(self.stop, OutsideStop):
            position.stopped = self.stop.reason
        position.points = self.judge.queue.to_json()
        with self.teller.timed("checkpoint"):
            if self.runtime.rank == 0:
                position.callbacks = self.callbacks.state_dict()
                self.keeper.save(position)
            self.runtime.barrier()
            if point is None or point.when == "before":
                self.runtime.commit(f"checkpoints/{position.name}", {})
            elif point in self.judge.queue:
                self.keeper.owe(point.checkpoint)
            else:
                self.judge.commit(point)


def _mean(losses: list[tuple[float, int]]) -> float:
    """Mean loss over rows: each step counts as much as it has rows."""
    rows = sum(n for _, n in losses)
    return sum(loss * n for loss, n in losses) / rows if rows else math.nan
