"""Tables of metrics and of example results, for a terminal, a file or a notebook."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftray.record.narrator import without_control_codes
from ftray.report.notebook import in_notebook, show_html

__all__ = ["Cell", "Sheet", "examples_sheet", "metrics_sheet", "models_sheets", "options_sheet"]
__all__ += ["picture", "show", "summary_sheet", "what_metrics"]

MAX_CELL = 160
PLAIN_WIDTH = 100
SIMILARITY = ("pearson", "spearman")
CSS = {
    "": "",
    "bold": "font-weight:bold",
    "bold yellow": "font-weight:bold",
    "dim": "opacity:.6",
    "green": "color:#1a7f37",
    "red": "color:#cf222e",
}
"""How a notebook shows the styles that cells may have."""

ON_ONE_LINE = "white-space:nowrap"
PICTURE = re.compile(r"data:image/(png|webp);base64,[A-Za-z0-9+/=]+")

Sides = Mapping[str, Mapping[str, float]]


class Cell(NamedTuple):
    """A text, its style, one of `CSS`, and a small picture for a notebook, a data URI."""

    text: str
    style: str = ""
    image: str = ""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table in sections; the columns named in `right` are numbers, those in `whole` not cut."""

    title: str
    columns: Sequence[str]
    right: frozenset[str] = field(default_factory=frozenset)
    whole: frozenset[str] = field(default_factory=frozenset)
    sections: Sequence[Sequence[Sequence[Cell]]]

    def rich(self) -> Table:
        """For a console."""
        table = Table(
            title=Text(self.title), min_width=len(self.title)
        )  # or the title is cut in two
        for name in self.columns:
            if name in self.right:
                table.add_column(name, justify="right", no_wrap=True)
            else:
                table.add_column(name, overflow="fold", no_wrap=name in self.whole)
        for section in self.sections:
            for row in section:
                table.add_row(*(Text(cell.text, cell.style) for cell in row))
            table.add_section()
        return table

    def html(self) -> str:
        """For a notebook."""
        head = "".join(f"<th{self._align(name)}>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tbody>{''.join(self._row(row) for row in section)}</tbody>"
            for section in self.sections
        )
        title = f'<caption style="{ON_ONE_LINE}"><b>{html.escape(self.title)}</b></caption>'
        return f"<table>{title}<thead><tr>{head}</tr></thead>{body}</table>"

    def _row(self, row: Sequence[Cell]) -> str:
        cells = zip(self.columns, row, strict=True)
        inner = "".join(
            f"<td{self._align(name, CSS[cell.style])}>{_img(cell)}{html.escape(cell.text)}</td>"
            for name, cell in cells
        )
        return f"<tr>{inner}</tr>"

    def _align(self, name: str, more: str = "") -> str:
        side = "right" if name in self.right else "left"
        styles = [f"text-align:{side}", *([ON_ONE_LINE] if name in self.whole else []), more]
        return f' style="{";".join(filter(None, styles))}"'


def picture(uri: Any) -> str:
    """A small picture of a record, or nothing: only a data URI of an image may stand in a page."""
    return uri if isinstance(uri, str) and PICTURE.fullmatch(uri) else ""


def _img(cell: Cell) -> str:
    style = "max-height:64px;vertical-align:middle"
    return f'<img src="{cell.image}" alt="" style="{style}"> ' if cell.image else ""


def show(sheet: Sheet, console: Console | None = None) -> None:
    """Print a table; in a notebook it is an HTML table."""
    console = console or Console(highlight=False)
    if not in_notebook(console):
        console.print(sheet.rich())
        return
    plain = Console(file=io.StringIO(), width=PLAIN_WIDTH, force_jupyter=False, color_system=None)
    with plain.capture() as captured:
        plain.print(sheet.rich())
    show_html(sheet.html(), captured.get())


def what_metrics(names: Iterable[str]) -> str:
    """What kind of metrics these are: Similarity if all are of scored pairs, else Retrieval."""
    found = list(names)
    scored = bool(found) and all(name.endswith(SIMILARITY) for name in found)
    return "Similarity" if scored else "Retrieval"


def metrics_sheet(evaluations: Mapping[str, Sides]) -> Sheet:
    """Each metric before and after fine-tuning, and the change.

    Args:
        evaluations: by name, each `{"before": {key: value}, "after": {key: value}}`. Where there
            are several, each is a section of its own, and its name is not repeated in the keys.
    """
    several = len(evaluations) > 1
    keys = [key for sides in evaluations.values() for side in sides.values() for key in side]
    what = what_metrics(keys)
    right = ("Before", "After", "Change")
    sections = []
    for name, sides in evaluations.items():
        rows = _metric_rows(sides["before"], sides["after"], f"{name}_" if several else "")
        if several:
            rows = [[Cell("" if i else name, "bold"), *row] for i, row in enumerate(rows)]
        sections.append(rows)
    return Sheet(
        title=f"{what} metrics before and after fine-tuning",
        columns=(*(("Evaluation",) if several else ()), f"{what} Metric", *right),
        right=frozenset(right),
        sections=sections,
    )


def _metric_rows(
    before: Mapping[str, float], after: Mapping[str, float], prefix: str
) -> list[list[Cell]]:
    rows = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        values = [Cell("" if value is None else f"{value:.5f}") for value in (old, new)]
        rows.append([Cell(key.removeprefix(prefix)), *values, _change(old, new)])
    return rows


def _change(old: float | None, new: float | None) -> Cell:
    if old is None or new is None:
        return Cell("")
    text = f"{new - old:+.5f}"
    if float(text) == 0:
        return Cell(text)
    return Cell(text, "green" if text.startswith("+") else "red")


def examples_sheet(
    title: str,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    k: int,
    pictures: Mapping[str, str] | None = None,
) -> Sheet:
    """Each query, and below it its best `k` matches with their scores; ✓ marks relevant ones.

    `pictures` are those of queries that are images.
    """
    sections = []
    images = bool(pictures) or any(one.get("image") for each in results.values() for one in each)
    what = "Item" if images else "Text"
    for query, matches in results.items():
        asked = Cell(_cut(query), "bold yellow", picture((pictures or {}).get(query)))
        rows = [[Cell("Query", "bold yellow"), asked, Cell("")]]
        for rank, match in enumerate(matches[:k], start=1):
            relevant = bool(match.get("relevant"))
            text = ("✓ " if relevant else "") + _cut(match["text"])
            score = Cell(f"{match['score']:.3f}", "dim")
            found = Cell(text, "green" * relevant, picture(match.get("image")))
            rows.append([Cell(f"Match {rank}", "dim"), found, score])
        sections.append(rows)
    return Sheet(
        title=title, columns=("", what, "Score"), right=frozenset({"Score"}), sections=sections
    )


def _cut(text: str) -> str:
    """On one line, and not too long to compare."""
    line = without_control_codes(" ".join(text.split()))
    return line if len(line) <= MAX_CELL else line[: MAX_CELL - 1] + "…"


def models_sheets(rows: Sequence[Mapping[str, Any]]) -> list[Sheet]:
    """The models that have a short name, a table for each task."""
    columns = ("name", "output_dim", "architecture", "description")
    return [
        Sheet(
            title=f"Models for the task {task}",
            columns=columns,
            right=frozenset({"output_dim"}),
            whole=frozenset({"name", "architecture"}),
            sections=[
                [
                    [Cell("-" if row[column] is None else str(row[column])) for column in columns]
                    for row in rows
                    if row["task"] == task
                ]
            ],
        )
        for task in dict.fromkeys(row["task"] for row in rows)
    ]


def options_sheet(name: str, rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """The options of a model."""
    columns = ("option", "type", "default", "description")
    cells = [
        [
            Cell(str(row["name"])),
            Cell(str(row["type"])),
            Cell("(required)" if row["required"] else str(row["default"])),
            Cell(str(row["description"])),
        ]
        for row in rows
    ]
    return Sheet(
        title=f"model_options of {name}",
        columns=columns,
        whole=frozenset({"option"}),
        sections=[cells],
    )


def summary_sheet(summary: Any) -> Sheet:
    """The layers of a model (a `ModelSummary`), the trained ones in green, and the totals."""
    rows = [
        [
            Cell(layer.name or "(itself)", "green" if layer.trained else "dim"),
            Cell(layer.kind),
            Cell(layer.shape),
            Cell(f"{layer.parameters:,}"),
            Cell(_trained(layer.trained, layer.parameters)),
        ]
        for layer in summary.layers
    ]
    total = [Cell("total", "bold"), Cell(""), Cell(""), Cell(f"{summary.parameters:,}", "bold")]
    total.append(Cell(f"{summary.trained:,}", "bold"))
    return Sheet(
        title=f"Layers of {summary.name}",
        columns=("layer", "type", "shape", "parameters", "trainable"),
        right=frozenset({"parameters", "trainable"}),
        sections=[rows, [total]],
    )


def _trained(trained: int, parameters: int) -> str:
    if trained in (0, parameters):
        return "yes" if trained else "no"
    return f"{trained:,}"
