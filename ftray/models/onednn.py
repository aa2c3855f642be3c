"""Linear layers as oneDNN would have them, for inference on a CPU: faster, in the same precision.

torch multiplies float32 with MKL, which on AMD's processors uses AVX2 even where there is AVX-512;
oneDNN uses what there is. In bfloat16 torch calls oneDNN itself, but lays the weights out for it
anew in each forward. So weights are laid out once, and oneDNN multiplies, as torch's own compiler
has it do in frozen graphs. The layers of a model are back as they were afterwards.

On Intel's processors float32 stays with MKL, which uses AVX-512 there; without AVX-512, all does.
`torch.backends.mkldnn.flags(enabled=False)` turns it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from types import MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["FASTER_FROM", "faster_dtypes", "use_onednn", "with_onednn"]

FASTER_FROM = 32
"""Texts. To lay the weights out takes as long as to encode some ten short ones (MiniLM)."""
LEAST_WIDTH = 64
"""Of the values a layer takes and gives; low-rank adapters and classifiers are narrower."""
LEAST_ROWS = 32
"""Of values that are multiplied at a time."""

MOST_SIZES = 64
"""Numbers of rows that are multiplied as they are; any further one is filled up."""

_changing = Lock()
_sizes: set[int] = set()


def use_onednn(model: Any) -> list[nn.Linear]:
    """Have the linear layers of a model computed by oneDNN, where that is faster.

    The weights are laid out when they are first needed, which takes the memory of a copy. With
    gradients, autocast, values of another type or weights that have changed since, a layer computes
    as ever, and so does a copy of it; changes in place through `.data` are not noticed. Where a
    module's `forward` is somebody's own (torch.compile's, or ours already), all stays as it is.

    Args:
        model: whatever has `modules()`.

    Returns:
        The layers.
    """
    with _changing:
        modules = list(model.modules())
        if not torch.backends.mkldnn.enabled or any("forward" in vars(one) for one in modules):
            return []
        layers = [module for module in modules if _is_packable(module)]
        for layer in layers:
            layer.forward = _forward_of(layer)  # type: ignore[method-assign]
        return layers


@contextmanager
def with_onednn(model: Any, items: int | None = None) -> Iterator[None]:
    """As `use_onednn`, for a while.

    Args:
        model: whatever has `modules()`.
        items: how many will be encoded; below `FASTER_FROM` all stays as it is. None = many.
    """
    layers = [] if items is not None and items < FASTER_FROM else use_onednn(model)
    try:
        yield
    finally:
        with _changing:
            for layer in layers:
                del layer.forward


@cache
def faster_dtypes() -> frozenset[torch.dtype]:
    """Types of weights that oneDNN multiplies faster on this machine."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return frozenset()
    found = set()
    if "AuthenticAMD" in _cpu():
        found.add(torch.float32)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found.add(torch.bfloat16)
    return frozenset(found)


def _cpu() -> str:
    """What Linux says of the first processor; "" elsewhere."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def _is_packable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Plain layers alone: another class, or a hook, may make weights of its own."""
    if type(module) is not nn.Linear or module._forward_pre_hooks:
        return False
    weight = module.weight
    return (
        type(weight) in (Tensor, nn.Parameter)
        and not weight.is_inference()
        and weight.device.type == "cpu"
        and weight.dtype in faster_dtypes()
        and min(weight.shape) >= LEAST_WIDTH
    )


def _forward_of(layer: nn.Linear) -> Any:
    """A `forward` bound to the layer; of a copy of the layer it is bound to the copy."""
    weight = layer.weight
    address, version = weight.data_ptr(), weight._version
    packed: Tensor | None = None  # until it is needed, which in autocast it never is

    def forward(self: nn.Linear, values: Tensor) -> Tensor:
        nonlocal packed
        same = self.weight is weight and weight.data_ptr() == address and weight._version == version
        own = same and values.dtype == weight.dtype
        rows = values.reshape(-1, values.shape[-1]) if own else values
        few = len(rows) < LEAST_ROWS
        if not own or few or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return nn.functional.linear(values, self.weight, self.bias)
        if packed is None:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        return _product(rows, packed, self.bias).reshape(*values.shape[:-1], -1)

    return MethodType(forward, layer)


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """Rows `(n, in)` to `(n, out)`.

    What oneDNN makes for each number of rows stays in memory, half a megabyte for each shape of
    weights: beyond `MOST_SIZES` of them, rows are filled up to one of few. That changes no bit of
    the product, so a run that goes on elsewhere gives what it would have given.
    """
    count = len(rows)
    if count not in _sizes and len(_sizes) < MOST_SIZES:
        _sizes.add(count)
    if count not in _sizes:
        rows = nn.functional.pad(rows, (0, 0, 0, -count % (64 if count <= 1024 else 256)))
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product[:count]
