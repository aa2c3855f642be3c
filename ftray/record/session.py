"""The driver's side of a run: one record, several listeners, one reason to stop."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from ftray.errors import FtrayError, StorageError
from ftray.events import Event, FitEnded, Log
from ftray.record.narrator import Narrator, duration_words, metric_lines, time_split
from ftray.record.reader import RecordReader
from ftray.record.storage import Storage
from ftray.record.writer import RecordWriter

__all__ = ["RunSession", "StopRequests"]

STOP_FILE = "control/stop"
CHECK_EVERY_S = 0.5
BEAT_EVERY_S = 30.0

Listener = Callable[[Event], None]


class StopRequests:
    """Why a run is to stop: Ctrl-C, SIGTERM, or the request file in the run directory.

    Args:
        storage: the run directory.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._reason: str | None = None
        self._looked = 0.0
        self._say: Callable[[str], None] | None = None
        self._unsaid: str | None = None
        self.signal: signal.Signals | None = None

    def __call__(self) -> str | None:
        """The reason, or None; looks at the file at most twice a second.

        The first call after a signal says that it was heard.
        """
        unsaid, self._unsaid = self._unsaid, None
        if unsaid is not None and self._say is not None:
            self._say(unsaid)
        now = time.monotonic()
        if self._reason is None and now - self._looked > CHECK_EVERY_S:
            self._looked = now
            if self._storage.exists(STOP_FILE):
                self._reason = self._storage.read_text(STOP_FILE) or "a stop was requested"
        return self._reason

    def look(self) -> None:
        """Look at the file at the next call, however short the last look lies back."""
        self._looked = 0.0

    @contextmanager
    def on_signals(self, say: Callable[[str], None]) -> Iterator[None]:
        """Turn the first Ctrl-C or SIGTERM into a request; a second one interrupts at once.

        The handler only sets flags: it may run in the midst of a write to the console or the
        record, which must not be entered twice. Outside the main thread signals stay as they are.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.signal is not None:
                raise KeyboardInterrupt
            self.signal = signal.Signals(number)
            name = "Ctrl-C" if number == signal.SIGINT else self.signal.name
            self._unsaid = (
                f"{name}: stopping at the next step, the checkpoint is kept. Again: stop at once."
            )
            self._reason = f"{name} was received"

        self._say = say
        before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class RunSession:
    """Passes events to the record and to listeners, and closes both whatever happens.

    A record that cannot be written fails the run. A listener that raises does not: the log says so
    once, and the listener hears no more. Listeners that have a method `close` are closed when the
    run ends, however it does.

    Args:
        storage: the run directory; it must exist when the session is opened.
        model: the model's name, for the metric lines.
        listeners: called with every event, after the record.
    """

    def __init__(self, storage: Storage, model: str, listeners: Sequence[Listener]) -> None:
        self.storage = storage
        self.stop = StopRequests(storage)
        self._model = model
        self._writer = RecordWriter(storage)
        self._narrator = Narrator()
        self._listeners: list[Listener] = list(listeners)
        self._warnings: list[Log] = []
        self._started = time.monotonic()
        self._lock = threading.RLock()
        self._on_record = False
        self._over = threading.Event()

    def open(self, facts: dict[str, Any], *, resumed: bool = False) -> None:
        """Write what the run is, and that it has begun; from now on the record shows it alive.

        Args:
            facts: what `run.yaml` holds.
            resumed: whether the folder holds a run that goes on: its `run.yaml` then stays, and
                tells of this attempt beside it.
        """
        self._on_record = True
        self.storage.delete(STOP_FILE)
        if resumed:
            for event in RecordReader(self.storage).all_events():
                self._narrator(event)  # it remembers, and nothing is said again
            self._writer.describe_resumed(facts)
        else:
            self._writer.describe(facts)
            self._writer.status("CREATED")
        self._writer.status("STARTED")
        threading.Thread(target=self._beat, name="ftray-beat", daemon=True).start()

    @property
    def on_record(self) -> bool:
        """Whether the session was opened, so that the run directory is this run's."""
        return self._on_record

    def listen(self, listener: Listener) -> None:
        """Have one more listener hear all events from now on."""
        with self._lock:
            self._listeners.append(listener)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_EVERY_S):
            with suppress(StorageError, OSError):  # events meet it as well, and fail the run
                self._writer.beat()

    def emit(self, event: Event) -> None:
        """Take an event of the run; from any thread.

        Raises:
            StorageError: if the record cannot be written.
        """
        with self._lock:
            for item in (event, *self._narrator(event)):
                self._writer(item)
                self.show(item)
            while self._warnings:
                warning = self._warnings.pop(0)
                self._writer(warning)
                self.show(warning)

    def show(self, event: Event) -> None:
        """Tell the listeners alone; for what happens before there is a record."""
        with self._lock:
            for listener in list(self._listeners):
                try:
                    listener(event)
                except Exception as error:
                    self._drop(listener, error)

    def _drop(self, listener: Listener, error: Exception) -> None:
        self._listeners.remove(listener)
        name = getattr(listener, "__qualname__", type(listener).__qualname__)
        message = f"The listener {name} failed and hears no more: {type(error).__name__}: {error}"
        self._warnings.append(Log(level="WARNING", message=message))
        with suppress(Exception):
            _close(listener)

    def close(self) -> None:
        """Close the listeners that can be closed, and stop showing the run alive.

        `finish`, `interrupted` and `fail` do so; it is for what fails before the session is opened.
        """
        self._over.set()
        self._close_listeners()

    def _close_listeners(self) -> None:
        """What they raise goes to the log."""
        with self._lock:
            while self._listeners:
                listener = self._listeners[0]
                try:
                    _close(listener)
                except Exception as error:
                    self._drop(listener, error)
                else:
                    self._listeners.remove(listener)
            for warning in self._warnings if self._on_record else ():
                self._writer(warning)
            self._warnings = []

    def say(self, message: str, level: str = "INFO") -> None:
        """A line in the log."""
        self.emit(Log(message=message, level=level))

    def warn(self, message: str) -> None:
        """A warning in the log; it may come when the run is over, and is on record at once."""
        self.say(message, "WARNING")
        self._writer.flush()

    def finish(self, ended: FitEnded, complete: Callable[[], None] | None = None) -> None:
        """The loop came to an end, as planned or stopped: the last lines and the status.

        Args:
            ended: what came of it.
            complete: called when all but the status is on record, for what is made from it; if it
                fails, the log says so.
        """
        self.emit(ended)
        self.say("Done ✨" if ended.status == "FINISHED" else f"Stopped: {ended.reason}")
        seconds = time.monotonic() - self._started
        self.say(f"Finetuning took {duration_words(seconds)}", "DEBUG")
        if ended.seconds:
            self.say(time_split(ended.seconds, seconds))
        self._writer.flush()
        metrics = RecordReader(self.storage).metrics()
        for line in metric_lines(self._model, metrics["before"], metrics["after"]):
            self.say(line, "DEBUG")
        if ended.artifact_weights:
            held = f"{ended.artifact_weights} of step {ended.artifact_step}"
            self.say(f"The artifact holds the weights {held}")
        elif ended.best is not None:
            best = ended.best
            self.say(
                f"The artifact holds the weights of epoch {best['epoch']}: "
                f"{best['monitor']} = {best['value']:.5f}"
            )
        if complete is not None:
            self._complete(complete)
        self._end(ended.status, ended.reason)

    def _complete(self, complete: Callable[[], None]) -> None:
        try:
            complete()
        except Exception as error:  # the run itself is done, and well
            self.say(f"The model card was not written: {type(error).__name__}: {error}", "WARNING")

    def interrupted(self, complete: Callable[[], None] | None = None) -> None:
        """A second Ctrl-C: the run was cut off; the newest checkpoint stands.

        Args:
            complete: as of `finish`.
        """
        message = "Interrupted; the newest checkpoint is kept"
        self._cut_off(Log(level="WARNING", message=message), "STOPPED", "interrupted", complete)

    def fail(self, error: BaseException, complete: Callable[[], None] | None = None) -> None:
        """The run failed: the reason goes to the log and the status.

        Of what nobody expected the record, not the console, keeps the traceback as well.

        Args:
            error: the reason.
            complete: as of `finish`.
        """
        reason = str(error) or type(error).__name__
        unexpected = error.__cause__ if isinstance(error, FtrayError) else error
        if unexpected is not None and not isinstance(unexpected, FtrayError):
            lines = "".join(traceback.format_exception(unexpected)).rstrip()
            with suppress(StorageError, OSError):
                self._writer(Log(level="DEBUG", message=lines))
        self._cut_off(Log(level="ERROR", message=f"Failed: {reason}"), "FAILED", reason, complete)

    def _cut_off(
        self, last: Log, status: str, details: str, complete: Callable[[], None] | None
    ) -> None:
        """End without an error of its own: the caller raises the one that this is about."""
        with suppress(StorageError, OSError):
            self.emit(last)
        if complete is not None:
            with suppress(StorageError, OSError):
                self._writer.flush()
                self._complete(complete)
        with suppress(StorageError, OSError):
            self._end(status, details)

    def _end(self, status: str, details: str) -> None:
        self._over.set()
        try:
            self._close_listeners()
        finally:
            self._writer.close(status, details)


def _close(listener: Listener) -> None:
    close = getattr(listener, "close", None)
    if callable(close):
        close()
