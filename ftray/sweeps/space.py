"""The search space: what a sweep varies, written in YAML or in Python, and drawn from it.

A space maps dotted names of fields (`learning_rate`, `loss_options.margin`) to domains:

    {uniform: [low, high]}, {loguniform: [low, high]}    a float
    {randint: [low, high]}, {lograndint: [low, high]}    an integer; high is not included
    {choice: [a, b, …]}                                  one of them
    {grid: [a, b, …]}                                    each of them, with every draw of the others

and may add `if: {other name: value or list of values}`: the field keeps its own value in trials
where the other has none of these.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ftray.errors import ConfigError, nearest

__all__ = [
    "Domain",
    "Space",
    "active_values",
    "as_written",
    "drawn_points",
    "grid_points",
    "parse_space",
]

Kind = Literal["uniform", "loguniform", "randint", "lograndint", "choice", "grid"]
RANGES = ("uniform", "loguniform", "randint", "lograndint")
LISTS = ("choice", "grid")
SPELLINGS = {"log_uniform": "loguniform", "log-uniform": "loguniform", "grid_search": "grid"}


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The values that one field may take.

    Attributes:
        kind: how they are drawn.
        low, high: of a range.
        values: of a choice or a grid.
        condition: values of other fields, any of which each must have for this one to be varied.
    """

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    values: tuple[Any, ...] = ()
    condition: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def draw(self, random: np.random.Generator) -> Any:
        """A value; of a grid, too."""
        if self.values:
            return self.values[int(random.integers(len(self.values)))]
        if self.kind == "uniform":
            return float(random.uniform(self.low, self.high))
        if self.kind == "randint":
            return int(random.integers(int(self.low), int(self.high)))
        drawn = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        if self.kind == "loguniform":
            return min(max(drawn, self.low), self.high)
        return min(int(drawn), int(self.high) - 1)

    @property
    def first(self) -> Any:
        """A value of it, always the same."""
        if self.values:
            return self.values[0]
        return int(self.low) if self.kind.endswith("randint") else self.low

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether the field is varied in a trial with these values of the others."""
        return all(values.get(name) in allowed for name, allowed in self.condition.items())


Space = dict[str, Domain]


def as_written(domain: Domain) -> dict[str, Any]:
    """A domain as YAML has it."""
    arguments = list(domain.values) if domain.values else [domain.low, domain.high]
    condition = {name: list(values) for name, values in domain.condition.items()}
    return {domain.kind: arguments, **({"if": condition} if condition else {})}


def parse_space(given: Mapping[str, Any]) -> Space:
    """Read a space.

    Args:
        given: dotted names to domains as in YAML, or to those of `ray.tune`.

    Raises:
        ConfigError: for what is no domain, saying where and what is allowed.
    """
    if not given:
        raise ConfigError(
            "space is empty: it names what is varied, as in "
            "space: {learning_rate: {loguniform: [1e-5, 1e-3]}}"
        )
    space = {str(name): _domain(str(name), value) for name, value in given.items()}
    for name, domain in space.items():
        for other in domain.condition:
            if other not in space or other == name:
                raise ConfigError(
                    f"space.{name}: its condition names '{other}', which is not varied."
                    f"{nearest(other, [key for key in space if key != name])}"
                )
    return _ordered(space)


def _domain(name: str, value: Any) -> Domain:
    if type(value).__module__ == "ray.tune.search.sample":
        value = _from_tune(name, value)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"space.{name} = {value!r}: a domain is expected, as in "
            f"{name}: {{choice: [{value!r}]}}. {_allowed()}"
        )
    rest = dict(value)
    condition = _condition(name, rest.pop("if", None))
    if len(rest) != 1:
        raise ConfigError(f"space.{name}: one domain is expected, got {list(rest)}. {_allowed()}")
    ((given, arguments),) = rest.items()
    kind: Any = SPELLINGS.get(str(given), given)
    if kind in LISTS:
        if isinstance(arguments, str) or not isinstance(arguments, Sequence) or not arguments:
            raise ConfigError(f"space.{name}.{given} = {arguments!r}: a list of values is expected")
        _check_plain(name, arguments)
        return Domain(kind=kind, values=tuple(arguments), condition=condition)
    if kind in RANGES:
        low, high = _limits(name, kind, arguments)
        return Domain(kind=kind, low=low, high=high, condition=condition)
    raise ConfigError(
        f"space.{name}: there is no domain '{given}'.{nearest(str(given), (*RANGES, *LISTS))}"
    )


def _check_plain(name: str, values: Sequence[Any]) -> None:
    """Values go on record, from where a sweep is resumed."""
    for value in values:
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ConfigError(
                f"space.{name}: a {type(value).__name__} cannot be a value: texts, numbers, lists "
                "and mappings are expected"
            ) from None


def _allowed() -> str:
    return f"Domains: {', '.join((*RANGES, *LISTS))}"


def _limits(name: str, kind: str, given: Any) -> tuple[float, float]:
    where = f"space.{name}.{kind} = {given!r}"
    numbers = isinstance(given, list | tuple) and all(
        isinstance(limit, int | float) and not isinstance(limit, bool) for limit in given
    )
    if not numbers or len(given) != 2:
        raise ConfigError(f"{where}: two numbers are expected, [low, high]")
    low, high = given
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{where}: low must be less than high")
    if kind.startswith("log") and low <= 0:
        raise ConfigError(f"{where}: low must be above 0 for a logarithmic range")
    if kind.endswith("randint") and (low != int(low) or high != int(high)):
        raise ConfigError(f"{where}: whole numbers are expected; high itself is never drawn")
    return low, high


def _condition(name: str, given: Any) -> dict[str, tuple[Any, ...]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(
            f"space.{name}.if = {given!r}: a mapping is expected, as in "
            "if: {loss: TripletMarginLoss}"
        )
    return {
        str(other): tuple(values) if isinstance(values, list | tuple) else (values,)
        for other, values in given.items()
    }


def _from_tune(name: str, domain: Any) -> dict[str, Any]:
    """The same domain of `ray.tune` in our words; what they cannot say is refused."""
    sampler = type(domain.get_sampler()).__name__
    kind = type(domain).__name__
    if kind == "Categorical":
        return {"choice": list(domain.categories)}
    kinds = {
        ("Float", "_Uniform"): "uniform",
        ("Float", "_LogUniform"): "loguniform",
        ("Integer", "_Uniform"): "randint",
        ("Integer", "_LogUniform"): "lograndint",
    }
    if (kind, sampler) not in kinds:
        raise ConfigError(
            f"space.{name}: this domain of ray.tune ({kind}, {sampler.strip('_')}) is not known. "
            f"{_allowed()}"
        )
    return {kinds[kind, sampler]: [domain.lower, domain.upper]}


def _ordered(space: Space) -> Space:
    """Conditions first, so that a condition of a condition is settled when it is asked for."""
    done: Space = {}
    while len(done) < len(space):
        ready = [n for n, d in space.items() if n not in done and set(d.condition) <= set(done)]
        if not ready:
            left = sorted(set(space) - set(done))
            raise ConfigError(f"space: the conditions of {', '.join(left)} lead in a circle")
        done.update((name, space[name]) for name in ready)
    return done


def active_values(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a value for each field, those that a trial varies."""
    kept: dict[str, Any] = {}
    for name, domain in space.items():
        if domain.active(kept):
            kept[name] = values[name]
    return kept


def grid_points(space: Space) -> list[dict[str, Any]]:
    """All combinations of a space of lists, none twice.

    Raises:
        ConfigError: if the space has a range.
    """
    ranges = [name for name, domain in space.items() if not domain.values]
    if ranges:
        raise ConfigError(
            f"search: grid takes lists alone, and space.{ranges[0]} is a range: give grid: [...], "
            "or search: random"
        )
    return _combined(space, list(space), [{}])


def drawn_points(space: Space, count: int, seed: int) -> list[dict[str, Any]]:
    """Random points: `count` draws, each with every combination of the grids.

    The same seed gives the same points, and the first ones of a larger count.
    """
    random = np.random.default_rng(seed)
    grids = [name for name, domain in space.items() if domain.kind == "grid"]
    points = []
    for _ in range(count):
        drawn = {name: domain.draw(random) for name, domain in space.items()}
        points += _combined(space, grids, [drawn])
    return points


def _combined(
    space: Space, lists: Sequence[str], bases: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    points: dict[str, dict[str, Any]] = {}
    for base in bases:
        for values in itertools.product(*(space[name].values for name in lists)):
            point = active_values(space, {**base, **dict(zip(lists, values, strict=True))})
            points.setdefault(repr(sorted(point.items())), point)
    return list(points.values())
