"""Groups of parameters: what decays, and lower rates for lower layers.

Layer-wise learning-rate decay (LLRD; Howard and Ruder 2018, "discriminative fine-tuning"): the top
layer learns with the full rate, each layer below with `decay` times that of the one above it, what
lies before the layers (embeddings) with the lowest. What comes after them (pooling, projections, a
head) takes the full rate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ftray.errors import ModelError

__all__ = ["encoder_groups", "layers_of"]

EMBEDDINGS = re.compile(r"embed|relative_attention_bias", re.IGNORECASE)
"""Names of what belongs to the inputs, wherever a model keeps it."""
HEADS = re.compile(r"(^|\.)heads?\.")
"""Names of what ftray or the user put behind a model, wherever it is kept."""


@dataclass
class _Stack:
    """Layers, one after the other: those of a BERT, of one tower of two, the stages of a ResNet."""

    name: str
    layers: list[set[int]]
    """Ids of each layer's parameters, the lowest layer first."""
    label: str = ""
    root: str = ""
    """The module that holds this stack and no other."""
    place: int = 0
    """Where its parameters begin among all."""
    number_of: dict[int, int] = field(default_factory=dict)


def layers_of(encoder: nn.Module) -> list[_Stack]:
    """The stacks of layers of an encoder: outermost lists of modules, two layers or more.

    Where there is no `ModuleList`, as in a plain net, the longest `Sequential` counts.
    """
    stacks = _outermost(encoder, nn.ModuleList)
    if not stacks:
        plain = _outermost(encoder, nn.Sequential)
        stacks = [max(plain, key=lambda stack: len(stack.layers))] if plain else []
    place = {id(p): i for i, p in enumerate(encoder.parameters())}
    for stack in stacks:
        stack.place = min(place[one] for layer in stack.layers for one in layer)
        stack.number_of = {one: i for i, layer in enumerate(stack.layers) for one in layer}
    for stack in stacks:
        stack.root = _alone_under(stack.name, [other.name for other in stacks])
    if len(stacks) > 1:
        shared = _common([stack.name for stack in stacks])
        for stack in stacks:
            stack.label = stack.name[len(shared) :].strip(".").split(".")[0] + "/"
    return stacks


def _outermost(encoder: nn.Module, kind: type[nn.Module]) -> list[_Stack]:
    found: list[_Stack] = []
    for name, module in encoder.named_modules():
        inside = any(name.startswith(f"{other.name}.") for other in found)
        if type(module) is not kind or inside:
            continue
        layers = [{id(p) for p in child.parameters()} for child in module.children()]
        layers = [layer for layer in layers if layer]
        known = {one for other in found for layer in other.layers for one in layer}
        if len(layers) >= 2 and not known & set[int]().union(*layers):
            found.append(_Stack(name, layers))
    return found


def _alone_under(name: str, names: list[str]) -> str:
    """The longest part of a name, from its front, that no other name shares; cut one level deeper.

    With one stack it is "", the whole encoder.
    """
    others = [other for other in names if other != name]
    parts = name.split(".")
    for depth in range(len(parts)):
        root = ".".join(parts[:depth])
        if not any(other.startswith(f"{root}." if root else "") for other in others):
            return root
    return name


def _common(names: list[str]) -> str:
    """The modules at the front that all names share, with a dot."""
    parts = [name.split(".") for name in names]
    depth = 0
    while all(len(p) > depth + 1 and p[depth] == parts[0][depth] for p in parts):
        depth += 1
    return "".join(f"{part}." for part in parts[0][:depth])


def encoder_groups(encoder: nn.Module, rate: float, decay: float | None) -> list[dict[str, Any]]:
    """The encoder's trained parameters in groups, those with the full rate first.

    Each group has a name, and `rate_of`, which groups of the same rate have in common.

    Args:
        encoder: what is trained.
        rate: the full one.
        decay: of the rate, from layer to layer downwards; None = one rate for all.

    Raises:
        ModelError: for a decay, if no layers can be told apart.
    """
    trained = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
    if decay is None:
        return _by_decay(trained)
    stacks = layers_of(encoder)
    if not stacks:
        called = getattr(encoder, "name", type(encoder).__name__)
        raise ModelError(
            f"optimizer_options.layer_wise_lr_decay: no layers can be told apart in '{called}'. "
            "They are to be the entries of a torch.nn.ModuleList or torch.nn.Sequential"
        )
    place = {id(p): i for i, p in enumerate(encoder.parameters())}
    members: dict[tuple[int, str], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trained:
        depth, label = _depth(name, parameter, place[id(parameter)], stacks)
        members.setdefault((depth, label), []).append((name, parameter))
    return [
        {**group, "lr": rate * decay**depth}
        for (depth, label), parameters in sorted(members.items(), key=lambda entry: entry[0])
        for group in _by_decay(parameters, label)
    ]


def _by_decay(parameters: list[tuple[str, nn.Parameter]], label: str = "") -> list[dict[str, Any]]:
    """Weights of two or more dimensions, which decay, and biases and norms, which do not."""
    decayed = {"params": [p for _, p in parameters if p.ndim >= 2]}
    plain = {"params": [p for _, p in parameters if p.ndim < 2], "weight_decay": 0.0}
    named: list[dict[str, Any]] = []
    for name, group in (("decayed", decayed), ("plain", plain)):
        shown = f"{label} {name}" if label else name
        named.append({"name": shown, "rate_of": label or name, **group})
    return [group for group in named if group["params"]]


def _depth(name: str, parameter: nn.Parameter, place: int, stacks: list[_Stack]) -> tuple[int, str]:
    """How many layers lie above a parameter, and the name of its layer, "" for a head."""
    for stack in stacks:
        number = stack.number_of.get(id(parameter))
        if number is not None:
            return len(stack.layers) - 1 - number, f"{stack.label}layer_{number:02d}"
    if HEADS.search(name):
        return 0, ""
    for stack in stacks:
        inside = name.startswith(f"{stack.root}.") if stack.root else True
        if inside and (place < stack.place or EMBEDDINGS.search(name[len(stack.root) :])):
            return len(stack.layers), f"{stack.label}embeddings"
    return 0, ""
