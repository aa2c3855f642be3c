"""A bar on standard error while something is encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    what: str, total: int | None, *, show: bool | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar; yields what is to be called with the number of things done so far.

    Args:
        what: is being done.
        total: how many things there are; None = nobody knows.
        show: whether there is a bar; None = if standard error is a terminal.
    """
    console = Console(stderr=True)
    if show is False or (show is None and not console.is_terminal):
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
