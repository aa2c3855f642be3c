"""`ftray evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ftray.cli.columns import parse_columns
from ftray.report.tables import what_metrics

__all__ = ["run"]


def run(
    model: str,
    query: str,
    index: str | None,
    *,
    columns: Sequence[str],
    as_json: bool,
    limit: int,
    **options: Any,
) -> None:
    """Evaluate a model in this process and print its metrics; `options` are `evaluate`'s."""
    from ftray.api import evaluate

    metrics = evaluate(model, query, index, limit=limit, columns=parse_columns(columns), **options)
    if as_json:
        print(json.dumps(metrics))
        return
    what = what_metrics(metrics)
    table = Table(title=f"{model} at k = {limit}" if what == "Retrieval" else model)
    table.add_column(f"{what} Metric")
    table.add_column("Value", justify="right")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.5f}")
    Console(highlight=False).print(table)
