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
    dims: int | None,
    quantize: str | None,
    rescore: int | None,
    is_onnx: bool,
    max_length: int | None,
    **options: Any,
) -> None:
    """Evaluate a model in this process and print its metrics; `options` are `evaluate`'s.

    With `dims` or `quantize` there is a second column, of the embeddings made smaller.
    """
    from ftray.api import compare_sizes, get_model

    sizes = compare_sizes(
        get_model(model, max_length=max_length, is_onnx=True) if is_onnx else model,
        query,
        index,
        dims=[None] if dims is None else [None, dims],
        quantize=[None] if quantize is None else [None, quantize],
        rescore=[rescore],
        limit=limit,
        columns=parse_columns(columns),
        max_length=None if is_onnx else max_length,
        **options,
    )
    whole, asked = sizes[0], sizes[-1]
    if as_json:
        print(json.dumps(dict(asked.metrics)))
        return
    what = what_metrics(dict(whole.metrics))
    table = Table(title=f"{model} at k = {limit}" if what == "Retrieval" else model)
    table.add_column(f"{what} Metric")
    shown = [whole] if asked is whole else [whole, asked]
    for one in shown:
        table.add_column(
            f"{one}, {one.bytes:,} bytes" if len(shown) > 1 else "Value", justify="right"
        )
    for name in sorted(whole.metrics):
        table.add_row(name, *(f"{one.metrics[name]:.5f}" for one in shown))
    Console(highlight=False).print(table)
