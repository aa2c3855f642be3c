"""Optimizers of torch, by name, over the encoder's and the loss's parameters.

Weight decay leaves biases, norms and the loss's own parameters alone; clipping includes the loss's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ftray.config import FitConfig
from ftray.errors import ConfigError, nearest
from ftray.models.base import Encoder
from ftray.training.groups import encoder_groups

__all__ = ["NOT_STEPWISE", "build_optimizer", "build_optimizers", "check_loss_optimizer"]
__all__ += ["check_optimizer"]

LAYER_DECAY = "layer_wise_lr_decay"
NOT_STEPWISE = {
    "LBFGS": "it calls the model several times per step",
    "Muon": "it takes matrices only, and encoders have biases and norms too",
    "SparseAdam": "it takes sparse gradients only",
}


NOT_HERE = {
    "capturable": "it is for CUDA graphs, and a step is not captured in one",
    "differentiable": "it is for gradients through the optimizer, and there are none",
    "maximize": "it would raise the loss, which is to fall",
}
"""Options of optimizers that may be false alone."""


def _optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    return {
        name: cls
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls)
        and issubclass(cls, torch.optim.Optimizer)
        and cls is not torch.optim.Optimizer
        and name not in NOT_STEPWISE
    }


def check_optimizer(
    name: str, options: Mapping[str, Any], *, where: str = "optimizer", of_loss: bool = False
) -> None:
    """Raise a `ConfigError` for an unknown optimizer or option, with the nearest one.

    Args:
        name: a class of torch.optim.
        options: its own, and `layer_wise_lr_decay`; that of the loss has `lr` instead.
        where: the field that names it.
        of_loss: whether it is that of the loss.
    """
    if name in NOT_STEPWISE:
        raise ConfigError(f"{where} = '{name}' cannot be used here: {NOT_STEPWISE[name]}.")
    known = _optimizers()
    if name not in known:
        raise ConfigError(f"There is no optimizer '{name}'.{nearest(name, known)}")
    parameters = inspect.signature(known[name].__init__).parameters
    allowed = set(parameters) - {"self", "params"}
    if not of_loss:
        allowed = (allowed - {"lr"}) | {LAYER_DECAY}
    for option, value in options.items():
        if option == "lr" and not of_loss:
            raise ConfigError("optimizer_options.lr: give learning_rate instead")
        if option not in allowed:
            raise ConfigError(
                f"{where}_options.{option}: {name} has no such option.{nearest(option, allowed)}"
            )
        if value and option in NOT_HERE:
            raise ConfigError(f"{where}_options.{option} = {value!r}: {NOT_HERE[option]}")
        if option in parameters:
            _check_value(f"{where}_options.{option}", value, parameters[option].default)
    decay = options.get(LAYER_DECAY, 1.0)
    if not _is_number(decay) or not 0 < decay <= 1:
        raise ConfigError(
            f"{where}_options.{LAYER_DECAY} = {decay!r}: above 0, and at most 1 (all layers alike)"
        )


def _check_value(name: str, value: Any, default: Any) -> None:
    """Raise a `ConfigError` for a value of another kind than the default of torch's option."""
    if isinstance(default, tuple):
        are_numbers = isinstance(value, list | tuple) and all(
            _is_number(one) or one is usual for one, usual in zip(value, default, strict=False)
        )
        if not are_numbers or len(value) != len(default):
            raise ConfigError(
                f"{name} = {value!r}: {len(default)} numbers are expected, as {[*default]}"
            )
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{name} = {value!r}: true or false is expected")
    elif isinstance(default, int | float) and not _is_number(value):
        raise ConfigError(f"{name} = {value!r}: a number is expected, as {default}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_loss_optimizer(config: FitConfig, loss: nn.Module) -> None:
    """Raise a `ConfigError` for an optimizer of the loss that it has no use for, or unknown ones.

    Args:
        config: what the user wants.
        loss: the loss, of whatever width.
    """
    if not _loss_is_apart(config):
        return
    if not any(True for _ in loss.parameters()):
        given = "loss_optimizer" if config.loss_optimizer is not None else "loss_optimizer_options"
        raise ConfigError(f"{given}: {config.loss} has no parameters of its own to optimize")
    name = config.loss_optimizer or config.optimizer
    check_optimizer(name, config.loss_optimizer_options, where="loss_optimizer", of_loss=True)


def _loss_is_apart(config: FitConfig) -> bool:
    """Whether the loss's parameters have an optimizer of their own."""
    return config.loss_optimizer is not None or bool(config.loss_optimizer_options)


def build_optimizers(
    config: FitConfig, encoder: nn.Module, loss: nn.Module
) -> list[torch.optim.Optimizer]:
    """That of the encoder (and of the loss), and that of the loss if it has its own.

    Raises:
        ConfigError: for option values that an optimizer refuses.
    """
    if not _loss_is_apart(config):
        return [build_optimizer(config, encoder, loss)]
    check_loss_optimizer(config, loss)
    name, rate = config.loss_optimizer or config.optimizer, _rate(config, encoder)
    groups = [{"name": "loss", "params": list(loss.parameters())}]
    options = {"lr": rate, "weight_decay": 0.0, **config.loss_optimizer_options}
    if "weight_decay" not in inspect.signature(_optimizers()[name].__init__).parameters:
        options.pop("weight_decay", None)
    return [
        build_optimizer(config, encoder, nn.Identity()),
        _built(name, groups, options, "loss_optimizer", config.loss_optimizer_options),
    ]


def build_optimizer(
    config: FitConfig, encoder: nn.Module, loss: nn.Module
) -> torch.optim.Optimizer:
    """One optimizer over the encoder's and the loss's parameters.

    Groups: "decayed" (weights of two or more dimensions), "plain" (biases and norms), and "loss";
    with `layer_wise_lr_decay` the first two for each layer as well. The first group has the full
    rate.

    Raises:
        ConfigError: for option values that the optimizer refuses.
        ModelError: for a `layer_wise_lr_decay`, if no layers can be told apart.
    """
    check_optimizer(config.optimizer, config.optimizer_options)
    options, rate = dict(config.optimizer_options), _rate(config, encoder)
    groups = encoder_groups(encoder, rate, options.pop(LAYER_DECAY, None))
    own = list(loss.parameters())
    if own:
        groups.append({"name": "loss", "params": own, "weight_decay": 0.0})
    if "weight_decay" not in inspect.signature(_optimizers()[config.optimizer].__init__).parameters:
        for group in groups:
            group.pop("weight_decay", None)
    return _built(
        config.optimizer, groups, {"lr": rate, **options}, "optimizer", config.optimizer_options
    )


def _rate(config: FitConfig, encoder: nn.Module) -> float:
    default = encoder.learning_rate if isinstance(encoder, Encoder) else Encoder.learning_rate
    return config.learning_rate or default


def _built(
    name: str,
    groups: Sequence[dict[str, Any]],
    options: dict[str, Any],
    where: str,
    given: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """An optimizer of torch; the fused implementation, if there is one and no option forbids it."""
    cls: Any = _optimizers()[name]
    if "fused" in inspect.signature(cls.__init__).parameters and not (
        {"fused", "foreach"} & set(options)
    ):
        options = {**options, "fused": True}
    try:
        optimizer: torch.optim.Optimizer = cls(groups, **options)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise ConfigError(f"{where}_options do not fit {name}: {error} (given: {given})") from None
    return optimizer
