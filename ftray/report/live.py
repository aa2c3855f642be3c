"""`report.html` while the run goes on, and when it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from ftray.events import Event
from ftray.record.storage import Storage

__all__ = ["LiveReport", "reported"]

FIRST_AFTER_S = 5.0
EVERY_S = 30.0
SHARE = 0.02
"""Of a processor's time: a report that takes long is written less often."""


class _Session(Protocol):
    """What is needed of a `RunSession`."""

    storage: Storage

    @property
    def on_record(self) -> bool:
        """Whether there is a run to report."""

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Have a listener hear all events from now on."""

    def warn(self, message: str) -> None:
        """A warning in the log, also after the end."""


@contextmanager
def reported(session: _Session) -> Iterator[None]:
    """Keep the report of a run up to date while it goes on; at the end, write the last one.

    The run must be closed when the context ends, so that the last page shows how it ended.
    """
    live = LiveReport(session.storage, session.warn)
    session.listen(live)
    try:
        yield
    finally:
        live.close()
        if session.on_record:
            live.write_last()


class LiveReport:
    """Writes the report after milestones (evaluations, ends of epochs), at most twice a minute.

    A thread of its own does it. What goes wrong never reaches the run: the log says it once.

    Args:
        storage: the run directory.
        warn: takes a line for the log.
    """

    def __init__(self, storage: Storage, warn: Callable[[str], None]) -> None:
        self._storage = storage
        self._warn = warn
        self._warned = False
        self._news = threading.Event()
        self._over = threading.Event()
        self._due = time.monotonic() + FIRST_AFTER_S
        self._thread: threading.Thread | None = None

    def __call__(self, event: Event) -> None:
        """Take note of a milestone; returns at once."""
        if not event.milestone or self._over.is_set():
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ftray-report", daemon=True)
            self._thread.start()
        self._news.set()

    def close(self) -> None:
        """Write no more; returns at once. `write_last` waits for a page that is being written."""
        self._over.set()
        self._news.set()

    def write_last(self) -> None:
        """Write the page of a run that is over."""
        if self._thread is not None:
            self._thread.join()
        self._write()

    def _work(self) -> None:
        while self._news.wait() and not self._over.wait(max(0.0, self._due - time.monotonic())):
            self._news.clear()
            self._write()

    def _write(self) -> None:
        from ftray.report.page import write_report

        began = time.thread_time()
        try:
            write_report(self._storage)
        except Exception as error:
            self._complain(error)
        cost_s = time.thread_time() - began
        self._due = time.monotonic() + max(EVERY_S, cost_s / SHARE)

    def _complain(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            said = " ".join(str(error).split()) or "no reason given"
            with suppress(Exception):  # where nothing can be written, the run says so itself
                self._warn(f"report.html was not written: {type(error).__name__}: {said}")
