"""How long a run will take, from its first steps."""

from __future__ import annotations

from statistics import fmean

from ftray.events import EvaluationEnded, Event, FitStarted, StepEnded
from ftray.words import about, brief_seconds, counted

__all__ = ["Forecast"]

SAID_AFTER = 5
WORTH_SAYING = 5


class Forecast:
    """Hears every event, and says once in each attempt how long the rest of it will take.

    It says so after the fifth step, from the mean time of a step without the first, which is slow
    (memory is found, kernels are chosen). Evaluations count with the time of the newest one of
    their name, one at the end of each epoch; those that overlap training take no time of their
    own, those of other weights belong to no epoch. With fewer than five steps to go it says
    nothing.
    """

    def __init__(self) -> None:
        self._started: FitStarted | None = None
        self._steps_s: list[float] = []
        self._evaluation_s: dict[str, float] = {}

    def __call__(self, event: Event) -> str | None:
        """The forecast, if this event is the one that gives it."""
        if isinstance(event, FitStarted):
            self._started, self._steps_s = event, []
        elif isinstance(event, EvaluationEnded):
            self._evaluated(event)
        elif isinstance(event, StepEnded) and self._started is not None:
            self._steps_s.append(event.data_s + event.step_s)
            if len(self._steps_s) == SAID_AFTER:
                started, self._started = self._started, None
                return self._words(started, event)
        return None

    def _evaluated(self, event: EvaluationEnded) -> None:
        if event.overlapped:
            self._evaluation_s.pop(event.name, None)
        elif not event.weights:
            self._evaluation_s[event.name] = event.wall_s

    def _words(self, started: FitStarted, now: StepEnded) -> str | None:
        steps = started.epochs * started.steps_per_epoch - now.global_step
        if steps < WORTH_SAYING:
            return None
        step_s = fmean(self._steps_s[1:])
        parts = [f"{counted(steps, 'more step')} at {brief_seconds(step_s)}"]
        seconds = steps * step_s
        if self._evaluation_s:
            each_s = list(self._evaluation_s.values())
            count = (started.epochs - now.epoch) * len(each_s)
            seconds += count * fmean(each_s)
            parts.append(f"{counted(count, 'evaluation')} of {brief_seconds(fmean(each_s))}")
        return f"This will take about {about(seconds)} ({', '.join(parts)})"
