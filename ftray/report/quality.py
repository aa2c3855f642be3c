"""What fine-tuning changed: metrics, single queries, and weights between before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ftray.evaluation.intervals import PairedChange, paired_changes
from ftray.evaluation.metrics import METRICS
from ftray.events import EvaluationEnded
from ftray.report.contents import Contents

__all__ = ["AlphaCurve", "Change", "Mover", "Moves", "Quality", "alpha_curves", "qualities"]

Floats = npt.NDArray[np.float64]

MOVERS = 5
RESAMPLED = 1_500_000
"""Queries times resamples: what a report can wait for."""
LARGEST_RESAMPLES, SMALLEST_RESAMPLES = 10_000, 200


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric: before, after, and how sure the difference is, where single queries tell."""

    metric: str
    key: str
    before: float | None
    after: float | None
    interval: PairedChange | None

    @property
    def change(self) -> float | None:
        """After minus before."""
        if self.before is None or self.after is None:
            return None
        return self.after - self.before


@dataclass(frozen=True, kw_only=True)
class Mover:
    """A query, or a pair of texts, before and after."""

    texts: tuple[str, ...]
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Moves:
    """Which queries gained and lost most, by `what`; with how many did, and how many did not."""

    what: str
    gained: list[Mover]
    lost: list[Mover]
    better: int
    worse: int
    same: int


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One evaluation of the run.

    Attributes:
        name: the caption, or "evaluation".
        main: the metric that the run is about, see `main_metric`.
        before, after: the two evaluations that are compared, as far as they are there.
        changes: one for each metric.
        resamples: of the intervals; 0 where there are none.
        moves: of single queries, where both sides are on record.
    """

    name: str
    main: str
    before: EvaluationEnded | None
    after: EvaluationEnded | None
    changes: list[Change]
    resamples: int
    moves: Moves | None


def qualities(contents: Contents) -> list[Quality]:
    """Every evaluation of the run, compared before and after."""
    return [_quality(contents, name) for name in contents.names()]


def main_metric(contents: Contents, name: str) -> str:
    """The metric of an evaluation that matters most.

    That is the one that a callback monitors, of this evaluation or by the same name of another
    one; else nDCG, or Spearman's correlation.
    """
    events = [event for event in contents.evaluations if event.name == name]
    keys: dict[str, str] = {k: v for event in events for k, v in event.keys.items()}
    metrics = list(dict.fromkeys(metric for event in events for metric in event.metrics))
    monitored = _monitored(contents)
    for metric in metrics:
        if keys.get(metric) in monitored:
            return metric
    for metric in metrics:
        if any(key.endswith(f"_{metric}") or key == metric for key in monitored):
            return metric
    known = [metric for metric in ("ndcg_at_k", "spearman") if metric in metrics]
    return next(iter([*known, *metrics]), "")


def _monitored(contents: Contents) -> list[str]:
    found = [contents.best.monitor] if contents.best is not None else []
    for entry in contents.config.get("callbacks") or []:
        if isinstance(entry, Mapping):
            options = [value for value in entry.values() if isinstance(value, Mapping)]
            found += [str(o["monitor"]) for o in options if o.get("monitor")]
    return [key for key in found if key]


def _quality(contents: Contents, name: str) -> Quality:
    before, after = contents.before(name), contents.after(name)
    main = main_metric(contents, name)
    sides = [event for event in (before, after) if event is not None]
    metrics = list(dict.fromkeys(metric for event in sides for metric in event.metrics))
    metrics.sort(key=lambda metric: (metric != main, metric not in METRICS))
    keys = {k: v for event in sides for k, v in event.keys.items()}
    tables = _tables(contents, before, after)
    intervals, resamples = _intervals(tables, metrics)
    changes = [
        Change(
            metric=metric,
            key=keys.get(metric, metric),
            before=None if before is None else before.metrics.get(metric),
            after=None if after is None else after.metrics.get(metric),
            interval=intervals.get(metric),
        )
        for metric in metrics
    ]
    return Quality(
        name=name,
        main=main,
        before=before,
        after=after,
        changes=changes,
        resamples=resamples,
        moves=None if tables is None else _moves(*tables, main),
    )


# ---------------------------------------------------------------- single queries


def _tables(
    contents: Contents, before: EvaluationEnded | None, after: EvaluationEnded | None
) -> tuple[pa.Table, pa.Table] | None:
    """Both tables of single queries, row by row the same ones; None where that is not so."""
    if before is None or after is None or before is after:
        return None
    tables = [_table(contents, event) for event in (before, after)]
    first, second = tables
    if first is None or second is None or first.schema.names != second.schema.names:
        return None
    known = [n for n in ("query_id", "text_a", "text_b") if n in first.schema.names]
    if not len(first) or not all(first[n].equals(second[n]) for n in known):
        return None
    return first, second


def _table(contents: Contents, event: EvaluationEnded) -> pa.Table | None:
    """None if it is not there, or not that of these very weights."""
    try:
        table = contents.reader.per_query(event.name, event.global_step, event.weights)
    except (OSError, pa.ArrowInvalid):
        return None
    for metric in set(event.metrics) & set(table.schema.names):
        mean = float(np.mean(_column(table, metric))) if len(table) else 0.0
        if not np.isclose(mean, event.metrics[metric], rtol=1e-6, atol=1e-9, equal_nan=True):
            return None
    return table


def _column(table: pa.Table, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(), float)


def _intervals(
    tables: tuple[pa.Table, pa.Table] | None, metrics: Sequence[str]
) -> tuple[dict[str, PairedChange], int]:
    if tables is None:
        return {}, 0
    names = [metric for metric in metrics if metric in tables[0].schema.names]
    sides = [np.array([_column(table, name) for name in names]).T for table in tables]
    if not names or not np.isfinite(sides).all():
        return {}, 0
    wanted = RESAMPLED // len(tables[0])
    resamples = min(LARGEST_RESAMPLES, max(SMALLEST_RESAMPLES, wanted))
    found = paired_changes(sides[0], sides[1], resamples=resamples)
    return dict(zip(names, found, strict=True)), resamples


def _moves(before: pa.Table, after: pa.Table, main: str) -> Moves | None:
    names = before.schema.names
    columns: tuple[str, ...]
    if "similarity" in names:
        what, values = "misplacement", [_misplaced(table) for table in (before, after)]
        gain, columns = values[0] - values[1], ("text_a", "text_b")
    else:
        found = [n for n in (main, "ndcg_at_k", "average_precision") if n in names]
        if not found:
            return None
        what, values = found[0], [_column(table, found[0]) for table in (before, after)]
        gain, columns = values[1] - values[0], ("query",)
    up, down = (np.argsort(side, kind="stable")[:MOVERS] for side in (-gain, gain))

    def movers(rows: npt.NDArray[np.intp]) -> list[Mover]:
        return [
            Mover(
                texts=tuple(str(before[name][int(row)].as_py()) for name in columns),
                before=float(values[0][row]),
                after=float(values[1][row]),
            )
            for row in rows
        ]

    return Moves(
        what=what,
        gained=movers(up[gain[up] > 0]),
        lost=movers(down[gain[down] < 0]),
        better=int((gain > 0).sum()),
        worse=int((gain < 0).sum()),
        same=int((gain == 0).sum()),
    )


def _misplaced(table: pa.Table) -> Floats:
    """How far each pair's place by similarity is from its place by score, as a share of all."""
    from scipy.stats import rankdata

    places = [rankdata(_column(table, name)) for name in ("similarity", "score")]
    return np.asarray(np.abs(places[0] - places[1]) / len(table), float)


# ---------------------------------------------------------------- WiSE-FT


@dataclass(frozen=True, kw_only=True)
class AlphaCurve:
    """A metric of one evaluation over alpha, ascending.

    Attributes:
        name: of the evaluation. metric: its name, key: as callbacks know it.
        alphas, values: of each point; 0 is before training, 1 the trained weights.
        kept: the alpha whose weights the artifact holds, None if it holds others.
        monitored: whether this is the metric by which alpha was chosen.
    """

    name: str
    metric: str
    key: str
    alphas: list[float]
    values: list[float]
    kept: float | None
    monitored: bool

    def at(self, alpha: float) -> float:
        """The metric at one of the alphas."""
        return self.values[self.alphas.index(alpha)]


def alpha_curves(contents: Contents) -> list[AlphaCurve]:
    """The metrics of interpolated weights, one curve for each evaluation that has any."""
    found = [event for event in contents.evaluations if event.alpha is not None]
    if not found:
        return []
    step = found[-1].global_step
    monitored = _monitored(contents)
    curves = []
    for name in dict.fromkeys(event.name for event in found):
        metric = main_metric(contents, name)
        values = _by_alpha(contents, name, step, metric)
        key = next((e.keys[metric] for e in found if e.name == name and metric in e.keys), metric)
        curves.append(
            AlphaCurve(
                name=name,
                metric=metric,
                key=key,
                alphas=sorted(values),
                values=[values[alpha] for alpha in sorted(values)],
                kept=_kept(contents, values),
                monitored=key in monitored,
            )
        )
    curves.sort(key=lambda curve: not curve.monitored)
    return curves


def _by_alpha(contents: Contents, name: str, step: int, metric: str) -> dict[float, float]:
    values: dict[float, float] = {}
    events: list[tuple[float, Any]] = [(0.0, contents.before(name))]
    events += [(1.0, event) for event in contents.curve(name) if event.global_step == step > 0]
    events += [
        (event.alpha, event)
        for event in contents.evaluations
        if event.name == name and event.alpha is not None and event.global_step == step
    ]
    for alpha, event in events:
        if event is not None and metric in event.metrics:
            values[alpha] = event.metrics[metric]
    return values


def _kept(contents: Contents, alphas: Mapping[float, float]) -> float | None:
    if contents.ended is None:
        return None
    kept = contents.ended.artifact_weights
    return next((alpha for alpha in alphas if kept == f"alpha {alpha:g}"), None)
