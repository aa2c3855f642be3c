"""Figures of matplotlib as SVG that is part of a page: its fonts, its colours, light and dark.

matplotlib's own SVG writer is made for files: it names fonts and colours, and reads global
settings. This renderer writes what a page needs and nothing else. A colour is an ink of the page,
by name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.text import Text

__all__ = ["INKS", "figure_svg", "standalone"]

INKS = {
    name: f"#0000{number:02x}"
    for number, name in enumerate(
        ["text", "muted", "rule", "line-1", "line-2", "band", "best", "stop", "paper"], start=1
    )
}
"""The colours of figures: each stands for the CSS variable `--name`."""

_NAMES = {code: name for name, code in INKS.items()}
_POINTS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
_ANCHORS = {"left": "start", "center": "middle", "right": "end"}


def figure_svg(figure: Figure, label: str) -> Markup:
    """A figure as an `<svg>` element that is as wide as its place.

    Args:
        figure: drawn in the colours of `INKS`.
        label: what the figure shows, in a sentence, for those who do not see it.
    """
    figure.set_dpi(72)
    for text in figure.findobj(Text):  # labels hold names of users: no formulas, no LaTeX
        text.set_parse_math(False)
        text.set_usetex(False)
    width, height = (72 * side for side in figure.get_size_inches())
    renderer = _PageRenderer(width, height)
    figure.draw(renderer)
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{''.join(renderer.parts)}</svg>"
    )


def standalone(svg: str) -> str:
    """A figure as an SVG file of its own, in the page's light colours on its paper.

    Args:
        svg: from `figure_svg`.
    """
    colors = _light_colors()
    paper = colors["paper"]
    found = re.sub(r"var\(--([\w-]+)\)", lambda ink: colors.get(ink[1], ink[0]), svg)
    (size,) = re.findall(r'viewBox="0 0 ([\d.]+ [\d.]+)"', found)
    width, height = size.split()
    ground = f'<rect width="{width}" height="{height}" fill="{paper}"/>'
    text = (
        f'<text font-family="system-ui, sans-serif" stroke="{paper}" stroke-width="3" '
        'stroke-linejoin="round" paint-order="stroke"'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}pt" height="{height}pt"'
    found = found.replace("<text", text).replace("<svg", head, 1)
    return found.replace(">", f">{ground}", 1)


@lru_cache(maxsize=1)
def _light_colors() -> dict[str, str]:
    """The colours of the style sheet, of which the light ones come first."""
    style = files("ftray.report").joinpath("templates", "style.css").read_text("utf-8")
    return dict(re.findall(r"--([\w-]+): (#\w+)", style.partition("@media")[0]))


class _PageRenderer(RendererBase):
    """Writes paths and texts; markers and collections come as paths.

    Args:
        width, height: of the figure, in points.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._size = (width, height)

    def get_canvas_width_height(self) -> tuple[float, float]:
        """The size of the figure, in points."""
        return self._size

    def get_text_width_height_descent(
        self, s: str, prop: Any, ismath: Any
    ) -> tuple[float, float, float]:
        """About how large a text is; which font the reader's page has is not known here."""
        size = float(prop.get_size_in_points())
        return 0.56 * size * len(s), 0.95 * size, 0.22 * size

    def draw_path(
        self, gc: GraphicsContextBase, path: Path, transform: Any, rgbFace: Any = None
    ) -> None:
        """A line, an area, or both."""
        data = _path_data(path, transform, self._size[1])
        fill = _ink(rgbFace) if rgbFace is not None else None
        stroke = _ink(gc.get_rgb()) if gc.get_linewidth() > 0 else None
        if not data or (fill is None and stroke is None):
            return
        style = f"fill:{fill or 'none'}"
        if stroke is not None:
            style += f";stroke:{stroke};stroke-width:{gc.get_linewidth():g}"
            _, dashes = gc.get_dashes()
            if dashes is not None:
                lengths = np.asarray(dashes, float).tolist()
                style += f";stroke-dasharray:{' '.join(f'{length:g}' for length in lengths)}"
        self.parts.append(f'<path d="{data}" style="{style}"/>')

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: Any,
        angle: float,
        ismath: Any = False,
        mtext: Any = None,
    ) -> None:
        """A text in the page's font, anchored at the side that it is aligned to."""
        anchor = "start"
        if mtext is not None:
            anchor = _ANCHORS[mtext.get_ha()]
            x = float(mtext.get_transform().transform(mtext.get_unitless_position())[0])
        style = f"fill:{_ink(gc.get_rgb())};font-size:{prop.get_size_in_points():g}px"
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">'
            f"{escape(s)}</text>"
        )


def _ink(color: Any) -> str | None:
    """The CSS of a colour; none for what nobody chose, such as the figure's white ground."""
    name = _NAMES.get(to_hex(color))
    return f"var(--{name})" if name is not None else None


def _path_data(path: Path, transform: Any, height: float) -> str:
    parts = []
    for points, code in path.iter_segments(transform, simplify=False, remove_nans=True):
        if code == Path.CLOSEPOLY:
            parts.append("Z")
            continue
        pairs = points.reshape(-1, 2).tolist()
        parts.append(_POINTS[code] + " ".join(f"{x:.1f} {height - y:.1f}" for x, y in pairs))
    return "".join(parts)
