"""Evaluation while training goes on: a copy of the weights, and an encoder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

from ftray.runtime.local import LocalRuntime
from ftray.training.evaluate import Evaluated, evaluate
from ftray.training.job import Job

__all__ = ["SnapshotEvaluator", "ThreadEvaluator"]


class SnapshotEvaluator:
    """Evaluates the weights it is given, in this process.

    The same batches, layout, search and metrics as in an evaluation by the workers, so the same
    numbers.

    Args:
        job: with the evaluations.
        device: where to encode.
        data_workers: processes that decode ahead; 0 in a thread, where nothing is forked.
    """

    def __init__(self, job: Job, device: torch.device, data_workers: int = 0) -> None:
        self._job = job
        self._data_workers = data_workers
        self._encoder = job.encoder(device)
        self._runtime = LocalRuntime(device, job.evaluations, lambda event: None, lambda: None)

    def __call__(self, number: int, weights: Mapping[str, Tensor]) -> Evaluated:
        """Run evaluation `number` of the job."""
        self._encoder.load_state_dict(dict(weights))
        return evaluate(
            self._job.evaluations[number],
            number,
            self._encoder,
            self._runtime,
            layout=self._job.config.packing,
            on_progress=lambda task, done, total: None,
            data_workers=self._data_workers,
        )


class ThreadEvaluator:
    """Evaluates in a thread of this process, one evaluation after the other.

    Args:
        job: with the evaluations.
        device: where to encode.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job = job
        self._device = device
        self._evaluator: SnapshotEvaluator | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ftray-evaluation")
        self._waiting: dict[Future[Evaluated], int] = {}

    def submit(self, ticket: int, number: int, weights: Mapping[str, Tensor]) -> None:
        """See `Evaluator.submit`."""
        if self._evaluator is None:  # here: loading draws from the random state that steps use
            self._evaluator = SnapshotEvaluator(self._job, self._device)
        self._waiting[self._thread.submit(self._evaluator, number, weights)] = ticket

    def finished(self, wait_s: float = 0.0) -> list[tuple[int, Evaluated]]:
        """See `Evaluator.finished`."""
        wait(self._waiting, timeout=wait_s, return_when=FIRST_COMPLETED)
        done = [future for future in self._waiting if future.done()]
        return [(self._waiting.pop(future), future.result()) for future in done]

    def close(self) -> None:
        """See `Evaluator.close`."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._waiting = {}
