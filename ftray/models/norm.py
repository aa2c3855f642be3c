"""Batch normalisation over the global batch: the same on any number of workers.

torch's SyncBatchNorm refuses the CPU, and scales the gradients of its parameters for the averaging
of DistributedDataParallel. Here statistics are those of all rows of all ranks, the gradient of a
rank's inputs has the part that went through the other ranks, and the gradients of weight and bias
are those of the rank's own rows, which `training.reduce` sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ftray.errors import ModelError, RunFailedError

__all__ = ["AllReduce", "GlobalBatchNorm", "connect", "synced"]

AllReduce = Callable[[Tensor], None]
"""Sums a tensor over all ranks, in place."""


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation of inputs `(n, C, ...)` with statistics of the whole global batch.

    Parameters, buffers, options and evaluation mode are those of `torch.nn.BatchNorm1d`; also 2-d
    and 3-d inputs are taken. In training every rank must take part in each forward and each
    backward with at least one row; how many may differ.

    Attributes:
        all_reduce: sums over the ranks; None where there is one process.
    """

    all_reduce: AllReduce | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (n, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, and in training follow the statistics.

        Raises:
            RunFailedError: in training, if there is one value of each channel in the global batch:
                it has no variance.
        """
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        if self.all_reduce is None:
            _check_values(input.numel() // input.shape[1])
            return super().forward(input)
        mean, squares, count = _statistics(input, self.all_reduce)
        self._follow(mean, squares / (count - 1))
        output: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            input,
            self.weight,
            self.bias,
            mean,
            torch.rsqrt(squares / count + self.eps),
            count,
            self.all_reduce,
        )
        return output

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch does."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def _check_values(count: float) -> None:
    if count < 2:
        raise RunFailedError(
            "Batch normalisation needs two values of each channel in a step, and this step has "
            "one row: give a larger batch_size"
        )


def _per_channel(values: Tensor) -> Tensor:
    """Sums over all but the channels: `(n, C, ...)` to `(C,)`."""
    return values.sum(dim=[axis for axis in range(values.dim()) if axis != 1])


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """`(C,)` as `(1, C, 1, ...)`."""
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


@torch.no_grad()
def _statistics(inputs: Tensor, all_reduce: AllReduce) -> tuple[Tensor, Tensor, float]:
    """Over the global batch: means `(C,)`, sums of squared deviations `(C,)`, values of a channel.

    In two passes, so that nothing is lost where the mean is far from zero.
    """
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    sums = _per_channel(wide)
    count = sums.new_tensor([inputs.numel() // inputs.shape[1]])
    both = torch.cat([sums, count])
    all_reduce(both)
    values = float(both[-1])
    _check_values(values)
    mean = both[:-1] / values
    squares = _per_channel((wide - _spread(mean, wide)).square())
    all_reduce(squares)
    return mean, squares, values


class _Normalise(torch.autograd.Function):
    """weight · (x - mean) / std + bias, where mean and std depend on the rows of all ranks.

    With x̂ the normalised inputs, dŷ the gradient of the outputs, and means over the global batch
    (Ioffe and Szegedy 2015, section 3): dx = weight / std · (dŷ - mean(dŷ) - x̂ · mean(dŷ · x̂)).
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        inverse_std: Tensor,
        count: float,
        all_reduce: AllReduce,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, mean, inverse_std)
        ctx.count, ctx.all_reduce = count, all_reduce
        output = _normalised(inputs, mean, inverse_std)
        if weight is not None:
            output = output * _spread(weight, output)
        if bias is not None:
            output = output + _spread(bias, output)
        return output.to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, inverse_std = ctx.saved_tensors
        normalised = _normalised(inputs, mean, inverse_std)
        wide = gradient.to(normalised.dtype)
        of_bias, of_weight = _per_channel(wide), _per_channel(wide * normalised)
        of_inputs = None
        if ctx.needs_input_grad[0]:
            sums = torch.stack([of_bias, of_weight])
            ctx.all_reduce(sums)
            means = sums / ctx.count
            of_inputs = wide - _spread(means[0], wide) - normalised * _spread(means[1], wide)
            scale = inverse_std if weight is None else inverse_std * weight
            of_inputs = (of_inputs * _spread(scale, wide)).to(inputs.dtype)
        own = [
            of.to(weight.dtype) if weight is not None and ctx.needs_input_grad[place] else None
            for place, of in ((1, of_weight), (2, of_bias))
        ]
        return of_inputs, *own, None, None, None, None


def _normalised(inputs: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    return (inputs.to(mean.dtype) - _spread(mean, inputs)) * _spread(inverse_std, inputs)


def synced(module: nn.Module) -> bool:
    """Turn all batch normalisation in a module into `GlobalBatchNorm`, in place.

    Objects, parameters, buffers and their names stay: only the class of the layers is another, as
    torch's lazy layers become what they are.

    Returns:
        Whether there was any.

    Raises:
        ModelError: for a layer whose forward does more than normalise, or that has no running
            statistics, so that in evaluation, too, a row's embedding would depend on others.
    """
    found = False
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            found = True
            if not isinstance(layer, GlobalBatchNorm):
                _check_plain(name, layer)
                layer.__class__ = GlobalBatchNorm
    return found


def _check_plain(name: str, layer: _BatchNorm) -> None:
    if type(layer).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
        raise ModelError(
            f"The layer '{name}' ({type(layer).__name__}) is batch normalisation and more: its "
            "statistics cannot be made those of the global batch. Give batch_norm: frozen"
        )
    if layer.running_mean is None:
        raise ModelError(
            f"The layer '{name}' ({type(layer).__name__}) has no running statistics: an embedding "
            "would depend on what else is encoded with it. Make it with track_running_stats=True"
        )


def connect(module: nn.Module, all_reduce: AllReduce | None) -> None:
    """Say how the `GlobalBatchNorm` layers of a module sum over the ranks; None = one process."""
    for layer in module.modules():
        if isinstance(layer, GlobalBatchNorm):
            layer.all_reduce = all_reduce
