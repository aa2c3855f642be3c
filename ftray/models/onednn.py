"""Linear layers as oneDNN would have them, for inference on a CPU: faster, in the same precision.

torch multiplies float32 with MKL, which on AMD's processors uses AVX2 even where there is AVX-512;
oneDNN uses what there is. In bfloat16 torch calls oneDNN itself, but lays the weights out for it
anew in each forward. So weights are laid out once, and oneDNN multiplies, as torch's own compiler
has it do in frozen graphs. The layers of a model are back as they were afterwards.

On Intel's processors float32 stays with MKL, which uses AVX-512 there; without AVX-512, all does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["FASTER_FROM", "faster_dtypes", "use_onednn", "with_onednn"]

FASTER_FROM = 32
"""Texts. To lay the weights out takes as long as to encode some ten short ones (MiniLM)."""


def use_onednn(model: object) -> list[nn.Linear]:
    """Have the linear layers of a model computed by oneDNN, where that is faster.

    Weights must not change from now on, and take the memory of a copy. With gradients, autocast or
    values of another type the layers compute as ever. Where a module's `forward` is somebody's own
    (torch.compile's, or ours already), all stays as it is.

    Returns:
        The layers.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    if any("forward" in vars(module) for module in modules):
        return []
    layers = [module for module in modules if _is_packable(module)]
    for layer in layers:
        layer.forward = _forward_of(layer)  # type: ignore[method-assign,assignment]
    return layers


@contextmanager
def with_onednn(model: object) -> Iterator[None]:
    """As `use_onednn`, for a while."""
    layers = use_onednn(model)
    try:
        yield
    finally:
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
    return (
        type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.dtype in faster_dtypes()
        and not module._forward_pre_hooks
    )


def _forward_of(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = layer.weight.detach(), layer.bias
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(values: Tensor) -> Tensor:
        other = values.dtype != weight.dtype or torch.is_autocast_enabled("cpu")
        if other or torch.is_grad_enabled() or not values.numel():
            return nn.functional.linear(values, layer.weight, bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(values, packed, bias, "none", [], "")
        return product

    return forward
