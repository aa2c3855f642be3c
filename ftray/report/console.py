"""What a person sees while a run goes on: log lines, and bars where there is a place for them."""

from __future__ import annotations

import html
import time
from typing import Protocol

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

from ftray.events import EpochEnded, EvaluationEnded, Event, FitEnded, Log, StepEnded
from ftray.events import Progress as ProgressEvent
from ftray.record.epochs import EpochProgress
from ftray.record.narrator import log_line
from ftray.report.notebook import Changing, in_notebook, without_widgets

__all__ = ["RunConsole"]

STYLES = {"DEBUG": "dim", "INFO": "", "WARNING": "yellow", "ERROR": "bold red"}
PLAIN_EVERY_S = 30.0
NOTEBOOK_EVERY_S = 0.5
BAR_WIDTH = 30
LAST_TASK = "Matching"


class RunConsole:
    """Prints the events of a run.

    In a terminal: lines, and below them a bar for the epoch
    (`Training [2/5] ━━━ 31/76 0:00:10 0:00:07 • loss: 0.003 • val_loss: 2.7`: steps, time
    remaining, time elapsed), which stays as a line when the epoch is over, and bars while an
    evaluation runs. In a notebook the same, as text of the cell and one display that is updated.
    Elsewhere: plain lines without control characters, one for the progress every half minute.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=False, highlight=False)
        self._progress = EpochProgress()
        self._screen: _Screen
        if in_notebook(console):
            self._screen = _Notebook()
        elif console.is_terminal:
            self._screen = _Terminal(console)
        else:
            self._screen = _Plain(console)

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self._progress(event)
        if isinstance(event, Log):
            if event.level != "TRACE":  # tracebacks stand in the record
                self._screen.line(event)
        elif isinstance(event, StepEnded):
            self._screen.training(self._progress)
        elif isinstance(event, EpochEnded):
            self._screen.trained()
        elif isinstance(event, ProgressEvent):
            self._screen.task(event)
            if event.task == LAST_TASK and event.done == event.total:
                self._screen.tasks_done()
        elif isinstance(event, EvaluationEnded):
            self._screen.tasks_done()
        elif isinstance(event, FitEnded):
            self.close()

    def close(self) -> None:
        """Take the bars away; the one of an epoch that was cut off stays in a terminal."""
        self._screen.close()


class _Screen(Protocol):
    """A place to print to."""

    def line(self, event: Log) -> None:
        """Print a line of the log."""

    def training(self, progress: EpochProgress) -> None:
        """Show how far the epoch is."""

    def trained(self) -> None:
        """The epoch is over; its line in the log follows."""

    def task(self, event: ProgressEvent) -> None:
        """Show how far a part of an evaluation is."""

    def tasks_done(self) -> None:
        """The evaluation is over."""

    def close(self) -> None:
        """No more of these follow; lines may."""


class _Plain:
    """A file or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = time.monotonic()

    def line(self, event: Log) -> None:
        self._print(log_line(event))

    def training(self, progress: EpochProgress) -> None:
        if time.monotonic() - self._said > PLAIN_EVERY_S and progress.done < progress.total:
            self._said = time.monotonic()
            self._print(f"  {progress.line()}")

    def trained(self) -> None:
        self._said = time.monotonic()

    def task(self, event: ProgressEvent) -> None:
        pass

    def tasks_done(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        file = self._console.file
        encoding = getattr(file, "encoding", None) or "utf-8"
        file.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        file.flush()


class _Terminal:
    """A terminal: rich's bars below the lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._training: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

    def line(self, event: Log) -> None:
        text = Text(log_line(event), STYLES.get(event.level, ""))
        out = self._bars.console if self._bars is not None else self._console
        out.print(text, soft_wrap=True)

    def training(self, progress: EpochProgress) -> None:
        bars = self._open()
        if self._training is None:
            self._training = bars.add_task(progress.title, total=progress.total, note="")
            (task,) = (task for task in bars.tasks if task.id == self._training)
            task.start_time = bars.get_time() - progress.elapsed_s  # heard when a step has ended
        bars.update(
            self._training,
            description=progress.title,
            total=progress.total,
            completed=progress.done,
            note=progress.note,
        )

    def trained(self) -> None:
        if self._bars is not None and self._training is not None:
            self._bars.remove_task(self._training)
        self._training = None

    def task(self, event: ProgressEvent) -> None:
        bars = self._open()
        if event.task not in self._tasks:
            self._tasks[event.task] = bars.add_task(event.task, total=event.total, note="")
        bars.update(self._tasks[event.task], completed=event.done, total=event.total)

    def tasks_done(self) -> None:
        for task in self._tasks.values():
            if self._bars is not None:
                self._bars.remove_task(task)
        self._tasks = {}

    def close(self) -> None:
        if self._bars is not None:
            self.tasks_done()
            self._bars.stop()
            self._bars = self._training = None

    def _open(self) -> Progress:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=BAR_WIDTH),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bars.start()
        return self._bars


class _Notebook:
    """The output of a cell: lines as text, and one display for all that changes."""

    def __init__(self) -> None:
        without_widgets()
        self._place = Changing()
        self._training = ""
        self._tasks: dict[str, str] = {}
        self._shown = 0.0

    def line(self, event: Log) -> None:
        print(log_line(event), flush=True)

    def training(self, progress: EpochProgress) -> None:
        self._training = progress.line(BAR_WIDTH)
        self._show()

    def trained(self) -> None:
        self._training = ""
        self._show(now=True)

    def task(self, event: ProgressEvent) -> None:
        self._tasks[event.task] = f"{event.task} {event.done}/{event.total}"
        self._show()

    def tasks_done(self) -> None:
        self._tasks = {}
        self._show(now=True)

    def close(self) -> None:
        self._training = ""
        self.tasks_done()

    def _show(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self._shown > NOTEBOOK_EVERY_S:
            self._shown = time.monotonic()
            text = "\n".join(filter(None, [self._training, *self._tasks.values()]))
            self._place.show(f"<pre>{html.escape(text)}</pre>" if text else "", text)
