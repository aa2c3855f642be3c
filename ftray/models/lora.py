"""Low-rank adapters (Hu et al. 2021, "LoRA"), by peft: few trained weights beside frozen ones.

A layer's weight W becomes W + (lora_alpha / r) B A, where W stays as it is and A `(r, in)` and B
`(out, r)` are trained. B begins as zero, so that training begins with the model as it is.

Adapters go into the models of transformers alone. What stands after one (projections, dense
layers, a learnt pooling) is trained as it is without adapters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ftray.errors import ConfigError, nearest
from ftray.models.base import Encoder
from ftray.models.lora_options import LoraOptions, check_lora

__all__ = ["FOLDER", "Adapter", "add_adapters", "keeps_tuned", "merged", "save_adapters"]

FOLDER = "adapter"
"""Beside the merged weights of an artifact: the adapter alone, as peft keeps it."""
_NAME = "default"
_BASE = "base_model.model."
"""How peft begins the names of weights in the files of an adapter."""
_NOT_SCALED = (".lora_A.", ".lora_embedding_B.")
"""Of the two factors, those that do not begin as zero (of embeddings, peft begins with A = 0)."""

_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


@dataclass(frozen=True)
class Adapter:
    """What was put into one model of transformers.

    Attributes:
        name: of the model within its encoder; "" where it is the only one.
        backbone: the model, with adapters in it.
        config: peft's `LoraConfig`.
    """

    name: str
    backbone: nn.Module
    config: Any


def add_adapters(encoder: Encoder, options: Mapping[str, Any], seed: int) -> None:
    """Put adapters into an encoder, in place; the weights of its models of transformers freeze.

    What is frozen already gets no adapters. Embeddings of tokens that stand in the place of a model
    of transformers, as in a static tower for queries, can have none, and freeze with the rest.

    Args:
        encoder: before training.
        options: see `LoraOptions`.
        seed: of the adapters' weights.

    Raises:
        ConfigError: as `check_lora`, and for layers that the model does not have, whatever option
            names them.
    """
    chosen = check_lora(options, encoder.kind, encoder.name)
    backbones = [each for part in encoder.trained_parts for each in part.backbones.values()]
    _check_layers(chosen, backbones, encoder.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in encoder.trained_parts:
            check_lora(options, part.kind, part.name)
            for module in part.static_embeddings:
                module.requires_grad_(False)
            part.adapters = [
                _added(name, backbone, chosen, part.name)
                for name, backbone in part.backbones.items()
                if any(parameter.requires_grad for parameter in backbone.parameters())
            ]
    if not any(part.adapters for part in encoder.trained_parts):
        raise ConfigError(f"lora: nothing of '{encoder.name}' could be given adapters")
    _check_used(chosen, backbones, encoder.name)


def _check_layers(options: LoraOptions, backbones: list[nn.Module], model: str) -> None:
    """Refuse layers to exclude and numbers of layers that there are not, which peft passes over.

    Numbers are found as peft finds them: the first in the name of a layer.
    """
    modules = [pair for backbone in backbones for pair in backbone.named_modules()]
    layers = [path for path, module in modules if _is_adaptable(module)]
    for pattern, name in _excluded_by_user(options):
        if not any(re.fullmatch(pattern, path) for path in layers):
            raise ConfigError(
                f"lora.exclude_modules: '{model}' has no layer '{name}' that could have adapters."
                f"{nearest(name, _ends(layers))}"
            )
    wanted = options.layers_to_transform
    if wanted is None:
        return
    paths = [path for path, _ in modules]
    given = options.layers_pattern or r"[^.]*"
    starts = [rf"(?:.*?\.)?{name}" for name in ([given] if isinstance(given, str) else given)]
    found = (re.match(rf"{start}\.(\d+)\.", path) for start in starts for path in paths)
    numbers = sorted({int(match[1]) for match in found if match})
    if not numbers:
        lists = {path.split(".")[-2] for path in paths if re.search(r"[^.]\.\d+$", path)}
        near = nearest(given, lists) if isinstance(given, str) else ""
        raise ConfigError(f"lora.layers_pattern = {given!r}: '{model}' has no such layers.{near}")
    for number in [wanted] if isinstance(wanted, int) else wanted:
        if number not in numbers:
            raise ConfigError(
                f"lora.layers_to_transform: '{model}' has no layer {number}, but those from "
                f"{numbers[0]} to {numbers[-1]}"
            )


def _check_used(options: LoraOptions, backbones: list[nn.Module], model: str) -> None:
    """Refuse names that no layer with adapters has, which peft passes over."""
    from peft.tuners.lora import LoraLayer

    modules = [pair for backbone in backbones for pair in backbone.named_modules()]
    adapted = [path for path, module in modules if isinstance(module, LoraLayer)]
    for option in ("rank_pattern", "alpha_pattern"):
        for name in getattr(options, option):
            if not any(re.match(rf"(.*\.)?({name})$", path) for path in adapted):  # peft's rule
                near = nearest(name, _ends(adapted))
                raise ConfigError(
                    f"lora.{option}: no layer of '{model}' that has adapters is called '{name}'."
                    f"{near}"
                )


def _is_adaptable(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (*_ADAPTABLE, Conv1D))


def _ends(paths: Iterable[str]) -> set[str]:
    """The last words of names of layers."""
    return {end for path in paths if not (end := path.rsplit(".", 1)[-1]).isdecimal()}


def _added(name: str, backbone: nn.Module, options: LoraOptions, model: str) -> Adapter:
    from peft import LoraConfig, inject_adapter_in_model

    excluded = _excluded(options, backbone)
    targets = _targets(options, backbone, excluded, model)
    given = options.model_dump() | {"target_modules": targets, "exclude_modules": excluded}
    try:
        config = LoraConfig(**given)
        inject_adapter_in_model(config, backbone, _NAME)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"lora does not fit '{model}': {reason}") from None
    return Adapter(name, backbone, config)


def _targets(
    options: LoraOptions, backbone: Any, excluded: str | None, model: str
) -> list[str] | str:
    """The layers that get adapters, as peft takes them; every name is one of a layer.

    Args:
        options: as the user gave them.
        backbone: before there are adapters.
        excluded: a regular expression of what gets none.
        model: what the user called it.
    """
    targets = options.target_modules
    if targets is None:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        known: dict[str, list[str] | str] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        targets = known.get(backbone.config.model_type, "all-linear")
        if isinstance(targets, str) and options.layers_to_transform is not None:
            raise ConfigError(
                f"lora.layers_to_transform goes with a list of names, and of '{model}' all linear "
                "layers get adapters: give target_modules besides"
            )
        return targets
    if targets == "all-linear":
        return targets
    modules = {path: module for path, module in backbone.named_modules() if path}
    layers = _ends(path for path, module in modules.items() if _is_adaptable(module))
    for target in [targets] if isinstance(targets, str) else targets:
        pattern = target if isinstance(targets, str) else _end_of(target)
        meant = [path for path in modules if re.fullmatch(pattern, path)]
        if not meant:
            what = "layer" if isinstance(targets, list) else "layer whose whole name is like"
            raise ConfigError(
                f"lora.target_modules: '{model}' has no {what} '{target}'.{nearest(target, layers)}"
            )
        for path in meant:
            is_out = excluded is not None and re.fullmatch(excluded, path)
            if not is_out and not _is_adaptable(modules[path]):
                raise ConfigError(
                    f"lora.target_modules: '{target}' is {path} of '{model}', a "
                    f"{type(modules[path]).__name__}, which can have no adapters: name linear "
                    f"layers, convolutions or embeddings.{nearest(target, layers)}"
                )
    return targets


def _end_of(name: str) -> str:
    """A regular expression of the layers whose names end so."""
    return rf"(?:.*\.)?{re.escape(name)}"


def _excluded_by_user(options: LoraOptions) -> Iterator[tuple[str, str]]:
    """Regular expressions of what is to get no adapters, each with what the user wrote."""
    names = options.exclude_modules
    if isinstance(names, str):
        yield names, names
        return
    for name in names or ():
        yield _end_of(name), name


def _excluded(options: LoraOptions, backbone: nn.Module) -> str | None:
    """A regular expression of what gets no adapters, in place of the user's names.

    Besides what the user names: frozen modules, and the parts of torch's attention, which uses
    their weights and never calls them, so that adapters would not be trained.
    """
    patterns = [pattern for pattern, _ in _excluded_by_user(options)]
    for path, module in backbone.named_modules():
        weights = list(module.parameters())
        frozen = weights and not any(parameter.requires_grad for parameter in weights)
        if path and (frozen or isinstance(module, nn.MultiheadAttention)):
            patterns.append(rf"{re.escape(path)}(?:\..*)?")
    return "|".join(f"(?:{pattern})" for pattern in patterns) or None


def keeps_tuned(weight: str) -> bool:
    """Whether models between two are to have the trained values of a weight, whole.

    Between W and W + BA lies W + alpha BA: of the two factors one alone is scaled, the one that
    began as zero. The other, scaled too, would give alpha² and not alpha.

    Args:
        weight: its name in the state of an encoder.
    """
    return any(part in f".{weight}" for part in _NOT_SCALED)


@contextmanager
def merged(encoder: Encoder) -> Iterator[None]:
    """Plain layers with merged weights in place of those with adapters, and these back afterwards.

    What was there comes back bit by bit: nothing is computed back.
    """
    if not encoder.adapters:
        yield
        return
    from peft.tuners.lora import LoraLayer

    changed: list[tuple[nn.Module, str, Any, Any, Tensor]] = []
    try:
        for adapter in encoder.adapters:
            for path, layer in list(adapter.backbone.named_modules()):
                if isinstance(layer, LoraLayer):
                    base: Any = layer.get_base_layer()
                    changed.append((adapter.backbone, path, layer, base, base.weight.data))
                    layer.merge(safe_merge=True)  # into a new tensor
                    adapter.backbone.set_submodule(path, base)
        yield
    finally:
        for backbone, path, layer, base, weight in changed:
            base.weight.data = weight
            layer.merged_adapters.clear()
            backbone.set_submodule(path, layer)


def save_adapters(encoder: Encoder, folder: Path, base: str) -> None:
    """Write the adapters alone into `adapter/`, where peft's `PeftModel.from_pretrained` reads it.

    Several, of an encoder with several models of transformers, lie there in folders of their names.

    Args:
        encoder: whose.
        folder: of the model, which is there.
        base: what the model without adapters is called.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    for adapter in encoder.adapters:
        own = folder / FOLDER / adapter.name
        own.mkdir(parents=True)
        state = get_peft_model_state_dict(
            adapter.backbone, adapter_name=_NAME, save_embedding_layers=False
        )
        tensors = {
            _BASE + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()
        }
        save_file(tensors, own / "adapter_model.safetensors", metadata={"format": "pt"})
        adapter.config.base_model_name_or_path = base
        adapter.config.save_pretrained(str(own))
