"""The figures of a report: curves over the steps, and over alpha.

Each comes with a sentence that says what it shows. Nothing is said by colour alone: lines differ in
their dashes, points in their shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, ScalarFormatter

from ftray.report.contents import Contents
from ftray.report.quality import AlphaCurve
from ftray.report.svg import INKS, figure_svg

__all__ = ["LABEL", "SMALL", "TICK", "WIDE", "Marks", "Picture", "alpha_picture", "as_picture"]
__all__ += ["equal_digits", "loss_picture", "mark_label", "mark_point", "metric_picture", "number"]
__all__ += ["plain_axes", "rate_picture", "tradeoff_picture"]

Floats = npt.NDArray[np.float64]

MOST_POINTS = 300
"""A curve of more points than these is drawn from as many means, each with its range."""
FEW_POINTS = 24
WIDE, SMALL = (7.6, 2.7), (3.7, 1.9)
LABEL, TICK = 10.5, 10.0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure for the page: what is above it, the SVG, and what it shows."""

    title: str
    svg: Markup
    summary: str


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Steps that every curve marks: the best one, and where training was ended early."""

    best: int | None = None
    stop: int | None = None

    @staticmethod
    def of(contents: Contents) -> Marks:
        """The marks of a run."""
        ended, best = contents.ended, contents.best
        return Marks(
            best=None if best is None else best.global_step,
            stop=ended.global_step if ended is not None and ended.reason else None,
        )


def number(value: float | None, digits: int = 4) -> str:
    """A number for people: `0.5123`, `1.2e-05`, `NaN`; a dash where there is none."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.3g}"
    return f"{value:.{digits}f}"


# ---------------------------------------------------------------- over the steps


def loss_picture(contents: Contents, marks: Marks) -> Picture | None:
    """Loss of the steps, and val_loss of the epochs; None if no step was made."""
    steps = contents.steps
    finite = np.isfinite(steps.loss)
    if not finite.any():
        return None
    figure, axes = plain_axes(WIDE)
    at, low, mean, high = _thinned(steps.at[finite], steps.loss[finite])
    if len(at) < finite.sum():
        axes.fill_between(at, low, high, color=INKS["band"], linewidth=0)
    _line(axes, at, mean, "line-1")
    losses = [steps.loss[finite][0], steps.loss[finite][-1]]
    summary = (
        f"The training loss goes from {number(losses[0])} to {number(losses[1])} in "
        f"{len(steps.at):,} steps"
    )
    found = [(e.global_step, e.metrics.get("val_loss")) for e in contents.epochs]
    val = [(step, float(v)) for step, v in found if v is not None and math.isfinite(v)]
    if val:
        x, y = np.array(val, float).T
        _line(axes, x, y, "line-2", dashed=True)
        summary += (
            f", val_loss from {number(y[0])} to {number(y[-1])}, its least is {number(y.min())}"
        )
    _mark(axes, marks, dict(val))
    return as_picture("Loss", figure, summary + _mark_words(marks) + ".")


def rate_picture(contents: Contents) -> Picture | None:
    """The learning rate over the steps; None if no step was made."""
    steps = contents.steps
    if not len(steps.at) or not np.isfinite(steps.learning_rate).any():
        return None
    figure, axes = plain_axes(SMALL)
    at, _, mean, _ = _thinned(steps.at, steps.learning_rate)
    _line(axes, at, mean, "line-1")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    most = float(np.nanmax(steps.learning_rate))
    last = float(steps.learning_rate[-1])
    summary = f"The learning rate: at most {most:.2g}, at the last step {last:.2g}."
    return as_picture("Learning rate", figure, summary)


def metric_picture(title: str, points: Sequence[tuple[int, float]], marks: Marks) -> Picture | None:
    """A metric over the steps; step 0 is before training. None without a value.

    Args:
        title: of the figure: the metric's name.
        points: (global step, value), ascending.
        marks: what to mark.
    """
    known = [(step, value) for step, value in points if math.isfinite(value)]
    if not known:
        return None
    figure, axes = plain_axes(SMALL)
    at, _, mean, _ = _thinned(*np.array(known, float).T)
    _line(axes, at, mean, "line-1", points=True)
    _mark(axes, marks, dict(known))
    first, last = known[0], known[-1]
    summary = f"{title} at step {first[0]:,}: {number(first[1])}"
    if len(known) > 1:
        summary += f", at step {last[0]:,}: {number(last[1])}"
    if marks.best in dict(known):
        summary += f", at the best step {marks.best:,}: {number(dict(known)[marks.best or 0])}"
    return as_picture(title, figure, summary + ".")


# ---------------------------------------------------------------- over alpha


def alpha_picture(curve: AlphaCurve) -> Picture | None:
    """A metric over alpha; None where there is no value."""
    known = [(a, v) for a, v in zip(curve.alphas, curve.values, strict=True) if math.isfinite(v)]
    if not known:
        return None
    figure, axes = plain_axes(SMALL, steps=False)
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    x, y = np.array(known, float).T
    _line(axes, x, y, "line-1", points=True)
    summary = f"{curve.key} over alpha: " + ", ".join(f"{a:g}: {number(v)}" for a, v in known)
    kept = dict(known).get(curve.kept) if curve.kept is not None else None
    if kept is not None and curve.kept is not None:
        mark_point(axes, curve.kept, kept, f"kept: {curve.kept:g}")
        summary += f"; alpha {curve.kept:g} is kept"
    return as_picture(curve.key, figure, summary + ".")


def tradeoff_picture(first: AlphaCurve, second: AlphaCurve) -> Picture | None:
    """Two metrics against each other, a point for each alpha; None without a common alpha."""
    common = [alpha for alpha in first.alphas if alpha in second.alphas]
    points = [(alpha, first.at(alpha), second.at(alpha)) for alpha in common]
    points = [point for point in points if all(map(math.isfinite, point))]
    if not points:
        return None
    figure, axes = plain_axes((5.6, 3.4), steps=False)
    axes.set_xlabel(f"{first.key} →", fontsize=LABEL, color=INKS["muted"], loc="right")
    axes.xaxis.grid(visible=True, color=INKS["rule"], linewidth=0.8)
    axes.xaxis.set_major_formatter(equal_digits())
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _, x, y = np.array(points, float).T
    _line(axes, x, y, "line-1", points=True)
    for alpha, right, up in points:
        if alpha != first.kept:
            mark_label(axes, f"{alpha:g}", right, up)
    if first.kept in common and first.kept is not None:
        at = common.index(first.kept)
        mark_point(axes, x[at], y[at], f"kept: {first.kept:g}")
    axes.margins(0.12)
    summary = f"{second.key} (upwards) against {first.key} (to the right) for alpha = " + "; ".join(
        f"{a:g}: {number(u)} and {number(r)}" for a, r, u in points
    )
    return as_picture(f"{second.key} against {first.key}", figure, summary + ".")


# ---------------------------------------------------------------- how they look


def plain_axes(size: tuple[float, float], *, steps: bool = True) -> tuple[Figure, Axes]:
    """Axes with light rules and no box; what a user's settings might change is set here."""
    figure = Figure(figsize=size, facecolor="none", layout="none")  # type: ignore[arg-type]
    left, bottom = (0.78 if size == WIDE else 0.62) / size[0], 0.42 / size[1]
    axes = figure.add_axes((left, bottom, 1 - left - 0.2 / size[0], 1 - bottom - 0.22 / size[1]))
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INKS["rule"])
        spine.set_linewidth(1)
    axes.grid(visible=False)
    axes.yaxis.grid(visible=True, color=INKS["rule"], linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_major_formatter(equal_digits())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_tick_params(
            which="both", length=0, pad=5, labelsize=TICK, labelcolor=INKS["muted"], labelrotation=0
        )
    wide = size[0] > SMALL[0]
    axes.xaxis.set_major_locator(MaxNLocator(8 if wide else 4, integer=steps))
    axes.yaxis.set_major_locator(MaxNLocator(5 if wide else 4))
    axes.margins(x=0.03, y=0.08)
    return figure, axes


def equal_digits() -> ScalarFormatter:
    """Numbers of an axis, all with the same digits, and no offset or power beside the axis."""
    digits = ScalarFormatter(useOffset=False, useMathText=False, usetex=False, useLocale=False)
    digits.set_scientific(False)
    return digits


def as_picture(title: str, figure: Figure, summary: str) -> Picture:
    """A figure for the page, with its sentence."""
    return Picture(title=title, svg=figure_svg(figure, summary), summary=summary)


def _line(
    axes: Axes, x: Floats, y: Floats, ink: str, *, dashed: bool = False, points: bool = False
) -> None:
    if len(x) == 1:  # a point of its own has no room around it
        axes.set_xlim(x[0] - 1, x[0] + 1)
    few = len(x) <= FEW_POINTS and (points or dashed or len(x) == 1)
    axes.plot(
        x,
        y,
        color=INKS[ink],
        linewidth=1.6,
        linestyle=(0, (4, 2)) if dashed else "-",
        marker=("s" if dashed else "o") if few else "none",
        markersize=4,
        markeredgewidth=0,
    )


def _mark(axes: Axes, marks: Marks, values: dict[int, float]) -> None:
    """A diamond at the best step (a rule, where the curve has no value there); a dashed rule."""
    if marks.best is not None:
        value = values.get(marks.best)
        if value is not None and math.isfinite(value):
            mark_point(axes, marks.best, value, "best")
        else:
            _rule(axes, marks.best, "best", "best", ":")
    if marks.stop is not None:
        _rule(axes, marks.stop, "stop", "stop", "--")


def _mark_words(marks: Marks) -> str:
    words = f"; the best step is {marks.best:,}" if marks.best is not None else ""
    return words + (f"; training stopped at step {marks.stop:,}" if marks.stop is not None else "")


def _rule(axes: Axes, x: float, text: str, ink: str, style: str) -> None:
    axes.axvline(x, color=INKS[ink], linewidth=1.2, linestyle=style, marker="none")
    axes.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        xytext=(-4, 3),
        ha="right",
        va="bottom",
        fontsize=TICK,
        color=INKS[ink],
    )


def mark_point(axes: Axes, x: float, y: float, text: str) -> None:
    """A diamond in the ink of what is best, and a text beside it."""
    axes.plot(
        [x], [y], marker="D", markersize=7.5, color=INKS["best"], markeredgewidth=0, linestyle=""
    )
    mark_label(axes, text, x, y, "best")


def mark_label(axes: Axes, text: str, x: float, y: float, ink: str = "muted") -> None:
    """A text beside a point; near the right end it stands at its left."""
    low, high = axes.get_xlim()
    right = x > low + 0.85 * (high - low)
    axes.annotate(
        text,
        (x, y),
        textcoords="offset points",
        xytext=(-7 if right else 7, 6),
        ha="right" if right else "left",
        va="bottom",
        fontsize=TICK,
        color=INKS[ink],
    )


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """At most `MOST_POINTS` of a curve: places, and the least, mean and largest value around each.

    The last value stands by itself, so that the curve ends where the run stands.
    """
    if len(x) <= MOST_POINTS:
        return x, y, y, y
    parts = np.array_split(np.arange(len(x) - 1), MOST_POINTS - 1)
    groups = [*parts, np.array([len(x) - 1])]
    cut = [(x[g].mean(), *_range(y[g])) for g in groups]
    at, low, mean, high = np.array(cut, float).T
    return at, low, mean, high


def _range(values: Floats) -> tuple[float, float, float]:
    if np.isnan(values).all():
        return math.nan, math.nan, math.nan
    return float(np.nanmin(values)), float(np.nanmean(values)), float(np.nanmax(values))
