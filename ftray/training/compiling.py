"""torch.compile of an encoder's nets, in place: names of weights, files and artifacts stay.

Shapes are compiled as variables: the number and the length of texts differ from step to step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ftray.errors import ConfigError
from ftray.models.base import Encoder

__all__ = ["check_compiler", "compile_backbones", "nets_of"]

OPTIONS: dict[str, Any] = {"fallback_random": True}
"""Dropout draws what it draws without compilation: both passes of a micro batch have to agree."""


def compile_backbones(encoder: Encoder) -> None:
    """Have an encoder's nets compiled when they are first called.

    Raises:
        ConfigError: if nothing can be compiled here.
    """
    check_compiler(encoder.device)
    for net in nets_of(encoder):
        # not net.compile(): sentence-transformers calls `forward` itself
        net.forward = torch.compile(net.forward, dynamic=True, options=OPTIONS)


def nets_of(encoder: Encoder) -> list[nn.Module]:
    """The modules that an encoder calls: models of transformers, towers of a CLIP, plain nets."""
    nets: list[nn.Module] = []
    for one in encoder.modules():
        if not isinstance(one, Encoder) or any(isinstance(c, Encoder) for c in _below(one)):
            continue
        found = list(one.backbones.values()) or [
            net
            for net in one.children()
            if not isinstance(net, nn.ModuleDict)  # heads
        ]
        for net in found:
            towers = [getattr(net, name, None) for name in ("text_model", "vision_model")]
            nets += [t for t in towers if isinstance(t, nn.Module)] or [net]
    unique = {id(net): net for net in nets if any(True for _ in net.parameters())}
    return list(unique.values())


def _below(module: nn.Module) -> list[nn.Module]:
    return [one for one in module.modules() if one is not module]


def check_compiler(device: torch.device) -> None:
    """Compile a sum.

    Raises:
        ConfigError: with what is missing, such as a C++ compiler or Triton.
    """
    try:
        numbers = torch.ones(8, device=device)
        torch.compile(lambda x: x * 2 + 1, options=OPTIONS)(numbers)
    except Exception as error:  # whatever torch, the compiler or the system say
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        needed = "Triton" if device.type == "cuda" else "a C++ compiler (g++) and Python's headers"
        raise ConfigError(
            f"compile = true, but torch.compile does not work here; it needs {needed}: "
            f"{lines[0] if lines else type(error).__name__}"
        ) from None
