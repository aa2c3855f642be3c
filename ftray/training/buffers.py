"""Buffers under two passes: a running statistic is updated once, whatever the micro batches.

With cached micro batches each forward runs twice, first without a graph, then to carry the
gradient back. The second pass has to find every buffer as the first one found it (else the gradient
would be that of another function: spectral normalisation moves its vectors in each forward), and
has to leave no trace. What a module keeps in plain attributes is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["ReplayedBuffers"]

Place = tuple[int, str]
"""Which module of an encoder, and the name of its buffer."""


class _Modules(Protocol):
    def modules(self) -> Iterable[nn.Module]:
        """All its modules, in an order that stays."""
        ...


class ReplayedBuffers:
    """The buffers of an encoder in a step, before each of its micro batches.

    Those that no first forward changes are never exchanged. Any micro batch may be the first that
    reaches a branch of the model, and changes its buffers.

    Args:
        encoder: whose buffers.
        twice: whether each micro batch is encoded twice; if not, nothing is to be done.
    """

    def __init__(self, encoder: _Modules, *, twice: bool) -> None:
        self._modules = list(encoder.modules()) if twice else []
        self._still: dict[Place, Tensor] = {  # those that did not change yet, as they are
            (i, name): buffer.clone()
            for i, module in enumerate(self._modules)
            for name, buffer in module._buffers.items()
            if buffer is not None
        }
        self._first: dict[Place, Tensor] = {}  # of the others, what they were at first
        self._before: dict[int, dict[Place, Tensor]] = {}

    @contextmanager
    def of(self, micro_batch: int) -> Iterator[None]:
        """Encode a micro batch: the first time as the buffers are, then as they were that time."""
        if micro_batch not in self._before:
            self._before[micro_batch] = {place: self._at(place).clone() for place in self._first}
            yield
            for place in [p for p, value in self._still.items() if not _same(value, self._at(p))]:
                self._first[place] = self._still.pop(place)
        elif not self._first:
            yield
        else:  # what changed later on was still as at first
            before = {p: value.clone() for p, value in self._first.items()}
            with self._exchanged(before | self._before[micro_batch]):
                yield

    @contextmanager
    def _exchanged(self, others: dict[Place, Tensor]) -> Iterator[None]:
        """Other tensors in the place of the buffers: autograd may keep them, nothing is undone."""
        own = {place: self._at(place) for place in others}
        self._put(others)
        try:
            yield
        finally:
            self._put(own)

    def _at(self, place: Place) -> Tensor:
        buffer = self._modules[place[0]]._buffers[place[1]]
        assert buffer is not None
        return buffer

    def _put(self, tensors: dict[Place, Tensor]) -> None:
        for (number, name), tensor in tensors.items():
            self._modules[number]._buffers[name] = tensor


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
