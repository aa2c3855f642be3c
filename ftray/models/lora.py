"""Low-rank adapters (Hu et al. 2021, "LoRA"), by peft: few trained weights beside frozen ones.

A layer's weight W becomes W + (lora_alpha / r) B A, where W stays as it is and A `(r, in)` and B
`(out, r)` are trained. B begins as zero, so that training begins with the model as it is.

Adapters go into the models of transformers alone. What stands after one (projections, dense
layers, a learnt pooling) is trained as it is without adapters.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from ftray.errors import ConfigError, nearest
from ftray.models.base import Encoder

__all__ = ["FOLDER", "Adapter", "LoraOptions", "add_adapters", "check_lora", "keeps_tuned"]
__all__ += ["merged", "save_adapters"]

FOLDER = "adapter"
"""Beside the merged weights of an artifact: the adapter alone, as peft keeps it."""
KINDS = ("text", "image", "clip", "two-towers")
"""Kinds of models that are made of models of transformers."""
_NAME = "default"
_BASE = "base_model.model."
"""How peft begins the names of weights in the files of an adapter."""
_NOT_SCALED = (".lora_A.", ".lora_embedding_B.")
"""Of the two factors, those that do not begin as zero (of embeddings, peft begins with A = 0)."""

Names = list[str] | str | None


class LoraOptions(BaseModel):
    """Those options of peft's `LoraConfig` that keep the model one that can be merged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(8, ge=1, description="Rank of the adapters.")
    lora_alpha: float = Field(8, gt=0, description="The adapters count lora_alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Of what adapters are given.")
    target_modules: Names = Field(
        None,
        description="Layers that get adapters: ends of their names, one regular expression, or "
        "'all-linear'; None = as peft knows the architecture (often query and value), else "
        "all-linear.",
    )
    exclude_modules: Names = Field(None, description="Layers that get none.")
    layers_to_transform: list[int] | int | None = Field(
        None, description="Numbers of the layers that get adapters."
    )
    layers_pattern: list[str] | str | None = Field(
        None, description="What the list of layers is called, where that is not found."
    )
    rank_pattern: dict[str, int] = Field(
        default_factory=dict, description="Other ranks, by names of layers."
    )
    alpha_pattern: dict[str, float] = Field(
        default_factory=dict, description="Other values of lora_alpha, by names of layers."
    )
    use_rslora: bool = Field(
        False, description="lora_alpha / sqrt(r) in place of lora_alpha / r (Kalajdzievski 2023)."
    )
    init_lora_weights: Literal[True, "gaussian"] = Field(
        True, description="How A is drawn: uniformly, as linear layers are, or from a Gaussian."
    )

    @field_validator("r", "lora_alpha", "lora_dropout", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("a number is expected, not yes or no")
        return value


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


def check_lora(options: Mapping[str, Any], kind: str | None, model: str) -> LoraOptions:
    """The options, refused as far as it is known without the model that they do not fit.

    Args:
        options: as the user gave them.
        kind: of the model, None where it is not known.
        model: what the user called it.

    Raises:
        ConfigError: for an option or a value that there is not, a kind of model that has no model
            of transformers in it, or where peft is missing.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("lora needs peft, which is not installed. Run: pip install 'ftray[lora]'")
    if kind is not None and kind not in KINDS:
        raise ConfigError(
            f"lora puts adapters into models of transformers, and '{model}' is none: leave lora out"
        )
    try:
        return LoraOptions.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            there = nearest(option, LoraOptions.model_fields)
            raise ConfigError(f"lora has no option '{option}'.{there}") from None
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"lora.{option} = {options[option]!r}: {said[:1].lower()}{said[1:]}"
        ) from None


def add_adapters(encoder: Encoder, options: Mapping[str, Any], seed: int) -> None:
    """Put adapters into an encoder, in place; the weights of its models of transformers freeze.

    What is frozen already gets no adapters.

    Args:
        encoder: before training.
        options: see `LoraOptions`.
        seed: of the adapters' weights.

    Raises:
        ConfigError: as `check_lora`, and for layers that the model does not have.
    """
    chosen = check_lora(options, encoder.kind, encoder.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in encoder.trained_parts:
            check_lora(options, part.kind, part.name)
            part.adapters = [
                _added(name, backbone, chosen, part.name)
                for name, backbone in part.backbones.items()
                if any(parameter.requires_grad for parameter in backbone.parameters())
            ]
    if not any(part.adapters for part in encoder.trained_parts):
        raise ConfigError(f"lora: nothing of '{encoder.name}' could be given adapters")


def _added(name: str, backbone: nn.Module, options: LoraOptions, model: str) -> Adapter:
    from peft import LoraConfig, inject_adapter_in_model

    names = [path for path, _ in backbone.named_modules() if path]
    given = options.model_dump()
    config = LoraConfig(
        **given
        | {
            "target_modules": _targets(options, backbone, names, model),
            "exclude_modules": _excluded(options, backbone),
        }
    )
    try:
        inject_adapter_in_model(config, backbone, _NAME)
    except ValueError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"lora does not fit '{model}': {reason}") from None
    return Adapter(name, backbone, config)


def _targets(options: LoraOptions, backbone: Any, names: list[str], model: str) -> Names:
    """The layers that get adapters, as peft takes them; every name is one of a layer."""
    if options.target_modules is None:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

        known: dict[str, Names] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        return known.get(backbone.config.model_type, "all-linear")
    if isinstance(options.target_modules, list):
        for target in options.target_modules:
            if not any(path == target or path.endswith(f".{target}") for path in names):
                ends = {path.rsplit(".", 1)[-1] for path in names} - {""}
                layers = {end for end in ends if not end.isdecimal()}
                raise ConfigError(
                    f"lora.target_modules: '{model}' has no layer '{target}'."
                    f"{nearest(target, layers)}"
                )
    return options.target_modules


def _excluded(options: LoraOptions, backbone: nn.Module) -> str | None:
    """A regular expression of what gets no adapters, in place of the user's names.

    Besides what the user names: frozen modules, and the parts of torch's attention, which uses
    their weights and never calls them, so that adapters would not be trained.
    """
    patterns: list[str] = []
    if isinstance(options.exclude_modules, str):
        patterns.append(options.exclude_modules)
    else:
        patterns += [rf"(?:.*\.)?{re.escape(name)}" for name in options.exclude_modules or ()]
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
