"""What is said about events, in the words that users of Finetuner know."""

from __future__ import annotations

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
)
from ftray.record.forecast import Forecast
from ftray.words import counted

__all__ = ["Narrator", "duration_words", "log_line", "metric_lines", "narrate", "time_split"]


class Narrator:
    """Says what happens, event by event, and, once it can be known, how long it will take."""

    def __init__(self) -> None:
        self._forecast = Forecast()

    def __call__(self, event: Event) -> list[Log]:
        """The log lines that an event gives rise to, with what was heard before in mind."""
        forecast = self._forecast(event)
        return narrate(event) + ([_log(event, "INFO", forecast)] if forecast else [])


def narrate(event: Event) -> list[Log]:
    """The log lines that an event gives rise to by itself; none for most."""
    if isinstance(event, FitStarted):
        return [_log(event, "INFO", _started(event))]
    if isinstance(event, EpochEnded):
        return [_log(event, "INFO", _epoch(event))]
    if isinstance(event, EvaluationEnded):
        return [_log(event, "DEBUG", _evaluated(event))]
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


def _epoch(event: EpochEnded) -> str:
    losses = {"train_loss": "loss", "val_loss": "val_loss"}
    parts = [f"Epoch {event.epoch + 1}"]
    parts += [f"{losses[k]}: {event.metrics[k]:.3f}" for k in losses if k in event.metrics]
    parts += [f"{k}: {v:.5f}" for k, v in sorted(event.metrics.items()) if k not in losses]
    return " • ".join(parts)


def _evaluated(event: EvaluationEnded) -> str:
    when = "before fine-tuning" if event.when == "before" else f"at step {event.global_step}"
    if event.pairs:
        what = counted(event.pairs, "scored pair")
    else:
        queries = counted(event.queries, "query", "queries")
        what = f"{queries} over {counted(event.documents, 'document')}"
    text = f"Evaluated {event.name} {when}: {what} in {event.wall_s:.1f} s"
    if alone := event.queries_without_relevant:
        text += f" (queries with nothing relevant, which count as 0: {alone:,})"
    return text


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
    """One line of `logs.txt`: local time, level, message."""
    import time

    stamp = time.strftime("%H:%M:%S", time.localtime(event.time_s))
    return f"[{stamp}] {event.level:<8} {event.message}"
