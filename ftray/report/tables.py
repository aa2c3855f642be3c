"""Tables of metrics and of example results, for a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

__all__ = ["examples_table", "metrics_table", "what_metrics"]

MAX_CELL = 160
SIMILARITY = ("pearson", "spearman")


def what_metrics(names: Iterable[str]) -> str:
    """What kind of metrics these are: Similarity if all are of scored pairs, else Retrieval."""
    found = list(names)
    scored = bool(found) and all(name.endswith(SIMILARITY) for name in found)
    return "Similarity" if scored else "Retrieval"


def metrics_table(before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Each metric before and after fine-tuning, and the change."""
    what = what_metrics([*before, *after])
    table = Table(title=f"{what} metrics before and after fine-tuning")
    table.add_column(f"{what} Metric")
    for name in ("Before", "After", "Change"):
        table.add_column(name, justify="right")
    for name in sorted(set(before) | set(after)):
        old, new = before.get(name), after.get(name)
        change = f"{new - old:+.5f}" if old is not None and new is not None else ""
        style = (
            ""
            if not change or abs(float(change)) == 0
            else ("green" if change.startswith("+") else "red")
        )
        table.add_row(
            name,
            "" if old is None else f"{old:.5f}",
            "" if new is None else f"{new:.5f}",
            f"[{style}]{change}[/]" if style else change,
        )
    return table


def examples_table(title: str, results: Mapping[str, Sequence[Mapping[str, Any]]], k: int) -> Table:
    """One row for each query with its best `k` matches; ✓ marks the relevant ones."""
    table = Table(title=title, show_lines=True)
    table.add_column("Query", style="bold yellow", max_width=40)
    for rank in range(1, k + 1):
        table.add_column(f"Match {rank}", max_width=50)
    for query, matches in results.items():
        cells = [_cell(match) for match in matches[:k]]
        table.add_row(_escape(query), *cells, *[""] * (k - len(cells)))
    return table


def _cell(match: Mapping[str, Any]) -> str:
    text = match["text"]
    cut = text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"
    mark = "[green]✓[/] " if match.get("relevant") else ""
    return f"{mark}{_escape(cut)} [dim]({match['score']:.3f})[/]"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
