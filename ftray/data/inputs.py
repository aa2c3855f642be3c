"""What is to be encoded, of anything that `ftray.encode` takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ftray.data.readers import read_records
from ftray.data.sources import described
from ftray.data.values import TEXTS, plain, typed_address
from ftray.errors import DataError
from ftray.media import MARK, NO_BLOBS, Blobs, Content, Modality, contents

__all__ = ["Inputs", "Part", "read_inputs"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some things to encode, one after the other in their source.

    Attributes:
        items: the things, `n` of them.
        names: what each is called: a text itself, else its file, as the source names it where it
            lies in an archive; `sha256:…` of what has no name.
        ids: the source's own, where it has some.
    """

    items: list[Content]
    names: list[str]
    ids: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Things to encode as their source gave them; objects are made of a part at a time.

    Attributes:
        cells: as tables have them (see `ftray.media`), `(N,)`.
        blobs: contents that lie in no file.
        called: names of their own, `(N,)`; None: the things name themselves.
        ids: of their own, `(N,)`.
    """

    cells: list[str] | pa.ChunkedArray
    blobs: Blobs = NO_BLOBS
    called: pa.ChunkedArray | None = None
    ids: pa.ChunkedArray | None = None

    def __len__(self) -> int:
        return len(self.cells)

    def part(self, start: int, stop: int) -> Part:
        """Those at the positions from `start` to before `stop`."""
        cells = _cut(self.cells, start, stop)
        items = contents(cells, self.blobs)
        if self.called is not None:
            names = _cut(self.called, start, stop)
        else:
            names = [item if isinstance(item, str) else item.address for item in items]
        ids = None if self.ids is None else _cut(self.ids, start, stop)
        return Part(items=items, names=names, ids=ids)

    def parts(self, size: int) -> Iterator[Part]:
        """All of them, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.part(start, start + size)


def read_inputs(
    data: Any,
    *,
    columns: Mapping[str, str] | None = None,
    modalities: frozenset[Modality] | None = None,
) -> Inputs:
    """What is to be encoded of anything `encode` takes: one column, items, or queries of pairs.

    Args:
        data: a list, or what `train_data` may be.
        columns: our names to the data's columns.
        modalities: what the model takes; None = what the data looks like decides.

    Raises:
        DataError: for data that cannot be read.
    """
    if modalities == TEXTS and isinstance(data, Sequence) and not isinstance(data, str):
        texts = _plain_texts(data)
        if texts is not None:
            if columns and texts:
                raise DataError(
                    f"columns = {dict(columns)}: {described(data)} of texts alone has no columns. "
                    "Leave columns away"
                )
            return Inputs(cells=texts)
    records = read_records(data, columns=columns, where="data", modalities=modalities)
    table = records.table
    role = "query" if records.kind in ("pairs", "triplets") else table.column_names[0]
    return Inputs(
        cells=table[role],
        blobs=records.blobs,
        called=records.names.get(role),
        ids=table["id"] if "id" in table.column_names else None,
    )


def _cut(values: list[str] | pa.ChunkedArray, start: int, stop: int) -> list[str]:
    if isinstance(values, list):
        return values[start:stop]
    found: list[str] = values.slice(start, max(stop - start, 0)).to_pylist()
    return found


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
