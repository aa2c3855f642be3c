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
from ftray.words import counted

__all__ = ["SCHEDULERS", "SCHEDULER_OPTIONS", "Schedule", "build_scheduler", "check_length"]
__all__ += ["check_scheduler"]

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
SHARES = ("min_lr_rate", "min_lr_ratio", "warmup_ratio")
ABOVE_ZERO = ("num_cycles", "power", "timescale")
COUNTS = ("num_decay_steps", "num_warmup_steps")
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
    allowed = SCHEDULER_OPTIONS.get(name or "linear", set()) | COMMON_OPTIONS
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"scheduler_options.{option}: {name or 'linear'} has no such option."
                f"{nearest(option, allowed)}"
            )
    if "warmup_ratio" in options and "num_warmup_steps" in options:
        raise ConfigError("scheduler_options: give warmup_ratio or num_warmup_steps, not both")
    _check_numbers(options)
    for option in ("warmup_ratio", "num_warmup_steps"):
        if name == "constant" and options.get(option):
            raise ConfigError(
                f"scheduler_options.{option} = {options[option]!r}: constant has no warm-up; "
                "constant_with_warmup has"
            )


def _check_numbers(options: Mapping[str, Any]) -> None:
    for option, value in options.items():
        wanted = ""
        if option in SHARES and not (_is_number(value) and 0 <= value <= 1):
            wanted = "a number from 0 to 1"
        elif option in ABOVE_ZERO and not (_is_number(value) and value > 0):
            wanted = "a number above 0"
        elif option in COUNTS and not (_is_count(value) and value >= 0):
            wanted = "zero or more steps"
        if wanted:
            raise ConfigError(f"scheduler_options.{option} = {value!r}: {wanted}")
    total, each = options.get("num_training_steps", "auto"), options.get("scheduler_step", "batch")
    if total != "auto" and not (_is_count(total) and total >= 1):
        raise ConfigError(
            f"scheduler_options.num_training_steps = {total!r}: 'auto', or one or more steps"
        )
    if each not in ("batch", "epoch"):
        raise ConfigError(
            f"scheduler_options.scheduler_step = {each!r}: 'batch' (the rate changes after each "
            "step) or 'epoch' (after each epoch)"
        )


def check_length(config: FitConfig, steps: int) -> None:
    """Raise a `ConfigError` for a run that is over before the stages of its schedule are.

    Args:
        config: names the schedule; its options are checked.
        steps: optimizer steps of the whole run, at least one.
    """
    given = config.scheduler_options
    each_epoch, total, warmup = _lengths(given, steps, config.epochs)
    run, decay = config.epochs if each_epoch else steps, given.get("num_decay_steps", 0)
    if config.scheduler == "constant" or (warmup <= run and warmup + decay <= total):
        return
    noun = "epoch" if each_epoch else "step"
    what = f"a warm-up of {counted(warmup, noun)}"
    if warmup + decay > total:
        what, run = f"{what} and a decay of {decay:,}" if decay else what, total
    raise ConfigError(
        f"scheduler_options: {what}, but there are only {counted(run, noun)} (given: {given})"
    )


def _lengths(options: Mapping[str, Any], steps: int, epochs: int) -> tuple[bool, int, int]:
    """Whether a tick is an epoch, and ticks until the schedule's end, and of its warm-up."""
    each_epoch = options.get("scheduler_step", "batch") == "epoch"
    total = options.get("num_training_steps", "auto")
    total = max(epochs if each_epoch else steps, 1) if total == "auto" else total
    ratio = options.get("warmup_ratio", DEFAULT_WARMUP_RATIO)
    return each_epoch, total, options.get("num_warmup_steps", round(ratio * total))


def _check_ends(options: Mapping[str, Any], rate: float) -> None:
    """Raise a `ConfigError` for a last rate above the first, or below zero."""
    end, least = options.get("lr_end", 0.0), options.get("min_lr", 0.0)
    if not (_is_number(end) and 0 <= end < rate):
        raise ConfigError(
            f"scheduler_options.lr_end = {end!r}: from 0 to below the learning rate, {rate:g}"
        )
    if not (_is_number(least) and 0 <= least <= rate):
        raise ConfigError(
            f"scheduler_options.min_lr = {least!r}: from 0 to the learning rate, {rate:g}"
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

    def step(self, *, epoch_ends: bool = False, made: bool = True) -> None:
        """A step is over, maybe the last one of its epoch; `made` unless it was left out."""
        if epoch_ends if self._each_epoch else made:
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
    _check_ends(config.scheduler_options, optimizers[0].defaults["lr"])
    each_epoch, total, warmup = _lengths(config.scheduler_options, steps, epochs)
    options = {k: v for k, v in config.scheduler_options.items() if k not in COMMON_OPTIONS}
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
