"""An exponential moving average of the weights (EMA; Polyak and Juditsky 1992).

As in timm and TensorFlow, the average of weights (and of running statistics) follows training, and
is what is evaluated and kept; training goes on from the weights themselves. After step t, counted
from 0, it is `d * average + (1 - d) * weights` with d = min(decay, (1 + t) / (10 + t)): the first
steps, of a model that is far from done, soon weigh little.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["Average"]


class Average:
    """The average of what training changes in a module: trained weights, and buffers.

    Every rank has one; they are equal, as the weights are.

    Args:
        module: what is trained.
        decay: the largest share of the average that a step leaves, below 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        fixed = {n for n, p in _parameters(module).items() if not p.requires_grad}
        self._values = {n: t.clone() for n, t in _state(module).items() if n not in fixed}
        self.steps = 0

    def decay(self) -> float:
        """The share of the average that the next step leaves."""
        return min(self._decay, (1 + self.steps) / (10 + self.steps))

    @torch.no_grad()
    def follow(self) -> None:
        """A step changed the weights."""
        share, state = 1 - self.decay(), _state(self._module)
        for name, value in self._values.items():
            if value.is_floating_point():
                value.lerp_(state[name], share)
            else:  # such as a count of batches
                value.copy_(state[name])
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors, by their names in the module."""
        return self._values

    @torch.no_grad()
    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`.

        Raises:
            ValueError: if the names are others.
        """
        if set(values) != set(self._values):
            raise ValueError("the averaged weights have other names than those of the model")
        for name, value in self._values.items():
            value.copy_(values[name])

    def weights(self) -> dict[str, Tensor]:
        """A copy of the module's whole state with the average in its place, on the CPU."""
        state = {**_state(self._module), **self._values}
        return {name: tensor.cpu().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def put(self) -> None:
        """The module has the averaged weights from now on."""
        state = _state(self._module)
        for name, value in self._values.items():
            state[name].copy_(value)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The module has the averaged weights for a while, and its own again afterwards."""
        own = {n: t.clone() for n, t in _state(self._module).items() if n in self._values}
        self.put()
        try:
            yield
        finally:
            state = _state(self._module)
            with torch.no_grad():
                for name, tensor in own.items():
                    state[name].copy_(tensor)


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors themselves, by name."""
    return dict(module.state_dict())


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return dict(module.named_parameters(remove_duplicate=False))
