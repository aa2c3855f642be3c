"""Optimizers of torch and schedules of transformers, by name.

Weight decay leaves biases, norms and the loss's own parameters alone; clipping includes the loss's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ftray.config import FitConfig
from ftray.errors import ConfigError, nearest
from ftray.models.base import Encoder

__all__ = ["build_optimizer", "build_scheduler", "check_optimizer", "check_scheduler"]

DEFAULT_WARMUP_RATIO = 0.1
SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
)
SCHEDULER_OPTIONS = {
    "cosine": {"num_cycles"},
    "cosine_with_restarts": {"num_cycles"},
    "inverse_sqrt": {"timescale"},
    "polynomial": {"lr_end", "power"},
}
NOT_STEPWISE = {"LBFGS": "it calls the model several times per step"}
NOT_STEPWISE["SparseAdam"] = "it takes sparse gradients only"
NOT_STEPWISE["Muon"] = "it takes matrices only, and encoders have biases and norms too"


def _optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    return {
        name: cls
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls)
        and issubclass(cls, torch.optim.Optimizer)
        and cls is not torch.optim.Optimizer
        and name not in NOT_STEPWISE
    }


def check_optimizer(name: str, options: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for an unknown optimizer or option, with the nearest one."""
    if name in NOT_STEPWISE:
        raise ConfigError(f"optimizer = '{name}' cannot be used here: {NOT_STEPWISE[name]}.")
    known = _optimizers()
    if name not in known:
        raise ConfigError(f"There is no optimizer '{name}'.{nearest(name, known)}")
    allowed = set(inspect.signature(known[name].__init__).parameters) - {"self", "params"}
    for option in options:
        if option == "lr":
            raise ConfigError("optimizer_options.lr: give learning_rate instead")
        if option not in allowed:
            raise ConfigError(
                f"optimizer_options.{option}: {name} has no such option.{nearest(option, allowed)}"
            )


def check_scheduler(name: str | None, options: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for an unknown schedule or option, with the nearest one."""
    if name is not None and name not in SCHEDULERS:
        raise ConfigError(f"There is no scheduler '{name}'.{nearest(name, SCHEDULERS)}")
    allowed = SCHEDULER_OPTIONS.get(name or "linear", set())
    if name != "constant":
        allowed = allowed | {"warmup_ratio", "num_warmup_steps"}
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"scheduler_options.{option}: {name or 'linear'} has no such option."
                f"{nearest(option, allowed)}"
            )
    if "warmup_ratio" in options and "num_warmup_steps" in options:
        raise ConfigError("scheduler_options: give warmup_ratio or num_warmup_steps, not both")
    ratio, steps = options.get("warmup_ratio", 0.0), options.get("num_warmup_steps", 0)
    if not (isinstance(ratio, int | float) and 0 <= ratio <= 1):
        raise ConfigError(f"scheduler_options.warmup_ratio = {ratio!r}: a number from 0 to 1")
    if not (isinstance(steps, int) and steps >= 0):
        raise ConfigError(f"scheduler_options.num_warmup_steps = {steps!r}: zero or more steps")


def build_optimizer(config: FitConfig, encoder: nn.Module, loss: nn.Module) -> Any:
    """The optimizer over the encoder's and the loss's parameters.

    Groups: "decayed" (weights of two or more dimensions), "plain" (biases and norms), and "loss".
    The fused implementation is used where torch has one, unless an option says otherwise.

    Raises:
        ConfigError: for option values that the optimizer refuses.
    """
    check_optimizer(config.optimizer, config.optimizer_options)
    cls = _optimizers()[config.optimizer]
    trained = [p for p in encoder.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"name": "decayed", "params": [p for p in trained if p.ndim >= 2]},
        {"name": "plain", "params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        {"name": "loss", "params": list(loss.parameters()), "weight_decay": 0.0},
    ]
    default = encoder.learning_rate if isinstance(encoder, Encoder) else Encoder.learning_rate
    arguments = inspect.signature(cls.__init__).parameters
    if "weight_decay" not in arguments:
        for group in groups:
            group.pop("weight_decay", None)
    options: dict[str, Any] = {"lr": config.learning_rate or default}
    options.update(config.optimizer_options)
    if "fused" in arguments and not {"fused", "foreach"} & set(options):
        options["fused"] = True
    try:
        return cls([group for group in groups if group["params"]], **options)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"optimizer_options do not fit {config.optimizer}: {error} "
            f"(given: {config.optimizer_options})"
        ) from None


def build_scheduler(config: FitConfig, optimizer: torch.optim.Optimizer, total_steps: int) -> Any:
    """The learning-rate schedule, one tick per optimizer step.

    Without a name: linear warm-up over `warmup_ratio` of all steps, then linear decay to zero.

    Raises:
        ConfigError: for option values that the schedule refuses.
    """
    from transformers import get_scheduler

    check_scheduler(config.scheduler, config.scheduler_options)
    name = config.scheduler or "linear"
    options = dict(config.scheduler_options)
    ratio = options.pop("warmup_ratio", DEFAULT_WARMUP_RATIO)
    warmup = options.pop("num_warmup_steps", round(ratio * total_steps))
    try:
        return get_scheduler(
            name,
            optimizer,
            num_warmup_steps=None if name == "constant" else warmup,
            num_training_steps=max(total_steps, 1),
            scheduler_specific_kwargs=options or None,
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"scheduler_options do not fit {name}: {error} (given: {config.scheduler_options})"
        ) from None
