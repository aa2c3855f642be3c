"""Learning-rate schedules of transformers, by name: one factor for the rates of all groups.

A tick is an optimizer step or an epoch (`scheduler_options.scheduler_step`). Two optimizers (that
of the model and that of the loss) follow the same factor, each from its own rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ftray.config import FitConfig
from ftray.errors import ConfigError, nearest

__all__ = ["SCHEDULERS", "SCHEDULER_OPTIONS", "Schedule", "build_scheduler", "check_scheduler"]

DEFAULT_WARMUP_RATIO = 0.1
SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "polynomial",
    "warmup_stable_decay",
)
SCHEDULER_OPTIONS = {
    "cosine": {"num_cycles"},
    "cosine_with_min_lr": {"min_lr", "min_lr_rate", "num_cycles"},
    "cosine_with_restarts": {"num_cycles"},
    "inverse_sqrt": {"timescale"},
    "polynomial": {"lr_end", "power"},
    "warmup_stable_decay": {
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
        "num_decay_steps",
        "warmup_type",
    },
}
COMMON_OPTIONS = {"num_training_steps", "num_warmup_steps", "scheduler_step", "warmup_ratio"}
NOT_A_SCHEDULE = {
    "reduce_lr_on_plateau": "it follows a metric, and a schedule here is known before training",
    "greedy": "it follows the loss, and a schedule here is known before training",
}
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")
"""Those that do not know how long training is."""


def check_scheduler(name: str | None, options: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for an unknown schedule or option, with the nearest one."""
    if name in NOT_A_SCHEDULE:
        raise ConfigError(f"scheduler = '{name}' cannot be used here: {NOT_A_SCHEDULE[name]}.")
    if name is not None and name not in SCHEDULERS:
        raise ConfigError(f"There is no scheduler '{name}'.{nearest(name, SCHEDULERS)}")
    allowed = SCHEDULER_OPTIONS.get(name or "linear", set())
    if name != "constant":
        allowed = allowed | COMMON_OPTIONS
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"scheduler_options.{option}: {name or 'linear'} has no such option."
                f"{nearest(option, allowed)}"
            )
    if "warmup_ratio" in options and "num_warmup_steps" in options:
        raise ConfigError("scheduler_options: give warmup_ratio or num_warmup_steps, not both")
    _check_numbers(options)


def _check_numbers(options: Mapping[str, Any]) -> None:
    ratio, warmup = options.get("warmup_ratio", 0.0), options.get("num_warmup_steps", 0)
    total, each = options.get("num_training_steps", "auto"), options.get("scheduler_step", "batch")
    if not (_is_number(ratio) and 0 <= ratio <= 1):
        raise ConfigError(f"scheduler_options.warmup_ratio = {ratio!r}: a number from 0 to 1")
    if not (_is_count(warmup) and warmup >= 0):
        raise ConfigError(f"scheduler_options.num_warmup_steps = {warmup!r}: zero or more steps")
    if total != "auto" and not (_is_count(total) and total >= 1):
        raise ConfigError(
            f"scheduler_options.num_training_steps = {total!r}: 'auto', or one or more steps"
        )
    if each not in ("batch", "epoch"):
        raise ConfigError(
            f"scheduler_options.scheduler_step = {each!r}: 'batch' (the rate changes after each "
            "step) or 'epoch' (after each epoch)"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Schedule:
    """The rates of all groups of some optimizers, tick by tick.

    Args:
        optimizers: theirs are the rates; what they are now is the peak.
        factor: what multiplies them, for the number of ticks so far.
        each_epoch: whether an epoch is a tick; else an optimizer step is.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        factor: Callable[[int], float],
        *,
        each_epoch: bool = False,
    ) -> None:
        self._optimizers = optimizers
        self._peaks = [float(group["lr"]) for group in self._groups()]
        self._factor = factor
        self._each_epoch = each_epoch
        self._ticks = 0
        self._apply()

    def step(self, *, epoch_ends: bool = False) -> None:
        """An optimizer step was made, maybe the last one of its epoch."""
        if epoch_ends or not self._each_epoch:
            self._ticks += 1
            self._apply()

    def _groups(self) -> list[dict[str, Any]]:
        """Asked each time: an optimizer has other ones after it loaded a state."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def _apply(self) -> None:
        for group, peak in zip(self._groups(), self._peaks, strict=True):
            group["lr"] = peak * self._factor(self._ticks)

    def state_dict(self) -> dict[str, Any]:
        """How many ticks there were."""
        return {"last_epoch": self._ticks}  # as torch's schedulers call it

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after so many ticks, from the peaks that are configured now.

        Those are what they were, except where PBT changed them.
        """
        self._ticks = int(state["last_epoch"])
        self._apply()


def build_scheduler(
    config: FitConfig, optimizers: Sequence[torch.optim.Optimizer], steps: int, epochs: int = 1
) -> Schedule:
    """The schedule of a run.

    Without a name: linear warm-up over `warmup_ratio` of all steps, then linear decay to zero.

    With `scheduler_step: epoch` warm-up and length are numbers of epochs, and the rate of an epoch
    is that of its number: of n epochs of warm-up the first is trained with 1 / (n + 1) of the rate,
    where one that begins at zero would learn nothing.

    Args:
        config: names the schedule.
        optimizers: whose rates follow it.
        steps: optimizer steps of the whole run.
        epochs: of the whole run.

    Raises:
        ConfigError: for option values that the schedule refuses.
    """
    check_scheduler(config.scheduler, config.scheduler_options)
    name = config.scheduler or "linear"
    options = dict(config.scheduler_options)
    each_epoch = options.pop("scheduler_step", "batch") == "epoch"
    total = options.pop("num_training_steps", "auto")
    total = max(epochs if each_epoch else steps, 1) if total == "auto" else total
    ratio = options.pop("warmup_ratio", DEFAULT_WARMUP_RATIO)
    warmup = options.pop("num_warmup_steps", round(ratio * total))
    if name == "inverse_sqrt":
        options.setdefault("timescale", warmup or 10_000)  # its own default
    try:
        factor = _factor(name, optimizers[0], warmup + each_epoch, total + each_epoch, options)
        factor(total + each_epoch)  # where it divides by zero, if it does
        last = math.inf if name in ENDLESS else total
        schedule = Schedule(
            optimizers,
            lambda tick: factor(int(min(tick, last)) + each_epoch),
            each_epoch=each_epoch,
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"scheduler_options do not fit {name}: {error} (given: {config.scheduler_options})"
        ) from None
    return schedule


def _factor(
    name: str, optimizer: torch.optim.Optimizer, warmup: int, total: int, options: dict[str, Any]
) -> Callable[[int], float]:
    """What transformers' schedule multiplies the rates with; the optimizer stays as it is."""
    from transformers import get_scheduler

    rate = optimizer.defaults["lr"]
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=rate)
    schedule: Any = get_scheduler(
        name,
        stand_in,
        num_warmup_steps=None if name == "constant" else warmup,
        num_training_steps=total,
        scheduler_specific_kwargs=options or None,
    )
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor
