"""What callbacks see: the state of now, and the state at a point whose results came later."""

from __future__ import annotations

import math
from types import MappingProxyType

from ftray.callbacks.base import State
from ftray.training.checkpoint import Position
from ftray.training.job import Job
from ftray.training.learner import Learner
from ftray.training.points import Point, When

__all__ = ["States"]


class States:
    """Makes states and points from where the loop stands.

    Args:
        job: what is done.
        learner: whose learning rates and weights callbacks see.
        position: where the loop stands.

    Attributes:
        loss: of the last batch, training or validation.
        latest: the newest metrics that came later than their step, of whichever step.
        overlapped: names of the metrics that come later than their step.
    """

    def __init__(self, job: Job, learner: Learner, position: Position) -> None:
        self._job = job
        self._learner = learner
        self._position = position
        self._steps_per_epoch = job.plan().steps_per_epoch
        self.loss = math.nan
        self.latest: dict[str, float] = {}
        self.overlapped = {
            spec.key(name) for spec in job.evaluations if spec.overlap for name in spec.metrics
        }

    def log(self, metrics: dict[str, float], point: Point | None = None) -> None:
        """Take metrics of now; of a point, they are measured there."""
        position = self._position
        late = point is not None and point.global_step < position.global_step
        (self.latest if late else position.metrics).update(metrics)
        if point is not None:
            point.add(metrics)
        if not late and (point is None or point.when == "epoch"):
            position.logged = sorted({*position.logged, *metrics})

    def point(self, when: When, global_step: int | None = None) -> Point:
        """This step, as a point whose metrics are judged."""
        position = self._position
        over = when == "epoch"
        known = position.metrics.items()
        return Point(
            when=when,
            state_epoch=position.epoch,
            state_step=max(position.step - 1, 0),
            next_epoch=position.epoch + over,
            next_step=0 if over else position.step,
            global_step=position.global_step if global_step is None else global_step,
            loss=self.loss,
            learning_rates=self._learner.learning_rates(),
            metrics={name: value for name, value in known if name not in self.overlapped},
            fresh=list(position.logged) if over else [],
        )

    def at(self, point: Point) -> State:
        """The state at a point, with the metrics that are known of it."""
        return State(
            epochs=self._job.config.epochs,
            epoch=point.state_epoch,
            steps_per_epoch=self._steps_per_epoch,
            step=point.state_step,
            global_step=point.global_step,
            loss=point.loss,
            metrics=MappingProxyType(dict(point.metrics)),
            fresh=frozenset(point.fresh),
            learning_rates=MappingProxyType(point.learning_rates),
            run_path=self._job.run_uri,
            run_id=self._job.run_id,
            model_name=self._job.config.model,
            weights=self._learner.weights,
        )

    def now(self, step: int | None = None) -> State:
        """The present state; of a step that is not this one, if one is named."""
        point = self.point("step")
        point.state_step = self._position.step if step is None else step
        point.metrics = {**self._position.metrics, **self.latest}
        point.fresh = list(self._position.logged)
        return self.at(point)
