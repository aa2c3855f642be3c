"""What is said about events, in the words that users of Finetuner know."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import timedelta

from ftray.config import model_prefix
from ftray.events import (
    CheckpointSaved,
    EpochEnded,
    EvaluationEnded,
    Event,
    FitStarted,
    Log,
    StepsDiscarded,
)
from ftray.record.epochs import EpochProgress
from ftray.record.forecast import Forecast
from ftray.words import counted

__all__ = [
    "Narrator",
    "duration_words",
    "log_line",
    "metric_lines",
    "narrate",
    "time_split",
    "without_control_codes",
]


CONTROL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LOSSES = ("train_loss", "val_loss")


class Narrator:
    """Says what happens, event by event, with what was heard before in mind.

    So it knows how far an epoch is, and, once it can be known, how long the run will take.
    """

    def __init__(self) -> None:
        self._forecast = Forecast()
        self._progress = EpochProgress()
        self._evaluated: set[str] = set()

    def __call__(self, event: Event) -> list[Log]:
        """The log lines that an event gives rise to."""
        forecast = self._forecast(event)
        done = self._progress.global_step
        self._progress(event)
        lines = narrate(event)
        if isinstance(event, EvaluationEnded):
            self._evaluated.update(event.keys.values())
        elif isinstance(event, EpochEnded):
            lines.append(_log(event, "INFO", self._epoch(event)))
        elif isinstance(event, StepsDiscarded):
            lines.append(_log(event, "INFO", _discarded(event, done)))
        return lines + ([_log(event, "INFO", forecast)] if forecast else [])

    def _epoch(self, event: EpochEnded) -> str:
        """The finished bar, and metrics that a callback logged: evaluations have their own line."""
        own = {k: v for k, v in event.metrics.items() if k not in {*LOSSES, *self._evaluated}}
        return self._progress.line() + _values(own)


def narrate(event: Event) -> list[Log]:
    """The log lines that an event gives rise to by itself; none for most."""
    if isinstance(event, FitStarted):
        return [_log(event, "INFO", _started(event))]
    if isinstance(event, EvaluationEnded):
        return [_log(event, "INFO", _evaluated(event))]
    if isinstance(event, CheckpointSaved):
        return [_log(event, "DEBUG", f"Checkpoint {event.name} is saved")]
    return []


def _log(event: Event, level: str, message: str) -> Log:
    return Log(time_s=event.time_s, level=level, message=message)


def _started(event: FitStarted) -> str:
    share = event.batch_size / event.world_size
    each = f" ({share:.3g} rows per worker)" if event.world_size > 1 else ""
    return (
        f"Finetuning ... {counted(event.epochs, 'epoch')} of "
        f"{counted(event.steps_per_epoch, 'step')}, batch {event.batch_size}{each}, {event.where} "
        f"({event.hardware['device']}, {counted(event.hardware['threads'], 'thread')}, "
        f"{event.hardware['precision']})"
    )


def _evaluated(event: EvaluationEnded) -> str:
    other = ""
    if event.alpha is not None:
        other = f" with alpha {event.alpha:g}"
    elif event.weights:
        other = f" with the weights '{event.weights}'"
    when = "before fine-tuning" if event.when == "before" else f"at step {event.global_step}"
    if event.pairs:
        what = counted(event.pairs, "scored pair")
    else:
        queries = counted(event.queries, "query", "queries")
        what = f"{queries} over {counted(event.documents, 'document')}"
    text = f"Evaluated {event.name}{other} {when}: {what} in {event.wall_s:.1f} s"
    if event.overlapped:
        text += ", while training went on"
    if alone := event.queries_without_relevant:
        text += f" (queries with nothing relevant, which count as 0: {alone:,})"
    return text + _values(event.metrics)


def _values(metrics: Mapping[str, float]) -> str:
    return "".join(f" • {name}: {value:.5f}" for name, value in sorted(metrics.items()))


def _discarded(event: StepsDiscarded, done: int) -> str:
    what = counted(max(done - event.global_step, 0), "later step")
    return f"Back to step {event.global_step}, without {what}: {event.reason}"


def metric_lines(model: str, before: dict[str, float], after: dict[str, float]) -> list[str]:
    """`Metric: 'resnet50_average_precision' before fine-tuning: 0.1 after fine-tuning: 0.2`."""
    prefix = model_prefix(model)
    lines = []
    for name in sorted(after or before):
        values = []
        if name in before:
            values.append(f"before fine-tuning: {before[name]:.5f}")
        if name in after:
            values.append(f"after fine-tuning: {after[name]:.5f}")
        lines.append(f"Metric: '{prefix}_{name}' {' '.join(values)}")
    return lines


def duration_words(seconds: float) -> str:
    """`0 days, 0 hours 3 minutes and 38 seconds`."""
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(whole.seconds, 3600)
    minutes, left = divmod(rest, 60)
    return (
        f"{counted(whole.days, 'day')}, {counted(hours, 'hour')} {counted(minutes, 'minute')} and "
        f"{counted(left, 'second')}"
    )


def time_split(seconds: Mapping[str, float], whole_s: float) -> str:
    """`Time: step 9.0 s (90 %), data 0.5 s (5 %), other 0.5 s (5 %)`: the largest first.

    Args:
        seconds: what was measured, by name.
        whole_s: how long it all took; what no name accounts for is "other".
    """
    measured = sum(seconds.values())
    whole_s = max(whole_s, measured, 1e-9)
    parts = sorted(seconds.items(), key=lambda part: -part[1])
    parts.append(("other", whole_s - measured))
    return "Time: " + ", ".join(f"{n} {s:.1f} s ({100 * s / whole_s:.0f} %)" for n, s in parts)


def log_line(event: Log) -> str:
    """One line of `logs.txt`: local time, level, message; of control characters only newlines."""
    stamp = time.strftime("%H:%M:%S", time.localtime(event.time_s))
    return without_control_codes(f"[{stamp}] {event.level:<8} {event.message}")


def without_control_codes(text: str) -> str:
    """What a message of a library or a text of the data must not do to a terminal or a log."""
    return CONTROL_CODES.sub("", text)
