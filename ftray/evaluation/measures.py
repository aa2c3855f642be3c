"""Which metrics an evaluation computes: the standard ones, some of them, or a user's own.

A user's own are functions of one query's ranking, as in Finetuner 0.4.1; see
`EvaluationCallback`.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftray.errors import ConfigError, RunFailedError, nearest
from ftray.evaluation.metrics import METRICS, Judged, per_query

__all__ = ["CORRELATIONS", "Measure", "correlation_measures", "measure", "measures_of"]
__all__ += ["ranked_measures"]

Floats = npt.NDArray[np.float64]

CORRELATIONS: tuple[str, ...] = ("pearson", "spearman")
"""The metrics of scored pairs."""

FILLED_IN = ("max_rel", "grades")
"""Parameters of a user's function that are filled in for each query, if it has them."""

TAKEN = ("loss", "train_loss", "val_loss", "query", "query_id", "relevant")
"""Names that stand for something else: in the run's metrics, or in the table of queries."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One metric.

    Attributes:
        name: its key.
        function: the name of a standard metric, or a function of one query's ranking.
        options: keyword arguments of the function; of a standard metric `k`, where it is not the
            evaluation's limit.
    """

    name: str
    function: str | Callable[..., Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> bool:
        """Whether it is a user's own function."""
        return not isinstance(self.function, str)

    @property
    def k(self) -> int | None:
        """The cut-off of a standard metric, where it is not the evaluation's limit."""
        return None if self.own else self.options.get("k")


def measures_of(given: Any, known: Sequence[str]) -> tuple[Measure, ...]:
    """The metrics that are asked for.

    Args:
        given: None for all known ones, a list of their names, or a mapping from a key to the name
            of one, to a function, or to one of these with its keyword arguments.
        known: the standard metrics that there are.

    Raises:
        ConfigError: for a name that does not exist, or a function that cannot be called.
    """
    if given is None:
        return tuple(Measure(name=name, function=name) for name in known)
    if isinstance(given, str) or not isinstance(given, Mapping | Sequence):
        raise ConfigError(
            f"EvaluationCallback: metrics = {given!r}: a list of names is expected, or a mapping "
            'such as {"precision@5": (function, {"k": 5})}'
        )
    if not given:
        raise ConfigError("EvaluationCallback: metrics is empty: leave it away for all of them")
    entries = given if isinstance(given, Mapping) else {name: name for name in _names(given)}
    return tuple(_measure(name, entry, known) for name, entry in entries.items())


def ranked_measures(given: Any, limit: int) -> tuple[Measure, ...]:
    """The metrics of rankings of `limit` documents.

    Raises:
        ConfigError: as `measures_of`, and for a cut-off beyond the limit.
    """
    found = measures_of(given, METRICS)
    for one in found:
        if (one.k or 1) > limit:
            raise ConfigError(
                f"EvaluationCallback: metrics: '{one.name}': k = {one.k}, but no more than limit = "
                f"{limit} documents are retrieved"
            )
    return found


def correlation_measures(given: Any) -> tuple[Measure, ...]:
    """The metrics of scored pairs.

    Raises:
        ConfigError: as `measures_of`, and for a function: pairs have no rankings.
    """
    found = measures_of(given, CORRELATIONS)
    for one in found:
        if one.own or one.options:
            raise ConfigError(
                f"EvaluationCallback: metrics: '{one.name}': scored pairs have no rankings, and so "
                f"only the metrics {' and '.join(CORRELATIONS)}"
            )
    return found


def _names(given: Sequence[Any]) -> Sequence[str]:
    for name in given:
        if not isinstance(name, str):
            raise ConfigError(
                f"EvaluationCallback: metrics: a list holds names of standard metrics, not {name!r}"
                ': a function needs a key of its own, as in {"my metric": function}'
            )
        if given.count(name) > 1:
            raise ConfigError(f"EvaluationCallback: metrics: '{name}' is named twice")
    return given


def _measure(name: Any, entry: Any, known: Sequence[str]) -> Measure:
    plain = isinstance(name, str) and 0 < len(name) <= 64 and name.isprintable()
    if not plain or name != name.strip() or name in TAKEN:
        raise ConfigError(
            f"EvaluationCallback: metrics: {name!r} cannot be a key: at most 64 characters on one "
            f"line, and none of {', '.join(TAKEN)}"
        )
    where = f"EvaluationCallback: metrics: '{name}'"
    function, options = entry if _is_couple(entry) else (entry, {})
    if isinstance(function, str):
        if function not in known:
            raise ConfigError(
                f"EvaluationCallback: metrics: there is no '{function}'.{nearest(function, known)}"
            )
        _check_cut_off(options, where)
    elif callable(function):
        _check_call(function, options, where)
    else:
        raise ConfigError(
            f"{where} is {entry!r}: the name of a standard metric, a function, or one of these "
            'with its options is expected, as in (function, {"k": 5})'
        )
    return Measure(name=name, function=function, options=dict(options))


def _is_couple(entry: Any) -> bool:
    return isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], Mapping)


def _check_cut_off(options: Mapping[str, Any], where: str) -> None:
    for option, value in options.items():
        if option != "k":
            raise ConfigError(f"{where}: a standard metric has no option '{option}', only k")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{where}: k = {value!r}: a positive number")


def _check_call(function: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    """Refuse what the function would refuse at its first query."""
    for option in FILLED_IN:
        if option in options:
            raise ConfigError(f"{where}: {option} is filled in for each query: leave it away")
    signature = _signature(function)
    if signature is None:
        return
    try:
        signature.bind([], **options, **dict.fromkeys(_filled_in(function)))
    except TypeError as error:
        raise ConfigError(
            f"{where}: {_called(function)}{signature} cannot be called with a list of relevances"
            f"{''.join(f', {option}={value!r}' for option, value in options.items())}: {error}"
        ) from None


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """None for functions that do not tell it, as some written in C."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _filled_in(function: Callable[..., Any]) -> list[str]:
    signature = _signature(function)
    return [name for name in FILLED_IN if signature is not None and name in signature.parameters]


def _called(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def measure(
    measures: Sequence[Measure],
    judged: Judged,
    returned: npt.NDArray[np.int64],
    *,
    limit: int,
    describe: Callable[[int], str],
) -> dict[str, Floats]:
    """The value of each metric for each query.

    Args:
        measures: the metrics.
        judged: the judged rankings.
        returned: how many documents each ranking has, `(Q,)`.
        limit: the cut-off of standard metrics without one of their own.
        describe: names a query, for messages.

    Returns:
        By the key of each metric an array `(Q,)`.

    Raises:
        RunFailedError: if a user's function raises, or returns anything but a finite number.
    """
    at: dict[int, dict[str, Floats]] = {}
    values: dict[str, Floats] = {}
    for one in measures:
        if one.own:
            values[one.name] = _own_values(one, judged, returned, limit, describe)
            continue
        k = one.k or limit
        if k not in at:
            at[k] = per_query(judged, k)
        values[one.name] = at[k][str(one.function)]
    return values


def _own_values(
    one: Measure,
    judged: Judged,
    returned: npt.NDArray[np.int64],
    limit: int,
    describe: Callable[[int], str],
) -> Floats:
    function: Any = one.function
    wanted = _filled_in(function)
    values = np.zeros(len(returned))
    for query, count in enumerate(np.minimum(returned, limit).tolist()):
        grades = judged.gains[query, :count]
        told = {"max_rel": int(judged.relevant[query]), "grades": grades.tolist()}
        arguments = {**one.options, **{name: told[name] for name in wanted}}
        where = f"The metric '{one.name}' failed for the query {describe(query)}"
        try:
            value = function((grades > 0).astype(int).tolist(), **arguments)
        except Exception as error:
            raise RunFailedError(f"{where}: {_told(error)}") from error
        values[query] = _number(value, where)
    return values


def _told(error: Exception) -> str:
    """The error with the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


def _number(value: Any, where: str) -> float:
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # of numpy or torch
    if not isinstance(value, Real) or not math.isfinite(value):
        raise RunFailedError(f"{where}: it returned {value!r}, not a finite number")
    return float(value)
