"""Waiting for what actors answer."""

from __future__ import annotations

from typing import Any

import ray

from ftray.runtime.process_group import LostWorkersError

__all__ = ["answers_of"]


def answers_of(calls: Any, *, timeout_s: float, who: str = "The evaluation actor") -> Any:
    """Wait for the answer to a call, or to each of a list of calls.

    Args:
        calls: what `.remote()` returned.
        timeout_s: how long to wait.
        who: was asked, for messages.

    Raises:
        LostWorkersError: if an actor is gone, does not answer in time, or lost its data.
        Exception: what the actor raised, itself.
    """
    try:
        return ray.get(calls, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LostWorkersError):  # it waited for another actor
            raise LostWorkersError(str(cause)) from error
        if isinstance(cause, Exception) and not isinstance(cause, RuntimeError):
            raise cause from None
        raise LostWorkersError(f"{who} failed: {cause}") from error
    except ray.exceptions.GetTimeoutError as error:
        raise LostWorkersError(f"{who} did not answer within {timeout_s:g} s") from error
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise LostWorkersError(f"{who} did not answer: {error}") from error
