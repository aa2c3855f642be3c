"""Hugging Face `datasets` objects, which are known by their module and never imported here."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ftray.data.loading import Choose, Loaded, load_table
from ftray.data.values import Values
from ftray.errors import DataError

__all__ = ["is_hf_dataset", "load_hf_dataset"]


def is_hf_dataset(source: Any) -> bool:
    """Whether `source` is of the package `datasets`."""
    return type(source).__module__.split(".")[0] == "datasets"


def load_hf_dataset(
    source: Any, choose: Choose, *, name: str, values: Values, where: str, size: int | None
) -> Loaded:
    """A `datasets.Dataset`: only the columns with a role are read, and class labels by their names.

    Raises:
        DataError: for a `DatasetDict`, naming its splits, and for a streamed data set.
    """
    if isinstance(source, dict):
        splits = ", ".join(repr(split) for split in source)
        first = next(iter(source), "train")
        raise DataError(
            f"{where}: a {type(source).__name__} holds several data sets: {splits}. Give one of "
            f"them, as data['{first}']."
        )
    if not hasattr(source, "with_format") or not hasattr(source, "num_rows"):
        raise DataError(
            f"{where}: a {type(source).__name__} of `datasets` cannot be read: it is streamed. "
            "Load it without streaming=True."
        )
    if not source.num_rows:
        raise DataError(f"{name} has no rows.")
    layout = choose(source.column_names)
    wanted = list(layout.columns.values())
    table: pa.Table = source.select_columns(wanted).with_format("arrow")[:size]
    for number, column in enumerate(table.column_names):
        names = getattr(source.features[column], "names", None)
        if names and pa.types.is_integer(table[column].type):
            table = table.set_column(number, column, _named(table[column], names))
    return load_table(table, lambda _: layout, source=name, values=values)


def _named(codes: pa.ChunkedArray, names: list[str]) -> pa.ChunkedArray:
    """The names of classes; -1 stands for none."""
    known = pc.if_else(pc.less(codes, 0), None, codes)
    return pa.array(names).take(known)
