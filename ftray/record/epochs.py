"""How far the training of an epoch is: what bars and log lines show of it."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import NamedTuple

from ftray.events import EpochEnded, Event, FitStarted, StepEnded

__all__ = ["EpochProgress", "clock"]


class _Sums(NamedTuple):
    """Over the steps of an epoch up to one of them."""

    loss: float = 0.0
    rows: int = 0
    elapsed_s: float = 0.0


class EpochProgress:
    """Hears every event of a run, and knows steps, times and losses of the newest epoch.

    Times are those of training: from the beginning of the epoch's first step to the end of its
    newest. Of an epoch that an earlier attempt began, the steps that count are taken along if their
    events were heard.
    """

    def __init__(self) -> None:
        self.epoch = self.epochs = self.done = self.total = self.global_step = 0
        self._sums: dict[int, _Sums] = {}
        self._first = 0
        self._begun_s: float | None = None
        self._before_s = 0.0
        self._loss = math.nan
        self._val_loss: float | None = None

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, FitStarted):
            self.epochs, self.total = event.epochs, event.steps_per_epoch
            self._enter(event.first_epoch)
            self._begun_s = None  # the time until the attempt's first step is nobody's training
            self.done, self.global_step = event.first_step, event.global_step
        elif isinstance(event, StepEnded):
            self._step(event)
        elif isinstance(event, EpochEnded):
            self._enter(event.epoch)
            self.done = self.total
            self._loss = event.metrics.get("train_loss", self._loss)
            self._val_loss = event.metrics.get("val_loss")

    def _enter(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.done = epoch, 0
            self._sums, self._begun_s, self._loss = {}, None, math.nan

    def _step(self, event: StepEnded) -> None:
        self._enter(event.epoch)
        if not self._sums:
            self._first = event.step
        before = self._sums.get(event.step - 1, _Sums())
        if self._begun_s is None:
            self._begun_s = event.time_s - event.data_s - event.step_s
            self._before_s = before.elapsed_s
        sums = self._sums[event.step] = _Sums(
            before.loss + event.loss * event.rows,
            before.rows + event.rows,
            max(before.elapsed_s, self._before_s + event.time_s - self._begun_s),
        )
        self.done, self.global_step = event.step + 1, event.global_step
        self._loss = sums.loss / sums.rows if sums.rows else event.loss

    @property
    def elapsed_s(self) -> float:
        """Seconds of training in this epoch."""
        return self._sums.get(self.done - 1, _Sums()).elapsed_s

    @property
    def remaining_s(self) -> float:
        """Seconds that the rest of the epoch's steps will take, at the pace of those done."""
        return self.elapsed_s / max(self.done - self._first, 1) * (self.total - self.done)

    @property
    def title(self) -> str:
        """`Training [2/5]`."""
        return f"Training [{self.epoch + 1}/{self.epochs}]"

    @property
    def note(self) -> str:
        """`• loss: 0.003 • val_loss: 2.797`: mean of the epoch so far, newest validation."""
        note = "" if math.isnan(self._loss) else f"• loss: {self._loss:.3f}"
        if self._val_loss is not None:
            note += f" • val_loss: {self._val_loss:.3f}"
        return note.strip()

    @property
    def text(self) -> str:
        """`76/76 0:00:00 0:00:16 • loss: 0.003`: steps, time remaining, time elapsed, losses."""
        times = f"{clock(self.remaining_s)} {clock(self.elapsed_s)}"
        return f"{self.done}/{self.total} {times} {self.note}".strip()

    def line(self, width: int = 10) -> str:
        """`Training [5/5] ━━━━━━━━━━ 76/76 0:00:00 0:00:16 • loss: 0.003 • val_loss: 2.797`.

        Args:
            width: of the bar, in characters.
        """
        full = width * self.done // self.total if self.total else 0
        return f"{self.title} {'━' * full}{'╌' * (width - full)} {self.text}"


def clock(seconds: float) -> str:
    """`0:00:16`."""
    return str(timedelta(seconds=round(seconds)))
