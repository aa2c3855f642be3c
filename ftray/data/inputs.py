"""What is to be encoded, of anything that `ftray.encode` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ftray.data.readers import read_records
from ftray.data.sources import described
from ftray.data.values import TEXTS, plain, typed_address
from ftray.media import MARK, Content, Modality, contents

__all__ = ["read_contents"]


def read_contents(
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    modalities: frozenset[Modality] | None = None,
) -> tuple[list[Content], list[str]]:
    """What is to be encoded of anything `encode` takes: one column, items, or queries of pairs.

    Args:
        data: a list, or what `train_data` may be.
        columns: our names to the data's columns.
        modalities: what the model takes; None = what the data looks like decides.

    Returns:
        The things, and what each is called: a text itself, else its file, as the source names it
        where it lies in an archive; `sha256:…` of what has no name.

    Raises:
        DataError: for data that cannot be read.
    """
    if modalities == TEXTS and isinstance(data, Sequence) and not isinstance(data, str):
        texts = _plain_texts(data)
        if texts is not None:
            return list(texts), texts
    records = read_records(data, columns=columns, where="data", modalities=modalities)
    role = "query" if records.kind == "pairs" else records.table.column_names[0]
    items = contents(records.table[role].to_pylist(), records.blobs)
    if role in records.names:
        return items, records.names[role].to_pylist()
    return items, [_called(item) for item in items]


def _plain_texts(data: Sequence[Any]) -> list[str] | None:
    """A list of nothing but texts, which may be empty ones, as it is; None for anything else.

    Raises:
        DataError: for a text that no text may be, with its index.
    """
    if not all(isinstance(text, str) and typed_address(text) is None for text in data):
        return None
    for index, text in enumerate(data):
        if MARK in text:
            plain(text, f"{described(data)}, index {index}")
    return list(data)


def _called(item: Content) -> str:
    return item if isinstance(item, str) else item.address
