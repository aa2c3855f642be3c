"""What a person sees while a run goes on: log lines, and bars where there is a terminal."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ftray.events import EpochEnded, Event, FitEnded, FitStarted, Log, StepEnded
from ftray.events import Progress as ProgressEvent

__all__ = ["RunConsole"]

STYLES = {"DEBUG": "dim", "INFO": "", "WARNING": "yellow", "ERROR": "bold red"}
PLAIN_EVERY_S = 30.0


class RunConsole:
    """Prints the events of a run.

    In a terminal or a notebook: lines, and below them a bar for the epoch
    (`Training [2/5] ━━━ 31/76 0:00:10 0:00:07 • loss: 0.003 • val_loss: 2.7`: steps, time
    remaining, time elapsed) and bars while an evaluation runs. Elsewhere: plain lines without
    control characters, one for the progress every half minute.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=False, highlight=False)
        self._live = self._console.is_terminal or self._console.is_jupyter
        self._bars: Progress | None = None
        self._training: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}
        self._epochs = self._steps = 0
        self._loss: list[float] = []
        self._val_loss: float | None = None
        self._said = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Log):
            if event.level != "TRACE":  # tracebacks stand in the record
                self._line(event)
        elif isinstance(event, FitStarted):
            self._epochs, self._steps = event.epochs, event.steps_per_epoch
        elif isinstance(event, StepEnded):
            self._step(event)
        elif isinstance(event, EpochEnded):
            self._epoch_ended(event)
        elif isinstance(event, ProgressEvent):
            self._progress(event)
        elif isinstance(event, FitEnded):
            self.close()

    def close(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._training = None
            self._tasks = {}

    def _line(self, event: Log) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(event.time_s))
        text = Text(f"[{stamp}] {event.level:<8} {event.message}", STYLES.get(event.level, ""))
        out = self._bars.console if self._bars is not None else self._console
        out.print(text, soft_wrap=True)

    def _open(self) -> Progress:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=self._console,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bars.start()
        return self._bars

    def _note(self) -> str:
        note = f"• loss: {sum(self._loss) / len(self._loss):.3f}" if self._loss else ""
        return note + (f" • val_loss: {self._val_loss:.3f}" if self._val_loss is not None else "")

    def _step(self, event: StepEnded) -> None:
        if event.step == 0:
            self._loss = []
        self._loss.append(event.loss)
        title = f"Training [{event.epoch + 1}/{self._epochs}]"
        if not self._live:
            if time.monotonic() - self._said > PLAIN_EVERY_S:
                self._said = time.monotonic()
                line = Text(f"  {title} {event.step + 1}/{self._steps} {self._note()}")
                self._console.print(line, soft_wrap=True)
            return
        bars = self._open()
        if self._training is None:
            self._training = bars.add_task(title, total=self._steps, note="")
        elif event.step == 0:
            bars.reset(self._training, total=self._steps)
        bars.update(self._training, description=title, completed=event.step + 1, note=self._note())

    def _epoch_ended(self, event: EpochEnded) -> None:
        self._val_loss = event.metrics.get("val_loss")
        if self._bars is not None and self._training is not None:
            self._bars.update(self._training, note=self._note())

    def _progress(self, event: ProgressEvent) -> None:
        if not self._live:
            return
        bars = self._open()
        if event.task not in self._tasks:
            self._tasks[event.task] = bars.add_task(event.task, total=event.total, note="")
        bars.update(self._tasks[event.task], completed=event.done, total=event.total)
        if event.task == "Matching" and event.done == event.total:
            for task in self._tasks.values():
                bars.remove_task(task)
            self._tasks = {}
