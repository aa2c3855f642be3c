"""Collectives over a torch.distributed process group."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["LostWorkersError", "ProcessGroupCollectives", "SingleProcess"]

T = TypeVar("T")


class LostWorkersError(RuntimeError):
    """A collective failed: another worker is gone. The group can be started anew."""


@contextmanager
def _joined() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, dist.DistError) as error:
        raise LostWorkersError(f"A worker was lost: {error}") from error


class ProcessGroupCollectives:
    """Collectives over the default process group (gloo or NCCL), which must be initialised."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = device

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Sum over ranks in place."""
        with _joined():
            dist.all_reduce(tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack of every rank's tensor, `(W, *shape)`."""
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with _joined():
            dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def broadcast(self, value: T) -> T:
        """Rank 0's value; nothing but a length travels when it is None."""
        raw = b"" if self.rank or value is None else pickle.dumps(value)
        size = torch.tensor([len(raw)], dtype=torch.long, device=self.device)
        self._broadcast(size)
        n = int(size)
        if n == 0:
            return None  # type: ignore[return-value]
        buffer = torch.empty(n, dtype=torch.uint8)
        if self.rank == 0:
            buffer = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
        buffer = buffer.to(self.device)
        self._broadcast(buffer)
        if self.rank == 0:
            return value
        result: T = pickle.loads(buffer.cpu().numpy().tobytes())
        return result

    def barrier(self) -> None:
        """Wait for all ranks."""
        with _joined():
            dist.barrier()

    def _broadcast(self, tensor: Tensor) -> None:
        with _joined():
            dist.broadcast(tensor, src=0)


class SingleProcess:
    """The same operations where there is one process."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def all_reduce_sum(self, tensor: Tensor) -> None:
        """Nothing to sum with."""
        return None

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensor as `(1, *shape)`."""
        return tensor[None]

    def broadcast(self, value: T) -> T:
        """The value itself."""
        return value

    def barrier(self) -> None:
        """Nobody to wait for."""
        return None
