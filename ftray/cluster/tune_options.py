"""The options of a sweep as objects of Ray Tune: schedulers, domains, Optuna."""

from __future__ import annotations

import inspect
from typing import Any

from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from ftray.cluster.tuning import CLOCK, VALUES
from ftray.errors import ConfigError, nearest
from ftray.sweeps.config import SweepConfig
from ftray.sweeps.record import SweepState
from ftray.sweeps.space import Domain

__all__ = ["make_scheduler", "make_searcher"]

RESERVED = ("metric", "mode", "hyperparam_mutations", "time_attr")


def make_scheduler(sweep: SweepConfig) -> TrialScheduler:
    """The scheduler that is asked for, with our defaults under the user's options.

    Args:
        sweep: what is asked for.

    Raises:
        ConfigError: for options that it refuses.
    """
    name, given = sweep.scheduler, dict(sweep.scheduler_options)
    if name == "none":
        return FIFOScheduler()
    defaults: dict[str, Any] = {"time_attr": CLOCK}
    if name == "asha":
        cls: Any = ASHAScheduler
        defaults.update(max_t=max(sweep.most_epochs, 1), grace_period=1, reduction_factor=3)
    elif name == "median":
        cls = MedianStoppingRule
        defaults.update(grace_period=1, min_samples_required=3)
    else:
        cls = PopulationBasedTraining
        defaults.update(
            perturbation_interval=1,
            hyperparam_mutations={VALUES: {n: _domain(d) for n, d in sweep.parsed_space.items()}},
            log_config=False,
        )
    for option in given:
        allowed = set(inspect.signature(cls.__init__).parameters) - {"self", *RESERVED}
        if option not in allowed:
            raise ConfigError(
                f"scheduler_options.{option}: {name} has no such option.{nearest(option, allowed)}"
            )
    try:
        scheduler: TrialScheduler = cls(**{**defaults, **given})
    except (TypeError, ValueError, AssertionError, TuneError) as error:
        raise ConfigError(
            f"scheduler_options do not fit {name}: {error} (given: {given})"
        ) from None
    return scheduler


def _domain(domain: Domain) -> Any:
    """The same in Tune's words."""
    if domain.values:
        return tune.choice(list(domain.values))
    make = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "randint": tune.randint,
        "lograndint": tune.lograndint,
    }[domain.kind]
    limits = (domain.low, domain.high)
    return make(*(map(int, limits) if domain.kind.endswith("randint") else limits))


def make_searcher(sweep: SweepConfig, state: SweepState) -> Searcher:
    """Optuna, over the whole space; it knows what the trials on record have shown.

    Raises:
        ConfigError: if it is not installed, or refuses its options.
    """
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError:
        raise ConfigError(
            "search: optuna needs the package optuna: pip install 'ftray[optuna]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = sweep.parsed_space
    options = {"seed": sweep.seed + len(state.trials), **sweep.search_options}
    try:
        searcher: Searcher = OptunaSearch(**options)
    except TypeError as error:
        raise ConfigError(f"search_options do not fit OptunaSearch: {error}") from None
    searcher.set_search_properties(
        state.metric, state.mode, {name: _domain(domain) for name, domain in space.items()}
    )
    for trial in state.trials:
        if trial.has_score and trial.outcome in ("finished", "stopped"):
            inactive = {name: domain.first for name, domain in space.items()}
            searcher.add_evaluated_point({**inactive, **trial.values}, trial.score)
    return searcher
