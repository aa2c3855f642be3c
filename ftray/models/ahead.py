"""Making batches ready ahead of whoever takes them: decoding in processes of their own.

The processes are those of torch's DataLoader, forked, so that what they read is shared and nothing
is pickled but the batches. They touch no weights and no GPU.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ftray.errors import FtrayError

__all__ = ["ahead"]

T = TypeVar("T")

PREFETCHED = 4
"""How many batches each process may be ahead."""


def ahead(
    make: Callable[[int], T], numbers: Sequence[int], workers: int
) -> Generator[T, None, None]:
    """`make` of each number, in their order.

    Close the iterator, or take all of it: its processes end then.

    Args:
        make: makes a batch of what its number stands for.
        numbers: which batches.
        workers: processes that make them; 0 = here, when they are asked for.

    Raises:
        FtrayError: what `make` raised, in its turn.
    """
    if not workers or len(numbers) < 2:
        yield from map(make, numbers)
        return
    loader = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=list(numbers),
        num_workers=min(workers, len(numbers)),
        prefetch_factor=PREFETCHED,
        multiprocessing_context="fork",
        worker_init_fn=_begin,
        generator=torch.Generator(),  # the loader draws a seed: not from what steps draw from
    )
    batches = iter(loader)
    try:
        for batch in batches:
            if isinstance(batch, FtrayError):
                raise batch
            yield batch
    finally:
        _end(batches)


class _Made(Dataset[Any], Generic[T]):
    """What `make` makes, by number; its errors travel as values, to arrive as they are."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> T | FtrayError:
        try:
            return self._make(number)
        except FtrayError as error:
            return error


def _begin(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns after a fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who forked it hears and decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(batches: Any) -> None:
    """End the processes now, not when the collector comes to them."""
    stop = getattr(batches, "_shutdown_workers", None)
    if stop is not None:
        stop()
