"""Between the loop and the callbacks: hooks go out on rank 0, decisions come back to all ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ftray.callbacks.base import Callback, Decision, State
from ftray.errors import FtrayError, RunFailedError
from ftray.runtime.base import Collectives

__all__ = ["CallbackDispatcher"]


class CallbackDispatcher:
    """Calls the hooks of all callbacks on rank 0, and shares what they decide.

    Args:
        callbacks: in the order in which their hooks are called.
        collectives: how decisions reach the other ranks.
    """

    def __init__(self, callbacks: Sequence[Callback], collectives: Collectives) -> None:
        self._callbacks = list(callbacks)
        self._collectives = collectives
        self._waiting: list[Decision] = []

    def call(self, hook: str, state: State, *arguments: Any) -> None:
        """Call a hook on rank 0; what it decides waits for the next `decide`."""
        if self._collectives.rank != 0:
            return
        for callback in self._callbacks:
            self._waiting.extend(_call(callback, hook, state, *arguments))

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
        """Each callback's class and state, in order."""
        states = [{"name": type(c).__name__, "state": c.state_dict()} for c in self._callbacks]
        for state in states:
            try:
                json.dumps(state)
            except (TypeError, ValueError) as error:
                raise RunFailedError(
                    f"{state['name']}.state_dict gave what JSON cannot hold: {error}"
                ) from None
        return states

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
        for callback, name, state in zip(self._callbacks, present, states, strict=True):
            try:
                callback.load_state_dict(state["state"])
            except KeyError as error:
                raise RunFailedError(f"The checkpoint's state of {name} has no {error}") from None


def _call(callback: Callback, hook: str, state: State, *arguments: Any) -> list[Decision]:
    name = f"{type(callback).__name__}.{hook}"
    try:
        answer = getattr(callback, hook)(state, *arguments)
    except FtrayError:
        raise
    except Exception as error:
        raise RunFailedError(f"{name} failed: {type(error).__name__}: {error}") from error
    if answer is None:
        return []
    decisions = list(answer) if isinstance(answer, Iterable) else [answer]
    for decision in decisions:
        if not isinstance(decision, Decision):
            raise RunFailedError(
                f"{name} returned {decision!r}: a decision (ftray.callbacks.base), several, or "
                "None is expected"
            )
    return decisions
