"""Points: the steps whose metrics are judged, and the queue in which they wait for their results.

A point is the end of an epoch, or a step in mid-epoch where something was evaluated. It is judged
when all its metrics are there, and never before an earlier point: so what is decided (the best
weights, an early stop) does not hang on how long an evaluation takes. Without overlapping
evaluations the queue is empty between two points.

Every rank holds the same points.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ftray.training.checkpoint import Position

__all__ = ["Point", "PointQueue", "When"]

When = Literal["before", "step", "epoch", "final"]


@dataclass(kw_only=True)
class Point:
    """A step whose metrics are judged.

    Attributes:
        when: "before" (training), "step" (in mid-epoch), "epoch", or "final" (after training).
        state_epoch, state_step: as callbacks saw them, from 0.
        next_epoch, next_step, global_step: where training goes on from here.
        loss, learning_rates: of the step.
        metrics: those known here; results are added as they come.
        fresh: which of them were measured at this step.
        waiting: numbers of the evaluations whose results are still to come.
        stop: why training should have ended here, as a callback said on a result; or None.
        judged: whether `on_metrics` was called.
    """

    when: When
    state_epoch: int
    state_step: int
    next_epoch: int
    next_step: int
    global_step: int
    loss: float
    learning_rates: dict[str, float]
    metrics: dict[str, float]
    fresh: list[str] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    stop: str | None = None
    judged: bool = False

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint that holds the weights of this point; none before training."""
        if self.when == "before":
            return ""
        return Position(epoch=self.next_epoch, step=self.next_step).name

    def add(self, metrics: dict[str, float]) -> None:
        """Take metrics that belong to this point."""
        self.metrics.update(metrics)
        self.fresh += [name for name in metrics if name not in self.fresh]

    @property
    def measured(self) -> dict[str, float]:
        """The metrics of this very step."""
        return {name: self.metrics[name] for name in self.fresh}

    def as_best(self, monitor: str, value: float) -> dict[str, Any]:
        """What a position keeps of the best point so far."""
        return {
            "name": self.checkpoint,
            "monitor": monitor,
            "value": value,
            "epoch": self.next_epoch,
            "step": self.next_step,
            "global_step": self.global_step,
            "metrics": self.measured,
        }


class PointQueue:
    """The points that are not judged yet, oldest first."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque()
        self._tickets: dict[int, tuple[Point, int]] = {}
        self._next_ticket = 0

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Any:
        return iter(self._points)

    def append(self, point: Point) -> None:
        """Queue a point."""
        self._points.append(point)

    def expect(self, point: Point, number: int) -> int:
        """A ticket for a result that is to come; the same on every rank."""
        self._next_ticket += 1
        self._tickets[self._next_ticket] = (point, number)
        if number not in point.waiting:
            point.waiting.append(number)
        return self._next_ticket

    def arrived(self, ticket: int) -> tuple[Point, int] | None:
        """The point and the evaluation that a result belongs to; None if it was discarded."""
        found = self._tickets.pop(ticket, None)
        if found is not None:
            found[0].waiting.remove(found[1])
        return found

    def pop_complete(self) -> Point | None:
        """Take the oldest point, if all its results are there."""
        if self._points and not self._points[0].waiting:
            return self._points.popleft()
        return None

    @property
    def under_way(self) -> int:
        """How many results are still to come."""
        return len(self._tickets)

    def clear(self) -> None:
        """Discard all points, and the results that are still to come."""
        self._points.clear()
        self._tickets.clear()

    def to_json(self) -> list[dict[str, Any]]:
        """JSON values that `load` takes."""
        return [asdict(point) for point in self._points]

    def load(self, points: list[dict[str, Any]]) -> None:
        """Take up what `to_json` gave; results are to be asked for anew."""
        self.clear()
        self._points.extend(Point(**values) for values in points)
