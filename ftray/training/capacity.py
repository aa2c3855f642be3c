"""`batch_size="auto"`: the largest step that fits into the memory, found by training some.

Trial steps are real ones (encoder, loss, gradient, optimizer) on the longest texts that the data
has, with the structure of the plan's first step. On a GPU their size doubles until one no longer
fits. On a CPU, where they would take minutes, it doubles for some seconds; what larger steps need
follows from there, in proportion to the rows, and what the loss needs, which may grow with their
square or cube, is measured at each size by itself, with random embeddings.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from ftray.config import FitConfig
from ftray.data.dataset import StepRows
from ftray.errors import ConfigError, FtrayError, RunFailedError
from ftray.media import Media
from ftray.runtime.local import local_device
from ftray.runtime.process_group import SingleProcess
from ftray.training.job import Job
from ftray.training.learner import Batch, Learner
from ftray.training.memory import Memory, memory_of
from ftray.training.step import loss_and_gradient, own_texts
from ftray.words import counted

__all__ = ["LARGEST", "Found", "check_measurable", "find_batch_size"]

LARGEST = 1024
"""Beyond this, larger steps are seldom better, and an epoch has few of them."""
SMALLEST = 4
TRIAL_S = 8.0
"""For how long steps grow on a CPU."""
LOSS_GROWTH = 8
"""How much more memory a loss of twice the rows may take: all triplets are a cube."""
SEED = (0, 0, 0)


@dataclass(frozen=True)
class Found:
    """A batch size, and a line for the log that says why."""

    rows: int
    note: str


def check_measurable(config: FitConfig) -> None:
    """Refuse to measure this machine for others.

    Raises:
        ConfigError: if workers on Ray may have GPUs, or other machines.
    """
    if config.num_workers != 0 and config.device != "cpu":
        raise ConfigError(
            "batch_size = 'auto' is measured in this process, which says nothing of the GPUs of "
            "workers on Ray: give a number, or num_workers: 0, or device: cpu (then this machine "
            "is to be like those of the workers)"
        )


def find_batch_size(job: Job) -> Found:
    """The largest power of two that fits, at most `LARGEST`, or all rows.

    Args:
        job: what to train, with any batch size.

    Raises:
        ConfigError: if not even the smallest step fits, or memory cannot be measured.
        FtrayError: if the data have no step of any size, saying why.
    """
    start = time.perf_counter()
    device = local_device(job.config.device)
    memory = memory_of(device)
    with torch.random.fork_rng():
        trials = _Trials(job, device, memory)
        best, impossible = 0, None
        for rows in trials.sizes():
            try:
                step = trials.step(rows)
            except FtrayError as error:  # the data have none of this size: of one class, say
                impossible = error
                continue
            if not trials.fits(rows, step):
                break
            best = rows
    if impossible is not None and not trials.smallest:
        raise impossible
    if not best:
        raise ConfigError(
            f"batch_size = 'auto': a step of {counted(trials.smallest, 'row')} does not fit into "
            f"the {memory.where} ({_gigabytes(trials.budget)} of it): give a micro_batch_size, or "
            "a smaller max_length"
        )
    return Found(best, trials.note(best, time.perf_counter() - start))


class _Trials:
    """Steps of several sizes, smaller ones first, and what they take.

    Attributes:
        budget: bytes that a run may take.
        smallest: the first size that was tried.
    """

    def __init__(self, job: Job, device: torch.device, memory: Memory) -> None:
        self._job = job
        self._memory = memory
        free, before = memory.free(), memory.now()
        self._alone = SingleProcess(device)
        self._learner = Learner(job, self._alone, 1, job.model)
        self.workers = max(job.config.num_workers, 1) if job.config.num_workers != "auto" else 1
        self._before = before
        self.budget = int(free * memory.share) - (self.workers - 1) * (memory.now() - before)
        self.smallest = 0
        self._measured: list[tuple[int, int]] = []  # rows and bytes of one worker's whole steps
        self._needs: dict[int, int] = {}
        self._loss = 0
        self._seconds = 0.0
        self._reached = ""

    def sizes(self) -> list[int]:
        """Powers of two up to the number of rows; that number, if it is below the first of them."""
        rows, limit = len(self._job.train), self._learner.loss.max_items
        most = min(rows, LARGEST)
        if limit is not None:
            most = min(most, limit // self._job.train.rows.shape[1])
        powers = [2**k for k in range(2, 11) if SMALLEST <= 2**k <= most]
        return powers or [most]

    def fits(self, rows: int, step: StepRows) -> bool:
        """Whether a step does; the sizes ascend."""
        self.smallest = self.smallest or rows
        try:
            needed = max(self._needed(rows, step), 1)  # also where memory that was freed is used
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            needed = self.budget + 1
        self._needs[rows] = needed
        if needed > self.budget:
            self._reached = f"; {counted(rows, 'row')} would not fit"
        return needed <= self.budget

    def _needed(self, rows: int, step: StepRows) -> int:
        """Bytes of a step, of all workers together; the model itself is out of the budget."""
        on_gpu, others = self._alone.device.type == "cuda", self.workers - 1
        if on_gpu or len(self._measured) < 3 or self._seconds < TRIAL_S / 4:
            if len(self._measured) >= 2 and not on_gpu and self._line(rows) > self.budget:
                return self._line(rows)  # it would not fit: leave it
            needed, losses = self._try(rows, step), 0
        else:
            needed, losses = self._line(rows), 1
        if not self._learner.loss.sharded:
            losses += others  # each computes all of it
        if losses:
            needed += losses * self._of_loss(rows, step)
        return needed + others * self._of_weights()

    def _of_weights(self) -> int:
        """Bytes of the gradients and of what the optimizers keep: each worker has them."""
        optimizers = self._learner.optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        weights = [weight for group in groups for weight in group["params"]]
        kept = [each for optimizer in optimizers for each in optimizer.state.values()]
        states = [value for each in kept for value in each.values() if torch.is_tensor(value)]
        return sum(tensor.nbytes for tensor in (*weights, *states))

    def _try(self, rows: int, step: StepRows) -> int:
        """Train one step; returns its bytes."""
        learner, job = self._learner, self._job
        own = own_texts(
            learner.encoder,
            step,
            learner.layout,
            self._alone,
            job.config.micro_batch_size,
            SEED,
        )
        self._memory.start()
        start = time.perf_counter()
        try:
            learner.step(Batch(step, own), SEED)
        except RunFailedError:  # a loss that is no number: the memory was taken all the same
            pass
        self._seconds = time.perf_counter() - start
        needed = self._memory.peak() - self._before
        self._measured.append((rows, needed))
        return needed

    def _line(self, rows: int) -> int:
        """What a larger step takes, going by the last two that were measured."""
        more, high = self._measured[-1]
        each = max([(high - low) / (more - less) for less, low in self._measured[:-1]] + [0.0])
        return int(high + each * (rows - more))

    def _of_loss(self, rows: int, step: StepRows) -> int:
        """What the loss of a step takes, if it may be tried."""
        if self._loss * LOSS_GROWTH > self._memory.free() * self._memory.share:
            return self._loss * LOSS_GROWTH
        learner, memory = self._learner, self._memory
        width = learner.encoder.embedding_dim
        embeddings = torch.randn(len(step.texts), width)
        before = memory.now()
        memory.start()
        loss_and_gradient(learner.loss, step, embeddings, self._alone, SEED, 1.0)
        self._loss = max(memory.peak() - before, 0)
        for parameter in learner.loss.parameters():
            parameter.grad = None
        return self._loss

    def step(self, rows: int) -> StepRows:
        """The first step of so many rows, each text in it replaced by one of the longest."""
        job, train = self._job, self._job.train
        first = replace(job, batch_size=rows).plan().rows(0, 0)
        step = train.step_rows(first, roles_differ=self._learner.encoder.roles_differ)
        if not train.texts_alone:
            return step
        lengths = pc.utf8_length(train.texts).to_numpy(zero_copy_only=False)
        count = min(len(step.texts), len(lengths))
        longest = np.argpartition(-lengths, count - 1)[:count]
        texts: list[Any] = train.texts.take(longest).to_pylist()
        roles = [role for role, content in step.texts if not isinstance(content, Media)]
        named = [(role, texts[i % count]) for i, role in enumerate(roles)]
        return replace(step, texts=named)

    def note(self, rows: int, seconds: float) -> str:
        """What was found, and why."""
        if not self._reached and rows < LARGEST:
            self._reached = f"; there are {counted(len(self._job.train), 'row')}"
        elif not self._reached:
            self._reached = ", the most that is tried"
        return (
            f"batch_size is {rows}, found in {seconds:.1f} s: a step of its longest texts takes "
            f"{_gigabytes(self._needs[rows])} of {_gigabytes(self.budget)} {self._memory.where} "
            f"that it may take{self._reached}"
        )


def _gigabytes(size: int) -> str:
    return f"{max(size, 0) / 1e9:.1f} GB"
