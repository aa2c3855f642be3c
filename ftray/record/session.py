"""The driver's side of a run: one record, several listeners, one reason to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ftray.events import Event, FitEnded, Log
from ftray.record.narrator import duration_words, metric_lines, narrate
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.record.writer import RecordWriter

__all__ = ["RunSession", "StopRequests"]

STOP_FILE = "control/stop"
CHECK_EVERY_S = 0.5


class StopRequests:
    """Why a run is to stop: Ctrl-C, SIGTERM, or the request file in the run directory.

    Args:
        storage: the run directory.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._reason: str | None = None
        self._looked = 0.0
        self.signal: signal.Signals | None = None

    def __call__(self) -> str | None:
        """The reason, or None; looks at the file at most twice a second."""
        now = time.monotonic()
        if self._reason is None and now - self._looked > CHECK_EVERY_S:
            self._looked = now
            if self._storage.exists(STOP_FILE):
                self._reason = "a stop was requested"
        return self._reason

    @contextmanager
    def on_signals(self, say: Callable[[str], None]) -> Iterator[None]:
        """Turn the first Ctrl-C or SIGTERM into a request; a second Ctrl-C interrupts at once.

        Outside the main thread signals stay as they are.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = signal.Signals(number)
            name = "Ctrl-C" if number == signal.SIGINT else self.signal.name
            self._reason = f"{name} was received"
            say(f"{name}: stopping at the next step, the checkpoint is kept. Again: stop at once.")

        before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class RunSession:
    """Passes events to the record and to listeners, and closes the record whatever happens.

    Args:
        storage: the run directory, which exists.
        model: the model's name, for the metric lines.
        listeners: called with every event, after the record.
    """

    def __init__(
        self, storage: Storage, model: str, listeners: Sequence[Callable[[Event], None]]
    ) -> None:
        self.storage = storage
        self.stop = StopRequests(storage)
        self._model = model
        self._writer = RecordWriter(storage)
        self._sinks: list[Callable[[Event], None]] = [self._writer, *listeners]
        self._started = time.monotonic()
        self._lock = threading.RLock()

    def open(self, facts: dict[str, Any]) -> None:
        """Write what the run is, and that it has begun."""
        self.storage.delete(STOP_FILE)
        self._writer.describe(facts)
        self._writer.status("STARTED")

    def emit(self, event: Event) -> None:
        """Take an event of the run; from any thread."""
        with self._lock:
            for item in (event, *narrate(event)):
                for sink in self._sinks:
                    sink(item)

    def say(self, message: str, level: str = "INFO") -> None:
        """A line in the log."""
        self.emit(Log(message=message, level=level))

    def finish(self, ended: FitEnded) -> None:
        """The loop came to an end, as planned or stopped: the last lines and the status."""
        self.emit(ended)
        self.say("Done ✨" if ended.status == "FINISHED" else f"Stopped: {ended.reason}")
        seconds = time.monotonic() - self._started
        self.say(f"Finetuning took {duration_words(seconds)}", "DEBUG")
        if ended.seconds:
            split = ", ".join(f"{name} {value:.1f} s" for name, value in ended.seconds.items())
            self.say(f"Time: {split}", "DEBUG")
        self._writer.flush()
        metrics = RecordReader(self.storage).metrics()
        for line in metric_lines(self._model, metrics["before"], metrics["after"]):
            self.say(line, "DEBUG")
        if ended.best is not None:
            best = ended.best
            self.say(
                f"The artifact holds the weights of epoch {best['epoch']}: "
                f"{best['monitor']} = {best['value']:.5f}"
            )
        self._writer.close(ended.status, ended.reason)

    def interrupted(self) -> None:
        """A second Ctrl-C: the run was cut off; the newest checkpoint stands."""
        self.say("Interrupted; the newest checkpoint is kept", "WARNING")
        self._writer.close("STOPPED", "interrupted")

    def fail(self, error: BaseException) -> None:
        """The run failed: the reason goes to the log and the status."""
        reason = str(error) or type(error).__name__
        self.say(f"Failed: {reason}", "ERROR")
        self._writer.close("FAILED", reason)
