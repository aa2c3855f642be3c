"""Making batches ready ahead of whoever takes them: decoding in processes of their own.

The processes are those of torch's DataLoader, forked, so that what they read is shared and nothing
is pickled but the batches. They touch no weights and no GPU.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.queues import Queue
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ftray.errors import FtrayError, RunFailedError

__all__ = ["AUTO_WORKERS", "ahead"]

T = TypeVar("T")

AUTO_WORKERS = 2
PREFETCHED = 2
"""How many batches each process may be ahead; they lie in shared memory."""
_NOT_WHILE_FORKING = threading.RLock()
"""Held while a batch is made here and while processes are forked.

Else a process could be forked while a thread that evaluates makes a batch, and would wait forever
for what that thread held, such as the lock of a module that is being imported.
"""


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
        RunFailedError: if a process died.
    """
    if not workers or len(numbers) < 2:
        for number in numbers:
            with _NOT_WHILE_FORKING:
                batch = make(number)
            yield batch
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
    with _NOT_WHILE_FORKING:
        batches = iter(loader)
    # Receiving a batch takes milliseconds, most of them waiting for the process that made it and
    # makes the next: a thread does that during the step before.
    try:
        with ThreadPoolExecutor(1, "ftray-batches") as thread:
            coming = thread.submit(next, batches)
            for left in reversed(range(len(numbers))):
                batch = _received(coming)
                if left:
                    coming = thread.submit(next, batches)
                yield batch
    finally:
        _end(batches)


def _received(coming: Future[Any]) -> Any:
    try:
        batch = coming.result()
    except RuntimeError as error:  # raised there, or here by torch's handler of SIGCHLD
        if "DataLoader worker" not in str(error):
            raise
        raise RunFailedError(
            f"A process that makes batches ready died: {str(error).splitlines()[0]}. With "
            "data_workers: 0 there is none. Batches lie in /dev/shm, of which a container may need "
            "more (--shm-size)"
        ) from error
    if isinstance(batch, FtrayError):
        raise batch
    return batch


class _Made(Dataset[Any], Generic[T]):
    """What `make` makes, by number; its errors travel as values, to arrive as they are."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, number: int) -> T | FtrayError:
        try:
            return self._make(number)
        except FtrayError as error:
            return error


def _give_up(error: Exception, batch: Any) -> None:
    """Of what cannot be pickled: by default it is lost, and who waits for it waits forever."""
    traceback.print_exception(error)
    os._exit(1)


def _begin(worker: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it warns after a fork
    for number in (signal.SIGINT, signal.SIGTERM):  # who forked it hears and decides: a stopped
        signal.signal(number, signal.SIG_IGN)  # job sends them to every process below it
    Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]


def _end(batches: Any) -> None:
    """End the processes now, not when the collector comes to them."""
    stop = getattr(batches, "_shutdown_workers", None)
    if stop is not None:
        stop()
        for process in batches._workers:
            if process.is_alive():  # stuck, and deaf to SIGTERM
                process.kill()
