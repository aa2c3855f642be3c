"""Between the loop and the callbacks: hooks go out on rank 0, decisions come back to all ranks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ftray.callbacks.base import Callback, Decision, Logger, LogMetrics, Say, State
from ftray.errors import FtrayError, RunFailedError
from ftray.runtime.base import Collectives

__all__ = ["CallbackDispatcher"]


class CallbackDispatcher:
    """Calls the hooks of all callbacks on rank 0, and shares what they decide.

    A logger that raises hears no more, with a warning; any other callback that raises fails the
    run.

    Args:
        callbacks: in the order in which their hooks are called.
        collectives: how decisions reach the other ranks.
        say: takes a line for the log and its level.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        collectives: Collectives,
        say: Callable[[str, str], None],
    ) -> None:
        self._callbacks = list(callbacks)
        self._collectives = collectives
        self._say = say
        self._silenced: set[int] = set()
        self._waiting: list[Decision] = []

    def call(self, hook: str, state: State, *arguments: Any) -> None:
        """Call a hook on rank 0; what it decides waits for the next `decide`."""
        if self._collectives.rank != 0:
            return
        for callback in self._callbacks:
            self._waiting.extend(self._call(callback, hook, state, *arguments))

    def _call(self, callback: Callback, hook: str, state: State, *arguments: Any) -> list[Decision]:
        if id(callback) in self._silenced:
            return []
        try:
            return _decisions_of(callback, hook, state, *arguments)
        except Exception as error:
            if not isinstance(callback, Logger):
                raise
            self._silence(callback, error)
            return []

    def end(self, state: State, status: str) -> None:
        """Rank 0: have every callback close what it opened; what they decide counts no more.

        Raises:
            RunFailedError: if one fails at that after a run that ended well, once all were called.
        """
        failed = self._tell_each("on_run_end", state, status)
        if failed and status in ("FINISHED", "STOPPED"):
            raise failed[0]
        for failure in failed:
            self._say(str(failure), "ERROR")

    def announce(self, state: State, exception: Exception) -> None:
        """Rank 0: tell every callback of an exception; one that fails at that does not hide it."""
        for failure in self._tell_each("on_exception", state, exception):
            self._say(str(failure), "ERROR")

    def _tell_each(self, hook: str, state: State, *arguments: Any) -> list[Exception]:
        """Call a hook of every callback, whatever the others do; of what they decide, say it."""
        failed: list[Exception] = []
        for callback in self._callbacks if self._collectives.rank == 0 else ():
            try:
                decisions = self._call(callback, hook, state, *arguments)
            except Exception as error:
                failed.append(error)
                continue
            for decision in decisions:
                if isinstance(decision, Say):
                    self._say(decision.message, decision.level)
        return failed

    def decide(self, hook: str, state: State, *arguments: Any) -> list[Decision]:
        """Call a hook on rank 0 and give every rank all decisions that wait."""
        self.call(hook, state, *arguments)
        return self.share()

    def share(self) -> list[Decision]:
        """Give every rank all decisions that wait."""
        decisions = self._collectives.broadcast(self._waiting or None) or []
        self._waiting = []
        return decisions

    def add(self, decision: Decision) -> None:
        """Rank 0: a decision from elsewhere, shared with the next `decide`."""
        self._waiting.append(decision)

    def state_dict(self) -> list[dict[str, Any]]:
        """Each callback's class and state, in order; a logger that fails at it has none."""
        return [{"name": type(c).__name__, "state": self._state_of(c)} for c in self._callbacks]

    def _state_of(self, callback: Callback) -> dict[str, Any]:
        try:
            return _state(callback)
        except RunFailedError as error:
            if not isinstance(callback, Logger):
                raise
            self._silence(callback, error)
            return {}

    def _silence(self, logger: Logger, error: Exception) -> None:
        if id(logger) not in self._silenced:
            self._silenced.add(id(logger))
            self._say(f"{error}. It hears no more; the run goes on.", "WARNING")

    def rewind(self, states: list[dict[str, Any]]) -> None:
        """Rank 0: take the states of an earlier step, whose later steps are discarded.

        Those who hear results stay as they are: they have heard those up to that step.
        """
        for callback, state in zip(self._callbacks, states, strict=True):
            cls = type(callback)
            if cls.on_metrics is Callback.on_metrics and (
                cls.on_evaluation_end is Callback.on_evaluation_end
            ):
                self._load(callback, state["state"])

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            RunFailedError: if a state does not fit its callback, with the callback's name.
        """
        saved = [state["name"] for state in states]
        present = [type(callback).__name__ for callback in self._callbacks]
        if saved != present:
            raise RunFailedError(
                f"The checkpoint was made with the callbacks {saved}, but this run has {present}: "
                "give the same callbacks in the same order"
            )
        for callback, state in zip(self._callbacks, states, strict=True):
            self._load(callback, state["state"])

    def _load(self, callback: Callback, state: dict[str, Any]) -> None:
        try:
            _take_up(callback, state)
        except RunFailedError as error:
            if not isinstance(callback, Logger):
                raise
            self._silence(callback, error)


def _state(callback: Callback) -> dict[str, Any]:
    name = type(callback).__name__
    try:
        state = callback.state_dict()
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise RunFailedError(f"{name}.state_dict failed: {what}") from error
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        raise RunFailedError(f"{name}.state_dict gave what JSON cannot hold: {error}") from None
    return state


def _take_up(callback: Callback, state: dict[str, Any]) -> None:
    name = type(callback).__name__
    try:
        callback.load_state_dict(state)
    except KeyError as error:
        raise RunFailedError(f"The checkpoint's state of {name} has no {error}") from None
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise RunFailedError(f"{name}.load_state_dict failed: {what}") from error


def _decisions_of(callback: Callback, hook: str, state: State, *arguments: Any) -> list[Decision]:
    name = f"{type(callback).__name__}.{hook}"
    try:
        answer = getattr(callback, hook)(state, *arguments)
    except Exception as error:
        what = str(error) if isinstance(error, FtrayError) else f"{type(error).__name__}: {error}"
        raise RunFailedError(f"{name} failed: {what}") from error
    if answer is None:
        return []
    decisions = list(answer) if isinstance(answer, Iterable) else [answer]
    for decision in decisions:
        if not isinstance(decision, Decision):
            raise RunFailedError(
                f"{name} returned {decision!r}: a decision (ftray.callbacks.base), several, or "
                "None is expected"
            )
        if isinstance(decision, LogMetrics):
            _check_numbers(name, decision)
    return decisions


def _check_numbers(name: str, logged: LogMetrics) -> None:
    for metric, value in logged.metrics.items():
        try:
            float(value)
        except (TypeError, ValueError):
            raise RunFailedError(
                f"{name} logged {metric} = {value!r}: a number is expected"
            ) from None
