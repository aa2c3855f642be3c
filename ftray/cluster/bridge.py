"""The mailbox between the workers and the driver: events one way, a stop request the other."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray

from ftray.cluster.nodes import drivers_node
from ftray.errors import RunFailedError
from ftray.events import Event

__all__ = ["Mailbox", "Sender", "heard", "open_mailbox"]

SEND_EVERY_S = 0.2
CLOSE_TIMEOUT_S = 60.0

logger = logging.getLogger(__name__)


class Mailbox:
    """An actor that holds events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stop: str | None = None
        self._nodes: dict[int, str] = {}

    def arrived(self, rank: int, node: str) -> None:
        """From a worker: the id of its node."""
        self._nodes[rank] = node

    def nodes(self) -> dict[int, str]:
        """The node of each rank that has arrived; of one that is lost, where it was."""
        return dict(self._nodes)

    def push(self, events: list[Event]) -> str | None:
        """From a worker: events in order; answers with the reason to stop, or None."""
        self._events.extend(events)
        return self._stop

    def drain(self, stop: str | None) -> list[Event]:
        """From the driver: take all events, and leave a reason to stop."""
        self._stop = stop or self._stop
        events, self._events = self._events, []
        return events


def open_mailbox() -> Any:
    """A mailbox actor on the driver's behalf; it costs no CPU to place."""
    actor = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=drivers_node())
    return actor.remote()


def heard(answer: Any) -> Any:
    """What the mailbox answers to the driver.

    Raises:
        RunFailedError: if it is gone.
    """
    try:
        return ray.get(answer)
    except ray.exceptions.RayError as error:
        raise RunFailedError(
            f"The connection to the workers was lost: {error}. The last checkpoint is kept; "
            "continue with resume: auto"
        ) from error


class Sender:
    """One worker's end of the mailbox: sends without waiting, a few times a second.

    Args:
        mailbox: handle of the actor.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._waiting: list[Event] = []
        self._sent = 0.0
        self._answer: Any = None
        self._stop: str | None = None

    def send(self, event: Event) -> None:
        """Queue an event; milestones go at once."""
        self._waiting.append(event)
        if event.milestone or time.monotonic() - self._sent > SEND_EVERY_S:
            self._push()

    def _push(self) -> None:
        self.stop_requested()  # take the former answer, if it is there
        self._answer = self._mailbox.push.remote(self._waiting)
        self._waiting = []
        self._sent = time.monotonic()

    def stop_requested(self) -> str | None:
        """The reason to stop, as far as answers have arrived; never waits."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            try:
                self._stop = ray.get(self._answer) or self._stop
            except ray.exceptions.RayError:
                self._stop = "the driver is gone"
            self._answer = None
        return self._stop

    def close(self) -> None:
        """Send what is left and wait until it has arrived, if the driver is still there."""
        try:
            ray.get(self._mailbox.push.remote(self._waiting), timeout=CLOSE_TIMEOUT_S)
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("the last %d events did not arrive: %s", len(self._waiting), error)
        self._waiting = []
