"""The figures of a sweep: trials across what they vary, and their metric by epoch.

The best trial is the thick line with its name; the next ones are thinner, the rest thin. What was
stopped early is dashed, or ends with a mark; what failed is dotted: no colour says it alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ftray.report.figures import (
    LABEL,
    TICK,
    WIDE,
    Picture,
    as_picture,
    mark_point,
    number,
    plain_axes,
)
from ftray.report.svg import INKS
from ftray.sweeps.record import SweepState, Trial
from ftray.sweeps.space import Domain
from ftray.sweeps.tables import value_text
from ftray.words import counted

__all__ = ["Scale", "curves_picture", "parallel_picture", "varied_names"]

FOREMOST = 5
"""So many of the best stand out."""
MANY = 40
"""Of more trials than these, the lines behind the foremost are pale."""
MOST_POINTS = 6000
"""Of all curves together."""
LISTED = 8
WIDE_RANGE = 100.0
"""A metric whose largest value is more than so many times its least has a log axis."""
HEIGHT, MARGIN, LEAST_ROOM = 3.3, 1.15, 0.95  # inches
LETTER = 0.56  # of the font size: how wide a letter is
DASHED, DOTTED = (0, (4, 2)), (0, (1, 2))


def varied_names(state: SweepState) -> list[str]:
    """What trials vary: dotted names, in the order in which they come up."""
    return list(dict.fromkeys(name for trial in state.trials for name in trial.values))


# ---------------------------------------------------------------- an axis


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One axis of the parallel coordinates: from 0 at its foot to 1 at its head.

    Attributes:
        name: what stands on it.
        low, high: the numbers at its ends.
        log: whether equal distances are equal factors.
        whole: whether it has whole numbers only.
        values: where it has no numbers but categories, from its foot to its head.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    values: tuple[Any, ...] = ()

    @staticmethod
    def of(name: str, found: Sequence[Any], domain: Domain | None) -> Scale:
        """The axis of a field.

        Args:
            name: of the field.
            found: its values in the trials; one may lie outside of its domain under PBT.
            domain: as in the space; None where that is not known.
        """
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)
        if not numbers or (domain is not None and domain.values):
            listed = [*(domain.values if domain is not None else ()), *found]
            return Scale(name=name, values=tuple({repr(v): v for v in listed}.values()))
        ends = [float(value) for value in found if math.isfinite(value)]
        if domain is not None:
            ends += [domain.low, domain.high - (1 if domain.kind.endswith("randint") else 0)]
        ends = ends or [0.0]
        log = domain is not None and domain.kind.startswith("log") and min(ends) > 0
        whole = all(isinstance(value, int) for value in found)
        return Scale(name=name, low=min(ends), high=max(ends), log=log, whole=whole)

    @staticmethod
    def of_metric(name: str, found: Sequence[float]) -> Scale:
        """The axis of the metric, from its least finite value to its largest."""
        return Scale(name=name, low=min(found), high=max(found), log=_is_wide(found))

    def place(self, value: Any) -> float:
        """Where a value stands; NaN for one that has no place."""
        if self.values:
            keys = [repr(known) for known in self.values]
            return keys.index(repr(value)) / (len(keys) - 1) if len(keys) > 1 else 0.5
        if not math.isfinite(value):
            return math.nan
        if self.low == self.high:
            return 0.5
        low, high, at = (
            math.log(v) if self.log else v for v in (self.low, self.high, float(value))
        )
        return (at - low) / (high - low)

    def ticks(self) -> list[tuple[float, str]]:
        """Places, and what is written there."""
        if self.values:
            stride = -(-len(self.values) // 12)
            return [(self.place(v), category_text(v)) for v in self.values[::stride]]
        if self.low == self.high:
            return [(0.5, f"{self.low:.4g}")]
        return [(self.place(v), f"{v:.4g}") for v in self._round_values()]

    def _round_values(self) -> list[float]:
        locator = LogLocator(numticks=6) if self.log else MaxNLocator(4, integer=self.whole)
        found = [float(v) for v in locator.tick_values(self.low, self.high)]
        slack = 1e-9 * (self.high - self.low)
        inside = [v for v in found if self.low - slack <= v <= self.high + slack]
        return inside if len(inside) > 1 else [self.low, self.high]

    def words(self) -> str:
        """Its name and its ends, or its categories."""
        if self.values:
            shown = [category_text(value) for value in self.values[:LISTED]]
            more = ", …" if len(self.values) > LISTED else ""
            return f"{self.name} ({', '.join(shown)}{more})"
        ends = f"{self.low:.4g} to {self.high:.4g}"
        return f"{self.name} ({ends}{', log axis' if self.log else ''})"


def category_text(value: Any) -> str:
    """A value of a list: a null is one too."""
    return "null" if value is None else value_text(value)


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > WIDE_RANGE * min(values)


# ---------------------------------------------------------------- parallel coordinates


def parallel_picture(state: SweepState, space: Mapping[str, Domain]) -> Picture | None:
    """A line for each trial across one axis per varied field, and the metric at the right.

    A line has a gap where a trial does not vary the field. One without a value of the metric ends
    before it: it failed, or it has just begun. None where nothing can be compared yet.

    Args:
        state: of the sweep.
        space: its domains by name, as far as they are known.
    """
    trials = state.ordered()
    scores = [trial.score for trial in trials if trial.has_score and trial.score is not None]
    names = varied_names(state)
    if not scores or not names:
        return None
    scales = [
        Scale.of(name, [t.values[name] for t in trials if name in t.values], space.get(name))
        for name in names
    ]
    scales.append(Scale.of_metric(state.metric, scores))
    figure, axes, room_pt = _parallel_axes(len(scales))
    _draw_scales(axes, scales, room_pt)
    for rank, trial in reversed(list(enumerate(trials))):
        y = [
            scale.place(trial.values[scale.name]) if scale.name in trial.values else math.nan
            for scale in scales[:-1]
        ]
        y.append(scales[-1].place(math.nan if trial.score is None else trial.score))
        _draw_trial(axes, y, _look(rank, trial, len(trials)), few=len(trials) <= MANY)
    best = trials[0]
    _text(axes, best.name, len(scales) - 1, scales[-1].place(best.score), "best", (7, -3), "left")
    return as_picture("Parallel coordinates", figure, _parallel_words(trials, scales))


def _parallel_axes(count: int) -> tuple[Figure, Axes, float]:
    """Axes without anything, and how far apart its scales are, in points."""
    width = max(WIDE[0], 2 * MARGIN + LEAST_ROOM * (count - 1))
    figure = Figure(figsize=(width, HEIGHT), facecolor="none", layout="none")  # type: ignore[arg-type]
    inner = 1 - 2 * MARGIN / width
    axes = figure.add_axes((MARGIN / width, 0.08, inner, 0.74))
    axes.set_axis_off()
    axes.set_xlim(0, count - 1)
    axes.set_ylim(0, 1)
    return figure, axes, 72 * width * inner / (count - 1)


def _draw_scales(axes: Axes, scales: Sequence[Scale], room_pt: float) -> None:
    for at, scale in enumerate(scales):
        axes.plot(
            [at, at], [0, 1], color=INKS["muted"], linewidth=1, linestyle="-", marker="none"
        ).pop().set_clip_on(False)
        for place, text in scale.ticks():
            shown = _cut(text, 0.85 * room_pt if at else 72 * MARGIN - 8, TICK)
            _text(axes, shown, at, place, "muted", (-5, -3.5), "right")
        # names of neighbours stand at different heights, so that each has twice the room
        height = 10 if at % 2 == 0 else 24
        name = _cut(scale.name, min(1.8 * room_pt, 2 * (72 * MARGIN - 4)), LABEL, tail=True)
        _text(axes, name, at, 1, "text", (0, height), "center", LABEL)


def _look(rank: int, trial: Trial, count: int) -> dict[str, Any]:
    """The line of a trial, by its place among all."""
    if not trial.has_score:
        failed = trial.outcome == "failed"
        return {"color": INKS["stop" if failed else "muted"], "linewidth": 1, "linestyle": DOTTED}
    style = DASHED if trial.outcome == "stopped" else "-"
    if rank == 0:
        return {"color": INKS["best"], "linewidth": 3, "linestyle": style}
    pale = rank >= FOREMOST and count > MANY
    width = 1.8 if rank < FOREMOST else 0.9
    return {"color": INKS["band" if pale else "line-1"], "linewidth": width, "linestyle": style}


def _draw_trial(axes: Axes, y: Sequence[float], look: Mapping[str, Any], *, few: bool) -> None:
    """A line with gaps; points where there are few lines, and where a point has no neighbours."""
    axes.plot(range(len(y)), y, **look, marker="none", clip_on=False)
    known = [False, *(math.isfinite(value) for value in y), False]
    for at, value in enumerate(y):
        before, here, after = known[at : at + 3]
        if here and (few or not (before or after)):
            axes.plot(
                [at],
                [value],
                color=look["color"],
                marker="o",
                markersize=3 + look["linewidth"],
                markeredgewidth=0,
                linestyle="",
                clip_on=False,
            )


def _text(
    axes: Axes,
    text: str,
    x: float,
    y: float,
    ink: str,
    offset_pt: tuple[float, float],
    side: str,
    size: float = TICK,
) -> None:
    axes.annotate(
        text,
        (x, y),
        textcoords="offset points",
        xytext=offset_pt,
        ha=side,
        va="baseline",
        fontsize=size,
        color=INKS[ink],
        annotation_clip=False,
    )


def _cut(text: str, room_pt: float, size: float, *, tail: bool = False) -> str:
    """A text that finds room; of a dotted name the end says more."""
    most = max(3, int(room_pt / (LETTER * size)))
    if len(text) <= most:
        return text
    return f"…{text[1 - most :]}" if tail else f"{text[: most - 1]}…"


def _parallel_words(trials: Sequence[Trial], scales: Sequence[Scale]) -> str:
    best = trials[0]
    values = ", ".join(f"{k} = {category_text(v)}" for k, v in best.values.items())
    count = "One trial" if len(trials) == 1 else f"Each of {len(trials)} trials is a line"
    across = ", ".join(scale.words() for scale in scales)
    words = f"{count} across {across}. The best is {best.name}: {values}"
    words += f", with {scales[-1].name} = {number(best.score)}"
    without = sum(not trial.has_score for trial in trials)
    if without:
        words += f"; {counted(without, 'trial')} without a value of it"
    return words + "."


# ---------------------------------------------------------------- by epoch


def curves_picture(state: SweepState) -> Picture | None:
    """The metric by epoch, a line for each trial; None without a value.

    One that was stopped early ends with a cross. A diamond is where the best has its value.
    """
    trials = state.ordered()
    lines = [
        (rank, trial, series)
        for rank, trial in enumerate(trials)
        if (series := trial.series(state.metric))
    ]
    if not lines:
        return None
    figure, axes = plain_axes(WIDE)
    values = [value for _, _, series in lines for _, value in series]
    log = _is_wide(values)
    if log:
        _log_y(axes)
    for rank, trial, series in reversed(lines):
        _draw_curve(axes, trial, _thin(series, len(lines)), _look(rank, trial, len(trials)))
    epochs = [epoch for _, _, series in lines for epoch, _ in series]
    if min(epochs) == max(epochs):
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    rank, best, series = lines[0]
    if rank == 0:
        epoch, value = _best_point(best, series)
        mark_point(axes, epoch, value, best.name)
    words = _curve_words(state.metric, lines) + (" The axis is logarithmic." if log else "")
    return as_picture(f"{state.metric} by epoch", figure, words)


def _log_y(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _thin(series: Sequence[tuple[int, float]], count: int) -> list[tuple[int, float]]:
    """So few points that all curves together stay small; the last is among them."""
    stride = -(-len(series) // max(20, MOST_POINTS // count))
    return list(series[::-1][::stride][::-1])


def _draw_curve(
    axes: Axes, trial: Trial, series: Sequence[tuple[int, float]], look: Mapping[str, Any]
) -> None:
    x, y = zip(*series, strict=True)
    alone = "o" if len(series) == 1 else "none"
    solid = {**look, "linestyle": "-"}  # the dashes of many curves would be hard to follow
    axes.plot(x, y, **solid, marker=alone, markersize=5, markeredgewidth=0)
    if trial.outcome == "stopped":
        axes.plot(
            x[-1:],
            y[-1:],
            color=look["color"],
            marker="X",
            markersize=7.5,
            markeredgewidth=0,
            linestyle="",
        )


def _best_point(best: Trial, series: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The epoch whose weights the artifact holds; the last, where it holds others (WiSE-FT)."""
    return next((point for point in series if point[1] == best.score), series[-1])


def _curve_words(
    metric: str, lines: Sequence[tuple[int, Trial, Sequence[tuple[int, float]]]]
) -> str:
    last = max(epoch for _, _, series in lines for epoch, _ in series)
    words = f"{metric} of {counted(len(lines), 'trial')} over {counted(last, 'epoch')}"
    ends = [
        f"{trial.name} ends with {number(series[-1][1])} after epoch {series[-1][0]}"
        + (", stopped early" if trial.outcome == "stopped" else "")
        for _, trial, series in lines[:LISTED]
    ]
    stopped = sum(trial.outcome == "stopped" for _, trial, _ in lines)
    more = f"; {counted(len(lines) - LISTED, 'more trial')}" if len(lines) > LISTED else ""
    return f"{words}, {stopped} of them stopped early: {'; '.join(ends)}{more}."
