"""What ends a run on Ray at once, and what is tried again.

Ray Train's controller imports this: it needs neither torch nor the loop.
"""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from ftray.errors import FtrayError
from ftray.events import Log

__all__ = ["FailAtOnce", "FatalError", "as_fatal", "find_fatal"]


class FatalError(Exception):
    """An error that another attempt would meet again: the run fails at once.

    Args:
        kind: name of the `FtrayError` class, or "" for any other exception.
        message: what happened.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message


def as_fatal(error: Exception, node: str) -> FatalError:
    """What a worker raised, as an error that ends the run.

    Args:
        error: anything but the loss of another worker.
        node: of the worker, for people.
    """
    if isinstance(error, FtrayError):
        return FatalError(type(error).__name__, str(error))
    if isinstance(error, ModuleNotFoundError):
        return FatalError(
            "ClusterError",
            f"On the node {node} there is no module '{error.name}', which the run needs. Install "
            "it on every node, or have Ray bring it: with --working-dir of ftray submit, or "
            "working_dir or py_modules of a runtime_env",
        )
    return FatalError("", f"{type(error).__name__}: {error}")


def find_fatal(error: BaseException | None) -> FatalError | None:
    """The `FatalError` inside Ray's wrappings, if there is one."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, FatalError):
            return current
        waiting += [
            current.__cause__,
            current.__context__,
            getattr(current, "cause", None),
            getattr(current, "_base_exc", None),
            getattr(current, "controller_failure", None),
            *(getattr(current, "worker_failures", None) or {}).values(),
        ]
    return None


class FailAtOnce(UserCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller: errors that would come again are not tried again.

    Args:
        mailbox: where a loss is announced.
        max_failures: how often lost workers are replaced.
        then: what happens after a loss, for people.
    """

    def __init__(self, mailbox: Any, max_failures: int, then: str) -> None:
        self._mailbox = mailbox
        self._left = max_failures
        self._then = then

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """End the run for a `FatalError`; lost workers go on to Ray's failure policy."""
        for error in worker_exceptions.values():
            fatal = find_fatal(error)
            if fatal is not None:
                raise fatal
        if not any(map(_preempted, worker_exceptions.values())):  # these have a limit of their own
            self._left -= 1
        ranks = ", ".join(str(rank) for rank in sorted(worker_exceptions))
        then = self._then if self._left >= 0 else "more often than max_failures: the run ends"
        message = f"Workers were lost (reported by rank {ranks}); {then}"
        self._mailbox.push.remote([Log(level="WARNING", message=message)])


def _preempted(error: Exception) -> bool:
    """Whether the cloud took a worker's node back."""
    return bool(getattr(getattr(error, "health_check_failure", error), "preempted", False))
