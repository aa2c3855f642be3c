"""Evaluations and what follows from them: who is the best, and whether training should have ended.

The judge evaluates at points (`ftray.training.points`): at once, on all ranks, or, where an
evaluation overlaps training, from a copy of the weights, whose result arrives at a later step. It
has the callbacks judge each point (`on_metrics`) when its metrics are complete, in the order of
points. So both ways come to the same decisions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ftray.callbacks.base import (
    Decision,
    GivenWeights,
    Interpolation,
    MarkBest,
    Say,
    Stop,
)
from ftray.runtime.base import Runtime
from ftray.training.bridge import CallbackDispatcher
from ftray.training.checkpoint import Position
from ftray.training.evaluate import Evaluated, evaluate, evaluation_event, evaluation_result
from ftray.training.job import Job
from ftray.training.keeper import Keeper
from ftray.training.learner import Learner
from ftray.training.points import Point, PointQueue
from ftray.training.states import States
from ftray.training.teller import Teller
from ftray.training.weights import InitialWeights, using

__all__ = ["MAX_WAITING", "Arrived", "Court", "Judge"]

MAX_WAITING = 4
"""How many evaluations may wait, each with its weights, before training waits for them."""

Weights = Interpolation | GivenWeights


@dataclass(frozen=True)
class Arrived(Decision):
    """The result of an overlapped evaluation is in; rank 0 tells the others."""

    ticket: int
    metrics: dict[str, float]


class Court(Protocol):
    """What the judge needs of the loop."""

    def obey(self, decisions: list[Decision], point: Point) -> None:
        """Carry out what callbacks decided about a point."""
        ...

    def stop_at(self, point: Point, stop: Stop, *, saved: bool) -> None:
        """End training, as of a point."""
        ...


class Judge:
    """Evaluates, and has points judged; every rank has one.

    Args:
        job: with the evaluations.
        runtime: the other ranks, and what evaluates while training goes on.
        learner: whose weights are evaluated.
        keeper: of the weights of earlier points.
        teller: takes the events.
        callbacks: who decides.
        states: what they see.
        position: where the loop stands.
        initial: the weights before training.
        court: the loop.
    """

    def __init__(
        self,
        job: Job,
        runtime: Runtime,
        learner: Learner,
        keeper: Keeper,
        teller: Teller,
        callbacks: CallbackDispatcher,
        states: States,
        position: Position,
        initial: InitialWeights,
        court: Court,
    ) -> None:
        self._job = job
        self._runtime = runtime
        self._learner = learner
        self._keeper = keeper
        self._teller = teller
        self._callbacks = callbacks
        self._states = states
        self._position = position
        self._court = court
        self._results: dict[int, Evaluated] = {}
        self.initial = initial
        self.queue = PointQueue()
        self.of_weights: dict[str, dict[str, float]] = {}
        """Metrics of derived weights, by their name."""
        self.measured: dict[int, int] = {}
        """For each evaluation the global step of its newest result."""

    # ---------------------------------------------------------------- evaluating

    def evaluate(
        self,
        point: Point,
        numbers: Iterable[int],
        weights: Weights | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Run evaluations at a point: here and now, or elsewhere and meanwhile.

        Other weights than the present ones, and those after training, are always evaluated here;
        `wait` says so of the present ones.
        """
        wait = wait or weights is not None or point.when == "final"
        for number in numbers:
            spec = self._job.evaluations[number]
            known = {*point.fresh, *(spec.key(n) for n in spec.metrics if number in point.waiting)}
            if weights is None and known.issuperset(map(spec.key, spec.metrics)):
                continue  # several callbacks asked for the same
            if spec.overlap and not wait:
                self._begin(point, number)
            else:
                self._run(point, number, weights)

    def measure_rest(self, point: Point) -> None:
        """Evaluate the weights of a stop in mid-epoch, as far as that was not done."""
        for number in range(len(self._job.evaluations)):
            if self.measured.get(number) != point.global_step:
                self.evaluate(point, [number], wait=True)

    def _begin(self, point: Point, number: int) -> None:
        """Have an evaluation done elsewhere, from a copy of the weights."""
        with self._teller.timed("evaluation"):
            ticket = self.queue.expect(point, number)
            if self._runtime.rank == 0:
                weights = self._earlier(point) or self._learner.weights()
                self._runtime.evaluator.submit(ticket, number, weights)

    def _run(self, point: Point, number: int, weights: Weights | None) -> None:
        """Do an evaluation here and now, on all ranks."""
        encoder, earlier = self._learner.encoder, self._earlier(point)
        own = weights is None  # others may differ in what is frozen
        with (
            self._teller.timed("evaluation"),
            self._learner.weights_to_use(),
            using(encoder, weights, self.initial, earlier),
        ):
            done = evaluate(
                self._job.evaluations[number],
                number,
                self._learner.knowing if own else encoder,
                self._runtime,
                layout=self._learner.layout,
                on_progress=self._teller.progress,
                data_workers=self._job.data_workers,
            )
        self._take(point, number, done.metrics, done, weights)

    def _earlier(self, point: Point) -> dict[str, Tensor] | None:
        """The weights of a point that training has left behind; None if they are present."""
        if point.when == "final" or point.global_step == self._position.global_step:
            return None
        return self._weights_of(point)

    def _weights_of(self, point: Point) -> dict[str, Tensor]:
        return self._keeper.weights(point.checkpoint) if point.checkpoint else self.initial()

    def _take(
        self,
        point: Point,
        number: int,
        metrics: dict[str, float],
        done: Evaluated | None,
        weights: Weights | None = None,
        *,
        overlapped: bool = False,
    ) -> None:
        """A result is there; `done` is known on rank 0, and where it was made."""
        spec = self._job.evaluations[number]
        keyed = {spec.key(name): value for name, value in metrics.items()}
        if weights is not None:
            self.of_weights.setdefault(weights.name, {}).update(keyed)
        else:
            point.add(keyed)
            self.measured[number] = point.global_step
            (self._states.latest if overlapped else self._position.metrics).update(keyed)
        place: dict[str, Any] = {
            "when": point.when,
            "epoch": point.state_epoch,
            "global_step": point.global_step,
            "weights": weights.name if weights else "",
            "alpha": weights.alpha if isinstance(weights, Interpolation) else None,
        }
        scores = done.scores if done else None
        if done is not None and scores is not None:
            event = evaluation_event(spec, done, scores, **place, overlapped=overlapped)
            self._teller.tell(event)
        result = evaluation_result(spec, number, metrics, scores, **place)
        decisions = self._callbacks.decide("on_evaluation_end", self._states.at(point), result)
        if point.when in ("step", "epoch") and not point.judged:
            stops = [decision for decision in decisions if isinstance(decision, Stop)]
            if stops and point.stop is None:
                point.stop = stops[0].reason  # it counts when the point is judged, in its turn
            decisions = [decision for decision in decisions if not isinstance(decision, Stop)]
        self._court.obey(decisions, point)

    # ---------------------------------------------------------------- results that come later

    def receive(self, wait_s: float = 0.0) -> None:
        """Rank 0: hear which overlapped evaluations are done; shared with the next decisions."""
        if not self.queue.under_way:
            return
        for ticket, done in self._runtime.evaluator.finished(wait_s):
            self._results[ticket] = done
            self._callbacks.add(Arrived(ticket, done.metrics))

    def arrived(self, news: Arrived) -> None:
        """Every rank: take a result, and judge what is complete now."""
        done = self._results.pop(news.ticket, None)
        found = self.queue.arrived(news.ticket)
        if found is None:  # of a step that was discarded
            return
        self._take(*found, news.metrics, done, overlapped=True)
        self._judge_complete()

    def go_on(self) -> None:
        """After a restart: begin those evaluations anew that were under way."""
        self.queue.load(self._position.points)
        for point in self.queue:
            if point.checkpoint:
                self._keeper.owe(point.checkpoint)
            for number in point.waiting:
                ticket = self.queue.expect(point, number)
                if self._runtime.rank == 0:
                    self._runtime.evaluator.submit(ticket, number, self._weights_of(point))

    @property
    def is_full(self) -> bool:
        """Whether so many evaluations wait, each with its weights, that training should too."""
        return self.queue.under_way >= MAX_WAITING

    # ---------------------------------------------------------------- judging

    def close(self, point: Point) -> None:
        """Nothing more is measured at a point: judge it, or queue it until its results are in."""
        self.queue.append(point)
        self._judge_complete()

    def _judge_complete(self) -> None:
        while (point := self.queue.pop_complete()) is not None:
            if point.global_step == self._position.global_step:
                self._position.metrics.update(point.metrics)
            if point.when != "before":
                self._judge(point)

    def _judge(self, point: Point) -> None:
        late = self._keeper.owes(point.checkpoint)
        point.judged = True
        decisions = self._callbacks.decide("on_metrics", self._states.at(point))
        best: MarkBest | None = None
        stops = [] if point.stop is None else [Stop(point.stop)]
        others: list[Decision] = []
        for decision in decisions:
            if isinstance(decision, MarkBest):
                best = decision
            elif isinstance(decision, Stop):
                stops.append(decision)
            elif isinstance(decision, Say) and late:
                others.append(Say(f"{decision.message} ({_words(point)})", decision.level))
            else:
                others.append(decision)
        if best is not None:
            self._position.best = point.as_best(best.monitor, best.value)
        else:
            self._note_tie(point)
        self._court.obey(others, point)
        if late:
            self.commit(point)
        if stops:
            self._court.stop_at(point, stops[0], saved=late)

    def _note_tie(self, point: Point) -> None:
        """Of equal scores Ray's list of the best has the newest last: that one is kept as well."""
        best = self._position.best
        if best is not None and point.measured.get(best["monitor"]) == best["value"]:
            best["tied"] = point.checkpoint

    def commit(self, point: Point) -> None:
        """All ranks: tell the cluster of the checkpoint of a point that was judged."""
        self._keeper.settled(point.checkpoint)
        self._runtime.commit(f"checkpoints/{point.checkpoint}", point.measured)


def _words(point: Point) -> str:
    where = f"epoch {point.state_epoch + 1}"
    return where if point.when == "epoch" else f"{where}, step {point.state_step + 1}"
